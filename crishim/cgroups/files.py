"""Reading, writing and walking cgroup directories with plain system calls.

Kernel files are written by os.write alone: a buffered file drops EBUSY when it is closed. Walks hold a constant number
of descriptors and never build a path, so a container that nests its own cgroups beyond PATH_MAX or RLIMIT_NOFILE
cannot hide from us.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from crishim.cgroups.hierarchy import Hierarchy

#: of what a cgroup, or a file in it, says that was removed: open(2), and read(2) of a file that was open
GONE = (errno.ENOENT, errno.ENODEV)
#: v1 says "no limit" with the largest page count, some bytes below 2^63 that depend on the page size
_V1_UNLIMITED = 1 << 62
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


def join_path(tree: bytes, path: str | bytes) -> bytes:
    """Directory of the cgroup `path` ("/kubepods/pod1/ID") in a tree.

    The root is nobody's to limit, kill or remove, and ".." could lead there: OSError (EINVAL) for both.
    """
    parts = os.fsencode(path).strip(b"/").split(b"/")
    if b"" in parts or b".." in parts:
        raise OSError(errno.EINVAL, "not a cgroup below the root", path)
    return tree + b"/" + b"/".join(parts)


def write(path: bytes, value: str) -> None:
    """One write(2) of the value to a kernel file; OSError names the file.

    An empty value is written as a newline: a write of no bytes never reaches the kernel's handler.
    """
    with Writer() as writer:
        writer.write(path, value)


class Writer:
    """`write` for many values: a file stays open while the next value is for it too, as the rules of devices.allow are.

    A context; the last file is closed at its end.
    """

    __slots__ = ("_fd", "_path")

    def __init__(self) -> None:
        self._path = b""
        self._fd = -1

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def write(self, path: bytes, value: str) -> None:
        """As `write`, through the file of the last call when it is the same."""
        try:
            if path != self._path:
                self._close()
                self._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                self._path = path
            os.write(self._fd, value.encode() or b"\n")
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), path) from None

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._path, self._fd = b"", -1


def read(path: bytes, at: int | None = None) -> bytes:
    """The whole of a kernel file, relative to the directory `at` when given; OSError names the file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=at)
        try:
            parts = []
            while part := os.read(fd, 65536):
                parts.append(part)
            return b"".join(parts)
        finally:
            os.close(fd)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), path) from None


def read_or_none(path: bytes, at: int | None = None) -> bytes | None:
    """`read`, None when the file or its cgroup is not there or the kernel does not support it."""
    try:
        return read(path, at)
    except OSError:
        return None


def controller_file(h: Hierarchy, controller: str, path: str | bytes, file: bytes) -> bytes | None:
    """A file of the cgroup `path` in the controller's tree; None without the controller or the file."""
    tree = h.controllers.get(controller)
    return None if tree is None else read_or_none(join_path(tree, path) + b"/" + file)


def number_or_none(text: bytes | None) -> int | None:
    """A file with one number; None for "max" and for a missing file."""
    text = (text or b"").strip()
    return int(text) if text.isdigit() else None


def limit_or_none(limit: int | None) -> int | None:
    """A limit of either version in bytes; None when it is none."""
    return None if limit is None or limit >= _V1_UNLIMITED else limit


def flat_keyed(text: bytes) -> dict[bytes, int]:
    """The pairs of a file with lines "key number"; other lines are skipped."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def walk(path: bytes, leave: Callable[[int, bytes], None] | None = None) -> Iterator[int]:
    """Descriptors of the cgroup directory and of all below it, parents first; nothing when it is gone.

    Each is valid until the next step. leave(parent, name) is called when all below the child `name` was visited.
    """
    try:
        fd = os.open(path, _DIRECTORY)
    except FileNotFoundError:
        return
    above: list[tuple[bytes, list[bytes]]] = []
    try:
        yield fd
        todo = _children(fd)
        while todo or above:
            if todo:
                name = todo.pop()
                try:
                    child = os.open(name, _DIRECTORY, dir_fd=fd)
                except FileNotFoundError:
                    continue
                fd = _swap(fd, child)
                above.append((name, todo))
                yield fd
                todo = _children(fd)
            else:
                name, todo = above.pop()
                try:
                    fd = _swap(fd, os.open(b"..", _DIRECTORY, dir_fd=fd))
                except FileNotFoundError:  # the tree was removed above us
                    return
                if leave:
                    leave(fd, name)
    finally:
        os.close(fd)


def _swap(old: int, new: int) -> int:
    os.close(old)
    return new


def _children(fd: int) -> list[bytes]:
    if os.fstat(fd).st_nlink == 2:  # kernfs counts sub-directories, so most cgroups need no listing
        return []
    try:
        with os.scandir(fd) as entries:
            return [os.fsencode(entry.name) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:  # ENOENT: removed under our hands
        return []
