"""CRI's metrics: what a runtime can give, and the values of one pod (api.proto MetricDescriptor, PodSandboxMetrics)."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class MetricType(enum.Enum):
    """CRI `MetricType`; the value is the wire number."""

    COUNTER = 0
    GAUGE = 1


@dataclass(frozen=True, slots=True)
class MetricDescriptor:
    """CRI `MetricDescriptor`. Namespace, pod and container are added by the kubelet, so no label has these names."""

    name: str
    help: str
    label_keys: tuple[str, ...]
    type: MetricType


@dataclass(frozen=True, slots=True)
class Metric:
    """One value; as many label values as the descriptor has keys. Values are whole numbers: CRI has no others."""

    descriptor: MetricDescriptor
    label_values: tuple[str, ...]
    value: int
    #: CLOCK_REALTIME of the reading
    timestamp_ns: int


@dataclass(frozen=True, slots=True)
class SandboxMetrics:
    """Values of a pod as a whole, and those of each of its containers by id."""

    sandbox_id: str
    metrics: tuple[Metric, ...]
    containers: tuple[tuple[str, tuple[Metric, ...]], ...] = ()
