"""A container as the executor starts it: process, root, cgroup, namespaces, mounts and devices put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from crishim.errors import InvalidSpec
from crishim.model.container import ContainerConfig, ContainerSecurity
from crishim.model.image import ImageConfig
from crishim.model.node import CgroupDriver
from crishim.model.process import (
    CgroupSpec,
    ContainerSpec,
    DeviceNode,
    LogTarget,
    MountSpec,
    Namespace,
    NamespaceKind,
    Rlimit,
    RootFs,
    SeccompFilter,
)
from crishim.model.sandbox import NamespaceMode, NamespaceOptions, Sandbox
from crishim.spec.annotated import rlimits_of, umask_of
from crishim.spec.cgroup import container_cgroup, device_rules, limits
from crishim.spec.facts import HostDevice, NodeAbilities, PodFiles, Users
from crishim.spec.mounts import check_paths, container_mounts
from crishim.spec.process import container_process
from crishim.spec.selinux import SELINUXFS, container_labels, refuse_without_labels
from crishim.spec.user_namespace import check_mapped, check_users

#: nodes of every /dev: path to (major, minor), all of kind "c", 0666
BASE_NODES = (
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What besides the two configurations a translation needs, gathered by the runtime."""

    image: ImageConfig
    users: Users
    node: NodeAbilities
    files: PodFiles
    #: name of the pod, as its UTS namespace has it; HOSTNAME of the environment
    hostname: str
    rootfs: RootFs
    #: `config.devices` resolved on the host; every device of the host for a privileged container
    devices: tuple[HostDevice, ...] = ()
    localhost_filter: SeccompFilter | None = None
    make_missing_sources: bool = True
    #: of every container's processes; the runtime handler and the pod's annotations change them
    rlimits: tuple[Rlimit, ...] = ()
    #: directories of the image of each image volume, topmost layer first, by its position in `config.mounts`
    image_volumes: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    #: mounts, or directories to make in the root, for what the image declares as VOLUME
    declared_volumes: Sequence[MountSpec] = ()
    directories: tuple[str, ...] = ()
    cgroup_driver: CgroupDriver = CgroupDriver.CGROUPFS


def container_spec(container_id: str, config: ContainerConfig, sandbox: Sandbox, around: Surroundings) -> ContainerSpec:
    """The ContainerSpec of a container. InvalidSpec names the field at fault, Unsupported what this node lacks."""
    security = config.security
    if security.privileged and not sandbox.config.security.privileged:
        raise InvalidSpec(
            "linux.security_context.privileged: true, but the sandbox was run without privileged: a privileged"
            " container needs a privileged sandbox"
        )
    pod = sandbox.config.security.namespaces
    asked_namespaces = namespaces_of(config, sandbox)
    pid_mode = asked_namespaces.pid
    refuse_without_labels("linux.security_context", security.selinux, around.node.selinux_problem)
    label, mount_label = container_labels(config, sandbox, asked_namespaces, around.node.selinux_labels)
    rootfs, handler = around.rootfs, sandbox.handler
    asked = sandbox.config.annotations
    process = container_process(
        config,
        around.image,
        users=around.users,
        node=around.node,
        hostname=around.hostname,
        localhost_filter=around.localhost_filter,
        handler=handler,
    )
    check_mapped(process.user, pod.own_users)
    return ContainerSpec(
        id=container_id,
        process=replace(
            process,
            label=label,
            user=replace(process.user, umask=umask_of(asked, handler)),
            rlimits=rlimits_of(around.rlimits, handler, asked),
        ),
        rootfs=RootFs(rootfs.lowers, rootfs.upper, rootfs.work, rootfs.path, security.readonly_rootfs),
        cgroup=CgroupSpec(
            container_cgroup(sandbox.cgroup_path, container_id, around.cgroup_driver),
            limits(config.resources, handler),
            device_rules(around.devices, all_devices(config, sandbox)),
        ),
        namespaces=_namespaces(pid_mode, security.privileged, own_users=pod.own_users is not None),
        mounts=container_mounts(
            config,
            pod,
            around.files,
            layers=around.image_volumes,
            declared=around.declared_volumes,
            cgroup_writable=handler.cgroup_writable,
        ),
        device_nodes=_nodes(around.devices),
        masked_paths=_masked_paths(security, labelled=mount_label is not None),
        readonly_paths=() if security.privileged else check_paths("readonly_paths", security.readonly_paths),
        log=_log(sandbox.config.log_directory, config.log_path),
        stdin=config.stdin,
        stdin_once=config.stdin_once,
        make_missing_sources=around.make_missing_sources,
        directories=around.directories,
        mount_label=mount_label,
    )


