"""The VOLUME directories that an image declares: which of them count, and where they are mounted.

Their paths are the image's word, so they are hostile: they name places inside the container's root alone
(CVE-2022-23648) and never what we mount there of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable

from crishim.errors import InvalidSpec
from crishim.model.container import Mount
from crishim.model.process import MountSpec

#: where the kernel's file systems and our own devices are; many images declare /sys/fs/cgroup
_KERNEL_TREES = frozenset({"proc", "sys", "dev"})
#: an image that declares more is not made for containers
_MOST = 128


def declared_volumes(volumes: Iterable[str], mounts: Iterable[Mount]) -> tuple[str, ...]:
    """Paths that become volumes, parents first: those of the image that no mount of the request takes the place of.

    ".." ends at the root. InvalidSpec names what is no path.
    """
    taken = {_inside(mount.container_path) for mount in mounts}
    found = []
    for volume in volumes:
        if not volume or "\0" in volume:
            raise InvalidSpec(f"config.image: the image declares the volume {volume[:256]!r}, which is not a path")
        path = _inside(volume)
        if is_allowed(path) and path not in taken:
            found.append(path)
    unique = tuple(sorted(dict.fromkeys(found), key=lambda path: (path.count("/"), path)))
    if len(unique) > _MOST:
        raise InvalidSpec(f"config.image: the image declares {len(unique)} volumes, more than {_MOST}")
    return unique


def volume_mounts(directories: Iterable[tuple[str, str]], mounts: Iterable[Mount], *, idmap: bool) -> list[MountSpec]:
    """Mounts of (directory on the host, path in the container with the links of the image followed).

    idmap: the files belong to whom the container's user namespace maps their owners.
    """
    taken = {_inside(mount.container_path) for mount in mounts}
    found = []
    for directory, target in directories:
        if is_allowed(target) and target not in taken:
            taken.add(target)
            found.append(MountSpec(target, "bind", directory, ("nodev",), idmap=idmap))
    return found


def is_allowed(path: str) -> bool:
    """Whether something of the image may be mounted at a path (absolute, without "..")."""
    top = path.split("/")[1]
    return bool(top) and top not in _KERNEL_TREES


def _inside(path: str) -> str:
    """The path below the root, whatever it says."""
    kept: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del kept[-1:]
        elif part not in ("", "."):
            kept.append(part)
    return "/" + "/".join(kept)
