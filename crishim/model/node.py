"""The node as a kubelet sees it by Status and RuntimeConfig (api.proto StatusResponse, RuntimeConfigResponse)."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class CgroupDriver(enum.Enum):
    """CRI `CgroupDriver`; the value is the wire number."""

    SYSTEMD = 0
    CGROUPFS = 1


@dataclass(frozen=True, slots=True)
class Condition:
    """CRI `RuntimeCondition`; type is "RuntimeReady", "NetworkReady" or our own; reason is one CamelCase word."""

    type: str
    status: bool
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class RuntimeHandler:
    """CRI `RuntimeHandler`; the default one appears under its name and under ""."""

    name: str
    recursive_read_only_mounts: bool = False
    user_namespaces: bool = False


@dataclass(frozen=True, slots=True)
class NodeFeatures:
    """CRI `RuntimeFeatures`: what every handler of this node can do."""

    supplemental_groups_policy: bool = False
    user_namespaces_host_network: bool = False
    mount_options: bool = False


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """Answer to Status: at least the conditions RuntimeReady and NetworkReady, handlers in a stable order."""

    conditions: tuple[Condition, ...]
    handlers: tuple[RuntimeHandler, ...] = (RuntimeHandler(""),)
    features: NodeFeatures = NodeFeatures()
    #: only when verbose; values are JSON texts. "config" holds an object with `stateDir` (critest reads it)
    info: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MonitorProcess:
    """The monitor of a pod. version: of the crishim that started it; memory_bytes: its own, None when not known."""

    sandbox_id: str
    pid: int
    version: str
    wire_version: int
    began_at_ns: int
    memory_bytes: int | None
