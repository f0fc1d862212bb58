"""What a user namespace of the pod changes in a translation. Facts: KEP-127; api.proto UserNamespace, Mount."""

from __future__ import annotations

from dataclasses import replace

from crishim.errors import InvalidSpec
from crishim.model.container import Mount
from crishim.model.process import MountSpec, User
from crishim.model.sandbox import NamespaceMode, NamespaceOptions, UserNamespace

_SAFE = ("nosuid", "noexec", "nodev")


def check_users(where: str, pod: NamespaceOptions, asked: NamespaceOptions, *, privileged: bool) -> None:
    """A container has the users of its pod, and nobody is privileged in a namespace. InvalidSpec names the field."""
    if asked.own_users != pod.own_users:
        raise InvalidSpec(f"{where}.userns_options: they differ from those that the sandbox was run with")
    if privileged and pod.own_users is not None:
        raise InvalidSpec(
            "linux.security_context.privileged: true, but the pod has a user namespace of its own (userns_options)"
        )


def check_mapped(user: User, users: UserNamespace | None) -> None:
    """InvalidSpec for a user or group of the process that the pod's user namespace does not have."""
    if users is None:
        return
    for field, number, found in (
        ("user", user.uid, users.host_uid(user.uid)),
        *(("group", gid, users.host_gid(gid)) for gid in (user.gid, *user.additional_groups)),
    ):
        if found is None:
            raise InvalidSpec(
                f"linux.security_context: {field} {number} of the process is not mapped in the pod's user namespace"
            )


def is_idmapped(field: str, mount: Mount, users: UserNamespace | None) -> bool:
    """Whether the kubelet wants the owners of a mount mapped; InvalidSpec for other maps than the pod's."""
    if not mount.uid_mappings and not mount.gid_mappings:
        return False
    if users is None:
        raise InvalidSpec(f"{field}.uidMappings: the pod has no user namespace")
    if (mount.uid_mappings, mount.gid_mappings) != (users.uids, users.gids):
        raise InvalidSpec(f"{field}.uidMappings: they differ from those of the pod's user namespace")
    return True


def without_rights_on_host(mount: MountSpec, pod: NamespaceOptions) -> MountSpec:
    """A default mount as it can be had in a user namespace.

    sysfs and mqueue can be mounted anew only by who owns the network or IPC namespace: the host's are bound instead.
    """
    if pod.own_users is None:
        return mount
    if mount.kind == "sysfs" and pod.network is NamespaceMode.NODE:
        return MountSpec(mount.target, "bind", "/sys", (*_SAFE, "rro"))
    if mount.kind == "mqueue" and pod.ipc is NamespaceMode.NODE:
        return MountSpec(mount.target, "bind", "/dev/mqueue", _SAFE)
    if mount.kind == "devpts" and pod.own_users.host_gid(5) is None:
        return replace(mount, options=tuple(option for option in mount.options if option != "gid=5"))
    return mount
