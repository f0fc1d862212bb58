"""The mounts of a container in the order of mounting: defaults, the pod's files, and what the request asks for.

A mount of the request replaces a default at the same place, and a /dev of the request replaces everything below it.
Parents come before what lies inside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from crishim.errors import InvalidSpec
from crishim.model.container import ContainerConfig, Mount
from crishim.model.process import PROC_FILES, MountSpec, Propagation
from crishim.model.sandbox import NamespaceMode, NamespaceOptions, UserNamespace
from crishim.spec.facts import PodFiles
from crishim.spec.user_namespace import is_idmapped, without_rights_on_host

_NONE: Mapping[int, tuple[str, ...]] = MappingProxyType({})
_SAFE = ("nosuid", "noexec", "nodev")


def container_mounts(
    config: ContainerConfig,
    pod: NamespaceOptions,
    files: PodFiles,
    *,
    layers: Mapping[int, tuple[str, ...]] = _NONE,
    declared: Iterable[MountSpec] = (),
    cgroup_writable: bool = False,
) -> tuple[MountSpec, ...]:
    """All mounts below "/". InvalidSpec and Unsupported name the field of the request.

    layers: directories of the image of each image volume, by its position among the mounts of the request.
    declared: what the image declares as VOLUME; every other mount wins over it.
    """
    users = pod.own_users
    asked = [_requested(index, mount, users, layers.get(index, ())) for index, mount in enumerate(config.mounts)]
    targets = {mount.target for mount in asked}
    defaults = [
        without_rights_on_host(mount, pod)
        for mount in (
            *default_mounts(config.security.privileged, pod.ipc, cgroup_writable=cgroup_writable),
            *_pod_files(files, config.security.readonly_rootfs, idmap=users is not None),
        )
        if mount.target not in targets and not ("/dev" in targets and mount.target.startswith("/dev/"))
    ]
    targets |= {mount.target for mount in defaults}
    volumes = [mount for mount in declared if mount.target not in targets]
    return tuple(sorted([*defaults, *asked, *volumes], key=lambda mount: mount.target.count("/")))


def check_paths(field: str, paths: Iterable[str]) -> tuple[str, ...]:
    """Masked or read-only paths as they were sent, none twice; InvalidSpec for a relative one."""
    checked = tuple(dict.fromkeys(paths))
    for path in checked:
        if not path.startswith("/") or ".." in path.split("/"):
            raise InvalidSpec(f"linux.security_context.{field}: {path!r} is not an absolute path")
    return checked


def default_mounts(privileged: bool, ipc: NamespaceMode, *, cgroup_writable: bool = False) -> tuple[MountSpec, ...]:
    """What every container has below "/"; parents first. With an IPC namespace of the pod /dev/shm is the pod's."""
    mode = () if privileged else ("ro",)
    if ipc is NamespaceMode.NODE:
        shm = MountSpec("/dev/shm", "bind", "/dev/shm", _SAFE)
    else:
        shm = MountSpec("/dev/shm", "shm", "", _SAFE)
    return (
        MountSpec("/proc", "proc", "proc", _SAFE),
        MountSpec("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime"), ("mode=755", "size=65536k")),
        MountSpec(
            "/dev/pts", "devpts", "devpts", ("nosuid", "noexec"), ("newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
        ),
        shm,
        MountSpec("/dev/mqueue", "mqueue", "mqueue", _SAFE),
        MountSpec("/sys", "sysfs", "sysfs", (*_SAFE, *mode)),
        MountSpec("/sys/fs/cgroup", "cgroup", "cgroup", (*_SAFE, "relatime", *(() if cgroup_writable else mode))),
    )


def _pod_files(files: PodFiles, readonly: bool, *, idmap: bool) -> list[MountSpec]:
    pairs = (("/etc/resolv.conf", files.resolv_conf), ("/etc/hostname", files.hostname), ("/etc/hosts", files.hosts))
    flags = ("ro",) if readonly else ()
    return [MountSpec(target, "bind", source, flags, idmap=idmap) for target, source in pairs if source]


def _requested(index: int, mount: Mount, users: UserNamespace | None, layers: tuple[str, ...]) -> MountSpec:
    field = f"config.mounts[{index}]"
    target = checked_target(f"{field}.container_path", mount.container_path)
    if mount.image is not None:
        return _image_volume(field, mount, target, users, layers)
    if not mount.host_path.startswith("/") or "\0" in mount.host_path:
        raise InvalidSpec(f"{field}.host_path: {mount.host_path!r} is not an absolute path")
    flags = [_option(field, option) for option in mount.options]
    if mount.recursive_read_only:
        if not mount.readonly or mount.propagation is not Propagation.PRIVATE:
            raise InvalidSpec(f"{field}.recursive_read_only: true needs readonly and private propagation")
        flags.append("rro")
    elif mount.readonly:
        flags.append("ro")
    idmap = is_idmapped(field, mount, users)
    return MountSpec(target, "bind", mount.host_path, tuple(flags), (), mount.propagation, idmap=idmap)


def _image_volume(
    field: str, mount: Mount, target: str, users: UserNamespace | None, layers: tuple[str, ...]
) -> MountSpec:
    """Read-only, and programs may run from it; what an image marks as set-user-id gives no one anything."""
    if not mount.readonly:
        raise InvalidSpec(f"{field}.readonly: false, but an image volume is read-only")
    if mount.propagation is Propagation.BIDIRECTIONAL:
        raise InvalidSpec(f"{field}.propagation: BIDIRECTIONAL, but an image volume has nothing to propagate")
    options = [_option(field, option) for option in mount.options]
    flags = tuple(dict.fromkeys(("ro", "nosuid", "nodev", *options)))
    is_idmapped(field, mount, users)
    return MountSpec(target, "image", mount.image_sub_path, flags, layers=layers)


def checked_target(field: str, path: str) -> str:
    """A place in a container without "." and doubled slashes.

    InvalidSpec for the root, for /proc but a few of its files, and for what is no path.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not path.startswith("/") or ".." in parts or "\0" in path:
        raise InvalidSpec(f"{field}: {path!r} is not an absolute path")
    if not parts:
        raise InvalidSpec(f"{field}: {path!r} is the root of the container")
    if parts[0] == "proc" and "/" + "/".join(parts) not in PROC_FILES:
        # whoever owns what we read or write there would decide about labels and limits (CVE-2019-16884)
        raise InvalidSpec(f"{field}: {path!r} cannot be mounted over")
    return "/" + "/".join(parts)


def _option(field: str, option: str) -> str:
    if option not in _SAFE:
        raise InvalidSpec(f"{field}.mount_options: {option!r} is not one of {', '.join(_SAFE)}")
    return option
