"""The mount calls: file-descriptor mounts (Linux 5.2), mount_setattr (5.12), and mount(2) where it is needed."""

from __future__ import annotations

import os
import struct

from crishim.linux.fs import AT_EMPTY_PATH
from crishim.linux.syscall import call, number

OPEN_TREE_CLONE = 1
AT_RECURSIVE = 0x8000
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
#: the bits of which the three ways of keeping access times are values
MOUNT_ATTR_ATIME = 0x70
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_BIND = 4096
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6

_OPEN_TREE = number("open_tree")
_MOVE_MOUNT = number("move_mount")
_FSOPEN = number("fsopen")
_FSCONFIG = number("fsconfig")
_FSMOUNT = number("fsmount")
_MOUNT_SETATTR = number("mount_setattr")
_MOUNT = number("mount")
_UMOUNT2 = number("umount2")
_PIVOT_ROOT = number("pivot_root")


def open_tree(dirfd: int, path: bytes, flags: int) -> int:
    """Descriptor of a mount, or with OPEN_TREE_CLONE of a detached copy (AT_RECURSIVE: with what is mounted below)."""
    return call(_OPEN_TREE, dirfd, path, flags | os.O_CLOEXEC)


def move_mount(tree: int, target: int, name: bytes = b"") -> None:
    """Attach the mount of descriptor `tree` on the object of descriptor `target`; no path is resolved.

    name: on this entry of the directory `target` instead; only where nobody else can have put a link.
    """
    call(_MOVE_MOUNT, tree, b"", target, name, MOVE_MOUNT_F_EMPTY_PATH | (0 if name else MOVE_MOUNT_T_EMPTY_PATH))


def mount_setattr(
    fd: int, *, set_: int = 0, clear: int = 0, propagation: int = 0, userns: int = 0, recursive: bool = False
) -> None:
    """Change flags and propagation of the mount of `fd`, with those below it when `recursive`."""
    attr = struct.pack("=QQQQ", set_, clear, propagation, userns)
    call(_MOUNT_SETATTR, fd, b"", AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0), attr, len(attr))


def new_mount(
    kind: bytes,
    options: tuple[tuple[bytes, bytes | None], ...] = (),
    attributes: int = 0,
    source: bytes | None = None,
) -> int:
    """Descriptor of a detached mount of a new file system instance of type `kind`.

    source: the name that mountinfo and df show, the type unless given. Options are (key, value); a value of None is a
    flag. Raises OSError of the step that failed; EINVAL is an option that the file system does not know.
    Source: fsopen(2), fsconfig(2), fsmount(2).
    """
    context = call(_FSOPEN, kind, 1)
    try:
        configure(context, b"source", source or kind)
        for key, value in options:
            configure(context, key, value)
        call(_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
        return call(_FSMOUNT, context, 1, attributes)
    finally:
        os.close(context)


def configure(context: int, key: bytes, value: bytes | None) -> None:
    """One fsconfig(2) parameter of a file system context: a string, or a flag when `value` is None."""
    if value is None:
        call(_FSCONFIG, context, FSCONFIG_SET_FLAG, key, None, 0)
    else:
        call(_FSCONFIG, context, FSCONFIG_SET_STRING, key, value, 0)


def mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int, data: bytes | None = None) -> None:
    """mount(2)."""
    call(_MOUNT, source, target, kind, flags, data)


def umount2(target: bytes, flags: int) -> None:
    """umount2(2)."""
    call(_UMOUNT2, target, flags)


def pivot_root(new: bytes, old: bytes) -> None:
    """pivot_root(2)."""
    call(_PIVOT_ROOT, new, old)
