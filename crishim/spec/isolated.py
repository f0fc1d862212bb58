"""A container of the library: what runc gives one that asks for nothing, from the same tables as a pod's containers.

Masked and read-only paths are the kubelet's in a pod; here nobody sends any, so they stand here.
"""

from __future__ import annotations

from crishim.errors import InvalidSpec
from crishim.model.id_mapping import IdMapping
from crishim.model.process import CgroupSpec, ContainerSpec, DeviceNode, Namespace, NamespaceKind, ProcessSpec, RootFs
from crishim.model.sandbox import NamespaceMode, NamespaceOptions, UserNamespace
from crishim.spec.container import BASE_NODES
from crishim.spec.mounts import default_mounts
from crishim.spec.user_namespace import without_rights_on_host

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_OWN = (
    NamespaceKind.MOUNT,
    NamespaceKind.PID,
    NamespaceKind.IPC,
    NamespaceKind.UTS,
    NamespaceKind.CGROUP,
)


def isolated_container(
    id: str, rootfs: RootFs, cgroup: str, hostname: str, network: str, ids: IdMapping | None = None
) -> ContainerSpec:
    """A container with namespaces of its own. network: "none" (a loopback of its own) or "host"; InvalidSpec else.

    cgroup: path below the hierarchy root; ids: of a user namespace of its own, for uids and gids alike. The process is
    a placeholder until `Container.start` brings one.
    """
    if network not in ("none", "host"):
        raise InvalidSpec(f"network: {network!r} is neither none nor host")
    kinds = (*_OWN, NamespaceKind.NETWORK) if network == "none" else _OWN
    maps = () if ids is None else (ids,)
    users = None if ids is None else UserNamespace(NamespaceMode.POD, maps, maps)
    pod = NamespaceOptions(network=NamespaceMode.NODE if network == "host" else NamespaceMode.POD, user=users)
    if users is not None:
        kinds = (*kinds, NamespaceKind.USER)
    return ContainerSpec(
        id=id,
        process=ProcessSpec(args=("/bin/sh",)),
        rootfs=rootfs,
        cgroup=CgroupSpec(path=cgroup),
        namespaces=tuple(Namespace(kind) for kind in kinds),
        uid_mappings=maps,
        gid_mappings=maps,
        mounts=tuple(without_rights_on_host(mount, pod) for mount in default_mounts(False, NamespaceMode.POD)),
        device_nodes=tuple(DeviceNode(path, "c", major, minor) for path, major, minor in BASE_NODES),
        masked_paths=MASKED_PATHS,
        readonly_paths=READONLY_PATHS,
        hostname=hostname,
    )
