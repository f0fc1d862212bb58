"""Paths that cannot leave a root: openat2(2), and directories made component by component below a descriptor."""

from __future__ import annotations

import errno
import os
import stat
import struct

from crishim.linux.syscall import call_restarting, number

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000

_OPENAT2 = number("openat2")


def openat2(dirfd: int, path: bytes, flags: int, mode: int = 0, resolve: int = RESOLVE_IN_ROOT) -> int:
    """Descriptor of `path` below `dirfd`, always close-on-exec; the caller owns it.

    With RESOLVE_IN_ROOT absolute and ".." links end inside `dirfd`. Raises OSError: EXDEV for an escape with
    RESOLVE_BENEATH, ELOOP for a symlink with RESOLVE_NO_SYMLINKS. Source: openat2(2), Linux 5.6.
    """
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    return call_restarting(_OPENAT2, dirfd, path, how, len(how))


def make_directories_in_root(root: int, path: bytes, mode: int = 0o755) -> int:
    """mkdir -p inside `root`, a descriptor or AT_FDCWD; an O_PATH descriptor of the last directory, the caller's.

    What exists is followed with RESOLVE_IN_ROOT, in one call; what is missing is made relative to its parent's
    descriptor, so a symlink swapped in between ends inside the root (CVE-2024-45310). Raises ENOTDIR when a component
    is no directory, EINVAL for one that is "..".
    """
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise OSError(errno.EINVAL, "path has a .. component", path)
    there = len(parts)
    current = -1
    while current < 0:
        try:
            current = _open_directory(root, parts[:there])
        except FileNotFoundError:
            if there == 0:
                raise
            there -= 1
    try:
        for length in range(there + 1, len(parts) + 1):
            try:
                os.mkdir(parts[length - 1], mode, dir_fd=current)
            except FileExistsError:
                _make_target_of_link(root, current, parts[:length], mode)
            made = _open_directory(root, parts[:length])
            os.close(current)
            current = made
    except BaseException:
        os.close(current)
        raise
    return current


def _open_directory(root: int, parts: list[bytes]) -> int:
    return openat2(root, b"/" + b"/".join(parts), os.O_PATH | os.O_DIRECTORY)


def _make_target_of_link(root: int, parent: int, parts: list[bytes], mode: int) -> None:
    """What the dangling symlink `parts` names is made, inside the root; nothing for a directory of somebody else."""
    try:
        target = os.readlink(parts[-1], dir_fd=parent)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return
    base = b"" if target.startswith(b"/") else b"/" + b"/".join(parts[:-1])
    os.close(make_directories_in_root(root, _squash(base + b"/" + target), mode))


def _squash(path: bytes) -> bytes:
    """`path` without "." and "..", lexically, never above the root."""
    kept: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            del kept[-1:]
        elif part not in (b"", b"."):
            kept.append(part)
    return b"/" + b"/".join(kept)


def make_file_in_root(root: int, path: bytes) -> int:
    """An O_PATH descriptor of the file `path` inside `root`, made empty (0644) with its parents when it is missing."""
    try:
        return openat2(root, path, os.O_PATH)
    except FileNotFoundError:
        pass
    parent = make_directories_in_root(root, os.path.dirname(path) or b"/")
    try:
        made = os.open(
            os.path.basename(path), os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=parent
        )
        os.close(made)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        target = os.readlink(os.path.basename(path), dir_fd=parent)
        base = b"" if target.startswith(b"/") else os.path.dirname(path)
        return make_file_in_root(root, _squash(base + b"/" + target))
    finally:
        os.close(parent)
    return openat2(root, path, os.O_PATH)


def is_device(fd: int, major: int, minor: int) -> bool:
    """Whether an open descriptor (O_PATH will do) is the character device major:minor."""
    status = os.fstat(fd)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(major, minor)


def give_pipe(fd: int, uid: int) -> None:
    """A pipe that becomes a process's stdio becomes its user's, who may open /dev/stdout again; nothing else does.

    uid: the host's number. OSError of fchown(2).
    """
    if stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.fchown(fd, uid, -1)


def read_bounded(fd: int, limit: int) -> bytes:
    """All bytes of an open file, at most `limit`; OSError EFBIG when it holds more."""
    parts: list[bytes] = []
    left = limit + 1
    while left > 0:
        data = os.read(fd, min(left, 1 << 16))
        if not data:
            return b"".join(parts)
        parts.append(data)
        left -= len(data)
    raise OSError(errno.EFBIG, f"file is larger than {limit} bytes")
