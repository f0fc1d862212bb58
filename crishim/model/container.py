"""Containers: configuration, status, the table of state changes (api.proto ContainerConfig, ContainerStatus)."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from crishim.errors import WrongState
from crishim.model.events import ProcessEvent, ProcessExited, ProcessStarted, TrackLost
from crishim.model.id_mapping import IdMapping
from crishim.model.process import Capabilities as Capabilities
from crishim.model.process import Propagation
from crishim.model.resources import Resources
from crishim.model.sandbox import NamespaceOptions, SecurityProfile, SELinuxOptions


class ContainerState(enum.Enum):
    """CRI `ContainerState`; the value is the wire number."""

    CREATED = 0
    RUNNING = 1
    EXITED = 2
    UNKNOWN = 3


@dataclass(frozen=True, slots=True)
class Mount:
    """CRI `Mount`. `image` is set for image volumes, then host_path is empty."""

    container_path: str
    host_path: str = ""
    readonly: bool = False
    selinux_relabel: bool = False
    propagation: Propagation = Propagation.PRIVATE
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    recursive_read_only: bool = False
    image: str | None = None
    image_sub_path: str = ""
    #: digest of the image as it was found, for those who ask for the status; set at creation
    image_ref: str = ""
    #: CRI `mount_options` (v0.36+), for instance "noexec"
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Device:
    """CRI `Device`: a host device or a directory of them; permissions is a subset of "rwm"."""

    container_path: str
    host_path: str
    permissions: str = "rwm"


@dataclass(frozen=True, slots=True)
class CapabilityChange:
    """CRI `Capability`: names without CAP_, any case; "ALL" is every one."""

    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    add_ambient: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerSecurity:
    """CRI `LinuxContainerSecurityContext`."""

    capabilities: CapabilityChange | None = None
    privileged: bool = False
    namespaces: NamespaceOptions | None = None
    selinux: SELinuxOptions | None = None
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_username: str = ""
    readonly_rootfs: bool = False
    supplemental_groups: tuple[int, ...] = ()
    strict_groups: bool = False
    no_new_privs: bool = False
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None


@dataclass(frozen=True, slots=True)
class ContainerConfig:
    """CRI `ContainerConfig`, validated. The identity is (sandbox, name, attempt)."""

    name: str
    attempt: int = 0
    #: what CreateContainer names: an image id, a reference or a digest
    image: str = ""
    user_specified_image: str = ""
    image_runtime_handler: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    #: in order; the last of equal names wins
    envs: tuple[tuple[str, str], ...] = ()
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    log_path: str = ""
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    #: Linux signal number (`cri/signals.py` translates CRI's own numbers), 0 unset
    stop_signal: int = 0
    resources: Resources = Resources()
    security: ContainerSecurity = ContainerSecurity()


@dataclass(frozen=True, slots=True)
class ContainerUser:
    """The user that runs the init process, as ContainerStatus.user reports it."""

    uid: int
    gid: int
    supplemental_groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Container:
    """A container as the store keeps it: configuration and status together."""

    id: str
    sandbox_id: str
    config: ContainerConfig
    state: ContainerState
    created_at_ns: int
    #: as `PullImageResponse.image_ref`: the id of the image
    image_id: str
    #: a repo digest when known, else the id
    image_ref: str
    #: a tag when known, else what was asked
    image_name: str
    user: ContainerUser
    log_path: str = ""
    #: signal StopContainer begins with (image StopSignal or CRI stop_signal), never 0
    stop_signal: int = 15
    cgroup_path: str = ""
    #: limits in force: those of the config, then those of UpdateContainerResources
    resources: Resources = Resources()
    started_at_ns: int = 0
    finished_at_ns: int = 0
    pid: int = 0
    exit_code: int = 0
    #: CamelCase word of ContainerStatus.reason: Completed, Error, OOMKilled, StartError, Unknown
    reason: str = ""
    message: str = ""


_NEXT = MappingProxyType(
    {
        (ContainerState.CREATED, ProcessStarted): ContainerState.RUNNING,
        (ContainerState.CREATED, ProcessExited): ContainerState.EXITED,  # died before execve(2), or removed unstarted
        (ContainerState.RUNNING, ProcessExited): ContainerState.EXITED,
        (ContainerState.UNKNOWN, ProcessExited): ContainerState.EXITED,
        (ContainerState.CREATED, TrackLost): ContainerState.UNKNOWN,
        (ContainerState.RUNNING, TrackLost): ContainerState.UNKNOWN,
    }
)


def apply_event(container: Container, event: ProcessEvent) -> Container:
    """The status after `event`; WrongState tells the story of a pair outside the table."""
    state = _NEXT.get((container.state, type(event)))
    if state is None:
        raise WrongState(f"container {container.id} is {container.state.name} and cannot take {event}")
    if isinstance(event, ProcessStarted):
        return replace(container, state=state, pid=event.pid, started_at_ns=event.started_at_ns)
    if isinstance(event, ProcessExited):
        return replace(
            container,
            state=state,
            pid=0,
            started_at_ns=container.started_at_ns or event.started_at_ns,
            finished_at_ns=event.ended_at_ns,
            exit_code=event.code,
            reason=event.reason,
            message=event.message,
        )
    return replace(container, state=state, reason="Unknown", message=event.message)
