"""The role that fills the VOLUME directories of a container from its image: hostile paths and trees, so in a child.

The child makes the image's root its own and keeps of the host only the descriptor of the directory it writes to. What
it copies is what a layer may hold but devices: directories, files (holes stay holes), links, fifos and sockets' places,
with owner, mode, times and attributes. Source: what containerd and docker do with VOLUME.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

from crishim.errors import InvalidSpec
from crishim.images.roles import (
    CHOWN,
    DAC_OVERRIDE,
    FOWNER,
    FSETID,
    SETFCAP,
    Reply,
    bound_memory,
    confine,
    open_layers,
    replying,
)
from crishim.images.trees import DIRECTORY
from crishim.linux.fs import openat2

_CAPABILITIES = (CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETFCAP)
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: what is not worth a failed container: attributes that this file system or kernel does not take
_SKIPPED_XATTR_ERRORS = frozenset({errno.ENOTSUP, errno.EPERM, errno.EINVAL})
_PIECE = 1 << 30
#: a longer path could not be linked to
_MAX_PATH = 4000


def copy_volumes(request: dict[str, Any], descriptors: list[int]) -> Reply:
    """Copy directories of an image; never raises.

    descriptors: the empty directory in which "0", "1", ... are made, one for each of "paths" (absolute, bytes) of the
    image that has the layers "lowers" (paths, topmost first). A path that the image lacks becomes an empty directory.
    Reply: "targets" (bytes), the paths with the image's links followed.
    """
    return replying(lambda: _copy_volumes(request, descriptors[0]))


def _copy_volumes(request: dict[str, Any], directory: int) -> Reply:
    bound_memory()
    root = open_layers(request["lowers"])
    names = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    confine(root, _CAPABILITIES)
    targets = []
    for number, path in enumerate(request["paths"]):
        name = b"%d" % number
        os.mkdir(name, 0o755, dir_fd=directory)
        target, rest = _found(root, names, path)
        if not rest:
            try:
                _Copy(target, name, directory).run()
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
                    raise
                raise InvalidSpec(
                    f"the volume {path[:256]!r} of the image cannot be copied: {error.strerror}"
                ) from None
        targets.append(target + rest)
    return {"targets": targets}


def _found(root: int, names: int, path: bytes) -> tuple[bytes, bytes]:
    """Where the image has the path, its links followed, and what of it is not there."""
    known, rest = path, b""
    while True:
        try:
            found = openat2(root, known, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            try:
                os.lstat(known)
            except FileNotFoundError:
                known, _, last = known.rpartition(b"/")
                known, rest = known or b"/", b"/" + last + rest
                continue
            raise InvalidSpec(f"the volume {path[:256]!r} of the image is a link that leads nowhere") from None
        except OSError as error:
            reason = (error.strerror or "").lower()
            raise InvalidSpec(f"the volume {path[:256]!r} of the image: {reason}") from None
        try:
            target = os.readlink(b"%d" % found, dir_fd=names)
        finally:
            os.close(found)
        return (b"" if target == b"/" and rest else target), rest


class _Copy:
    """One tree, with two descriptors at any depth."""

    def __init__(self, source: bytes, name: bytes, directory: int) -> None:
        self._source = os.open(source, DIRECTORY)
        self._target = os.open(name, DIRECTORY, dir_fd=directory)
        self._top = os.dup(self._target)
        #: inode to the path below the top of the first copy of a file that has several names
        self._links: dict[int, bytes] = {}

    def run(self) -> None:
        """Copy all of it, and close the descriptors."""
        try:
            self._walk()
        finally:
            for descriptor in (self._source, self._target, self._top):
                os.close(descriptor)

    def _walk(self) -> None:
        way: list[tuple[bytes, list[bytes]]] = []
        pending = self._copy_entries(b"")
        path = b""
        while True:
            if pending:
                name = pending.pop()
                os.mkdir(name, 0o700, dir_fd=self._target)
                self._enter(name)
                way.append((path, pending))
                path = path + name + b"/"
                pending = self._copy_entries(path)
                continue
            self._finish_directory()
            if not way:
                return
            path, pending = way.pop()
            self._enter(b"..")

    def _enter(self, name: bytes) -> None:
        source = os.open(name, DIRECTORY, dir_fd=self._source)
        os.close(self._source)
        self._source = source
        target = os.open(name, DIRECTORY, dir_fd=self._target)
        os.close(self._target)
        self._target = target

    def _finish_directory(self) -> None:
        """Owner, mode and times, when all is in it: each entry made inside changes the times."""
        _take_over(self._source, self._target, os.fstat(self._source))

    def _copy_entries(self, path: bytes) -> list[bytes]:
        """Copy everything but directories, and return the names of those."""
        directories = []
        for entry in os.listdir(self._source):
            name = os.fsencode(entry)
            found = os.lstat(name, dir_fd=self._source)
            if stat.S_ISDIR(found.st_mode):
                directories.append(name)
            elif not self._link(name, path, found):
                self._copy(name, found)
        return directories

    def _link(self, name: bytes, path: bytes, found: os.stat_result) -> bool:
        """Whether the file is there already under another name, and now under this one too."""
        if found.st_nlink < 2:
            return False
        first = self._links.get(found.st_ino)
        if first is not None:
            os.link(first, name, src_dir_fd=self._top, dst_dir_fd=self._target, follow_symlinks=False)
        elif len(path) + len(name) <= _MAX_PATH:
            self._links[found.st_ino] = path + name
        return first is not None

    def _copy(self, name: bytes, found: os.stat_result) -> None:
        if stat.S_ISREG(found.st_mode):
            self._copy_file(name, found)
        elif stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink(name, dir_fd=self._source), name, dir_fd=self._target)
            os.chown(name, found.st_uid, found.st_gid, dir_fd=self._target, follow_symlinks=False)
            os.utime(name, ns=(found.st_mtime_ns, found.st_mtime_ns), dir_fd=self._target, follow_symlinks=False)
        elif stat.S_ISFIFO(found.st_mode):
            os.mkfifo(name, 0o600, dir_fd=self._target)
            os.chown(name, found.st_uid, found.st_gid, dir_fd=self._target, follow_symlinks=False)
            os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=self._target)

    def _copy_file(self, name: bytes, found: os.stat_result) -> None:
        source = os.open(name, _READ, dir_fd=self._source)
        try:
            target = os.open(name, _WRITE, 0o600, dir_fd=self._target)
            try:
                _copy_content(source, target, found.st_size)
                _take_over(source, target, found)
            finally:
                os.close(target)
        finally:
            os.close(source)


def _copy_content(source: int, target: int, size: int) -> None:
    """What is written of the file; its holes stay holes, so that they cost nothing."""
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = os.lseek(source, at, os.SEEK_HOLE)
        os.lseek(target, at, os.SEEK_SET)
        while at < end:
            copied = os.sendfile(target, source, at, min(end - at, _PIECE))  # copy_file_range(2) refuses an overlay
            if not copied:
                return
            at += copied


def _take_over(source: int, target: int, found: os.stat_result) -> None:
    os.fchown(target, found.st_uid, found.st_gid)
    os.fchmod(target, stat.S_IMODE(found.st_mode))  # after chown, which clears set-user-id
    for name in os.listxattr(source):
        if name.startswith("user.") or name == "security.capability":
            try:
                os.setxattr(target, name, os.getxattr(source, name))
            except OSError as error:
                if error.errno not in _SKIPPED_XATTR_ERRORS:
                    raise
    os.utime(target, ns=(found.st_mtime_ns, found.st_mtime_ns))
