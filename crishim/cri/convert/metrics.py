"""Metrics to protobuf."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from crishim.cri.convert.texts import to_wire
from crishim.cri.pb import api_pb2 as pb
from crishim.model.metric import Metric, MetricDescriptor, SandboxMetrics


def descriptor_to_proto(descriptor: MetricDescriptor) -> pb.MetricDescriptor:
    """An entry of ListMetricDescriptors."""
    return pb.MetricDescriptor(name=descriptor.name, help=descriptor.help, label_keys=descriptor.label_keys)


def sandbox_to_proto(found: SandboxMetrics) -> pb.PodSandboxMetrics:
    """An entry of ListPodSandboxMetrics."""
    return pb.PodSandboxMetrics(
        pod_sandbox_id=found.sandbox_id,
        metrics=_metrics(found.metrics),
        container_metrics=[
            pb.ContainerMetrics(container_id=container_id, metrics=_metrics(metrics))
            for container_id, metrics in found.containers
        ],
    )


def _metrics(metrics: Iterable[Metric]) -> list[pb.Metric]:
    return [
        pb.Metric(
            name=metric.descriptor.name,
            timestamp=metric.timestamp_ns,
            metric_type=cast("pb.MetricType", metric.descriptor.type.value),
            label_values=[to_wire(value) for value in metric.label_values],
            value=pb.UInt64Value(value=metric.value),
        )
        for metric in metrics
    ]
