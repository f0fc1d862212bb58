"""Pod sandboxes: what the kubelet asked for, and what became of it (api.proto PodSandboxConfig, PodSandboxStatus)."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from crishim.model.handler import PLAIN, Handler
from crishim.model.id_mapping import IdMapping
from crishim.model.resources import Resources


class NamespaceMode(enum.Enum):
    """CRI `NamespaceMode`; the value is the wire number."""

    POD = 0
    CONTAINER = 1
    NODE = 2
    TARGET = 3


class ProfileType(enum.Enum):
    """CRI `SecurityProfile.ProfileType`; the value is the wire number."""

    RUNTIME_DEFAULT = 0
    UNCONFINED = 1
    LOCALHOST = 2


class SandboxState(enum.Enum):
    """CRI `PodSandboxState`; the value is the wire number."""

    READY = 0
    NOTREADY = 1


@dataclass(frozen=True, slots=True)
class UserNamespace:
    """CRI `UserNamespace`: mode POD has exactly one mapping of each kind."""

    mode: NamespaceMode
    uids: tuple[IdMapping, ...] = ()
    gids: tuple[IdMapping, ...] = ()

    def host_uid(self, uid: int) -> int | None:
        """The host's number of a uid of the pod, None when it has none."""
        return _on_host(self.uids, uid)

    def host_gid(self, gid: int) -> int | None:
        """The host's number of a gid of the pod, None when it has none."""
        return _on_host(self.gids, gid)


def _on_host(mappings: tuple[IdMapping, ...], number: int) -> int | None:
    for each in mappings:
        if each.container_id <= number < each.container_id + each.length:
            return each.host_id + number - each.container_id
    return None


@dataclass(frozen=True, slots=True)
class NamespaceOptions:
    """CRI `NamespaceOption`."""

    network: NamespaceMode = NamespaceMode.POD
    pid: NamespaceMode = NamespaceMode.POD
    ipc: NamespaceMode = NamespaceMode.POD
    #: container id, only with pid = TARGET
    target_id: str = ""
    user: UserNamespace | None = None

    @property
    def own_users(self) -> UserNamespace | None:
        """The pod's own user namespace, None when it has the host's."""
        return self.user if self.user is not None and self.user.mode is NamespaceMode.POD else None


@dataclass(frozen=True, slots=True)
class SecurityProfile:
    """CRI `SecurityProfile`: seccomp or AppArmor."""

    type: ProfileType = ProfileType.RUNTIME_DEFAULT
    localhost_ref: str = ""


@dataclass(frozen=True, slots=True)
class SELinuxOptions:
    """CRI `SELinuxOption`."""

    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""


@dataclass(frozen=True, slots=True)
class PodLabels:
    """SELinux contexts of a pod's processes and files; a container may name parts of its own."""

    process: str
    mount: str


@dataclass(frozen=True, slots=True)
class SandboxSecurity:
    """CRI `LinuxSandboxSecurityContext`."""

    namespaces: NamespaceOptions = NamespaceOptions()
    selinux: SELinuxOptions | None = None
    run_as_user: int | None = None
    run_as_group: int | None = None
    readonly_rootfs: bool = False
    supplemental_groups: tuple[int, ...] = ()
    #: CRI SupplementalGroupsPolicy: True is Strict (1), False is Merge (0)
    strict_groups: bool = False
    privileged: bool = False
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None


@dataclass(frozen=True, slots=True)
class Dns:
    """CRI `DNSConfig`."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PortMapping:
    """CRI `PortMapping`; protocol is "tcp", "udp" or "sctp"."""

    protocol: str
    container_port: int
    host_port: int
    host_ip: str = ""


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """CRI `PodSandboxConfig`, validated. The identity is (name, namespace, uid, attempt)."""

    name: str
    uid: str
    namespace: str
    attempt: int = 0
    hostname: str = ""
    log_directory: str = ""
    dns: Dns | None = None
    port_mappings: tuple[PortMapping, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    cgroup_parent: str = ""
    sysctls: Mapping[str, str] = field(default_factory=dict)
    security: SandboxSecurity = SandboxSecurity()
    overhead: Resources | None = None
    resources: Resources | None = None
    runtime_handler: str = ""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A sandbox as the store keeps it: configuration and status together."""

    id: str
    config: SandboxConfig
    state: SandboxState
    created_at_ns: int
    #: IP addresses in order of preference; empty with host network
    ips: tuple[str, ...] = ()
    #: bind-mounted netns ("/run/netns/..."), None with host network
    netns_path: str | None = None
    #: cgroup of the pod as the kubelet named it, resolved to a path below the hierarchy root
    cgroup_path: str = ""
    #: why it is NOTREADY, when not by StopPodSandbox
    reason: str = ""
    #: options of its runtime handler when it was run; a change of the configuration is for sandboxes to come
    handler: Handler = PLAIN
    #: None: the node gave no SELinux contexts when it was run
    selinux: PodLabels | None = None
