"""`/run/netns` as a shared mount, so that pods' network namespaces are seen where CNI plugins have their daemons.

A plugin's daemon in a container mounts the directory with HostToContainer. Pins that are made later reach it only from
a shared mount. Where init makes "/" shared, as systemd does, it is one already; elsewhere it becomes one of its own,
as ip-netns(8) and containerd make it.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crishim.linux import mount

DIRECTORY: Final = Path("/run/netns")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Mount:
    id: int
    parent: int
    point: str
    shared: bool


def share_netns_directory(directory: Path = DIRECTORY) -> None:
    """Nothing changes when it is shared, or when namespaces are pinned in it: a mount over them would keep them there.

    Logs why it could not be made. Others that do the same wait for each other (flock, as ip-netns takes it).
    """
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            _share(directory, descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        _say_not_shared(directory, (error.strerror or "").lower())


def _share(directory: Path, covered: int) -> None:
    # by the number, not by the path: mounts may cover each other
    number = _mount_number(covered)
    holder = next(each for each in _mounts() if each.id == number)
    if holder.shared:
        return
    if holder.point == str(directory):
        mount.mount_setattr(covered, propagation=mount.MS_SHARED)
        return
    if _has_pins(directory, number):
        _say_not_shared(directory, "namespaces are pinned in it; a start with none does it")
        return
    tree = mount.open_tree(covered, b".", mount.OPEN_TREE_CLONE)
    try:
        mount.mount_setattr(tree, propagation=mount.MS_SHARED)
        mount.move_mount(tree, covered)
    finally:
        os.close(tree)
    if _has_pins(directory, number):  # made meanwhile, below ours
        mount.umount2(os.fsencode(directory), mount.MNT_DETACH | mount.UMOUNT_NOFOLLOW)
        _say_not_shared(directory, "a namespace was pinned in it meanwhile")


def _has_pins(directory: Path, parent: int) -> bool:
    return any(each.parent == parent and each.point.startswith(f"{directory}/") for each in _mounts())


def _mount_number(descriptor: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii").splitlines():
        if line.startswith("mnt_id:"):
            return int(line.split()[1])
    raise OSError(f"/proc/self/fdinfo/{descriptor} has no mnt_id")


def _mounts() -> Iterator[_Mount]:
    """Source: proc_pid_mountinfo(5)."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields = line.split(" ")
        options = fields[6 : fields.index("-", 6)]
        yield _Mount(int(fields[0]), int(fields[1]), fields[4], any(each.startswith("shared:") for each in options))


def _say_not_shared(directory: Path, why: str) -> None:
    logger.warning("%s is not a shared mount: daemons of CNI plugins in containers may miss pods: %s", directory, why)