def _masked_paths(security: ContainerSecurity, *, labelled: bool) -> tuple[str, ...]:
    if security.privileged:
        return ()
    paths = (*security.masked_paths, SELINUXFS) if labelled else security.masked_paths
    return check_paths("masked_paths", paths)


def all_devices(config: ContainerConfig, sandbox: Sandbox) -> bool:
    """Whether a container sees and may use every device of the host."""
    return config.security.privileged and not sandbox.handler.privileged_without_host_devices


def namespaces_of(config: ContainerConfig, sandbox: Sandbox) -> NamespaceOptions:
    """The namespace options of a container; those of its sandbox when it sends none."""
    return config.security.namespaces or sandbox.config.security.namespaces


def check_namespaces(config: ContainerConfig, sandbox: Sandbox) -> None:
    """A container can choose how it sees processes, within what its sandbox was run with; the rest is the sandbox's.

    InvalidSpec names the field.
    """
    asked = namespaces_of(config, sandbox)
    pod = sandbox.config.security.namespaces
    where = "linux.security_context.namespace_options"
    check_users(where, pod, asked, privileged=config.security.privileged)
    if asked.pid is NamespaceMode.POD and pod.pid is not NamespaceMode.POD:
        raise InvalidSpec(f"{where}.pid: POD, but the sandbox was run with pid {pod.pid.name}")
    if asked.pid is NamespaceMode.NODE and pod.pid is not NamespaceMode.NODE:
        raise InvalidSpec(f"{where}.pid: NODE, but the sandbox was run with pid {pod.pid.name}")


def exec_namespaces(config: ContainerConfig, sandbox: Sandbox) -> tuple[NamespaceKind, ...]:
    """What an exec has to join: the container's namespaces that are not the host's."""
    pod = sandbox.config.security.namespaces
    kinds = [NamespaceKind.MOUNT]
    if namespaces_of(config, sandbox).pid is not NamespaceMode.NODE:
        kinds.append(NamespaceKind.PID)
    if pod.network is not NamespaceMode.NODE:
        kinds += [NamespaceKind.NETWORK, NamespaceKind.UTS]
    if pod.ipc is not NamespaceMode.NODE:
        kinds.append(NamespaceKind.IPC)
    if not config.security.privileged:
        kinds.append(NamespaceKind.CGROUP)
    if pod.own_users is not None:
        kinds.append(NamespaceKind.USER)
    return tuple(kinds)


def _namespaces(pid_mode: NamespaceMode, privileged: bool, *, own_users: bool) -> tuple[Namespace, ...]:
    """New namespaces; network, IPC and UTS are those of the pod's monitor, the init's parent."""
    kinds = [Namespace(NamespaceKind.MOUNT)]
    if pid_mode is NamespaceMode.CONTAINER:
        kinds.append(Namespace(NamespaceKind.PID))
    if not privileged:
        kinds.append(Namespace(NamespaceKind.CGROUP))
    if own_users:
        kinds.append(Namespace(NamespaceKind.USER))
    return tuple(kinds)


def _nodes(devices: tuple[HostDevice, ...]) -> tuple[DeviceNode, ...]:
    nodes = {path: DeviceNode(path, "c", major, minor) for path, major, minor in BASE_NODES}
    nodes |= {device.node.path: device.node for device in devices}
    return tuple(nodes.values())


def _log(directory: str, path: str) -> LogTarget | None:
    """None when either is empty: then the output is dropped."""
    if not directory or not path:
        return None
    if path.startswith("/") or ".." in path.split("/"):
        raise InvalidSpec(f"config.log_path: {path!r} leaves the log directory")
    return LogTarget(directory, path)
