"""What the server asks of the executor and is told by it, as values (part of the executor's door)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from crishim.model.exit import ExitRecord
from crishim.model.id_mapping import IdMapping
from crishim.model.process import IntelRdt, NamespaceKind, ProcessSpec

_SHM_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class PodSpec:
    """The namespaces that a pod's containers share, and what is set in them.

    network, ipc, uts: whether the pod has its own; netns_path: where the network namespace is pinned; shared_pid: a
    PID namespace of the pod with a reaping init of ours; sysctls: keys of the pod's own namespaces, validated.
    uid_mappings, gid_mappings: of the pod's own user namespace, which then owns the others; empty: the host's.
    mount_label: SELinux context of the pod's /dev/shm.
    """

    network: bool = False
    netns_path: str | None = None
    ipc: bool = True
    uts: bool = True
    shared_pid: bool = False
    hostname: str | None = None
    domainname: str | None = None
    sysctls: Mapping[str, str] = field(default_factory=dict)
    shm_bytes: int = _SHM_BYTES
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    mount_label: str | None = None

    def to_value(self) -> dict[str, object]:
        """The body of START_MONITOR."""
        return {
            "network": self.network,
            "netns_path": self.netns_path and os.fsencode(self.netns_path),
            "ipc": self.ipc,
            "uts": self.uts,
            "shared_pid": self.shared_pid,
            "hostname": self.hostname and os.fsencode(self.hostname),
            "domainname": self.domainname and os.fsencode(self.domainname),
            "sysctls": {os.fsencode(key): os.fsencode(text) for key, text in self.sysctls.items()},
            "shm_bytes": self.shm_bytes,
            "uid_map": _map_value(self.uid_mappings),
            "gid_map": _map_value(self.gid_mappings),
            "mount_label": self.mount_label and os.fsencode(self.mount_label),
        }


def _map_value(mappings: tuple[IdMapping, ...]) -> list[list[int]]:
    return [[each.container_id, each.host_id, each.length] for each in mappings]


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """A further process in a running container.

    init_pidfd: of the container's init; namespaces: those that the container does not share with us; cgroup_path: the
    container's cgroup; leaf: "exec.0", a leaf of it that the caller made, or "" for the container's own cgroup or what
    the process asks for below it (`sub_cgroup_paths`).
    stdin, stdout, stderr: descriptors, None is the container's /dev/null. bundle, annotations: of the container, for a
    seccomp listener. intel_rdt: of the container.
    """

    container_id: str
    init_pidfd: int
    process: ProcessSpec
    cgroup_path: str
    leaf: str = ""
    namespaces: tuple[NamespaceKind, ...] = ()
    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    bundle: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    intel_rdt: IntelRdt | None = None


@dataclass(frozen=True, slots=True)
class StartedContainer:
    """A container whose init passed execve(2); the caller owns the pidfd."""

    pid: int
    pidfd: int
    started_at_ns: int
    #: seconds of the phases cgroup, mounts, clone, setup
    phases: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class MonitoredContainer:
    """A container that an adopted monitor knows; `pidfd` is the caller's, None when it has exited."""

    id: str
    pid: int
    pidfd: int | None
    started_at_ns: int
    exit: ExitRecord | None


@dataclass(frozen=True, slots=True)
class ExecExit:
    """How an exec ended: 0..255, or 128 + signal."""

    code: int
    signal: int | None
    ended_at_ns: int
