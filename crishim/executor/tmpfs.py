"""Steps of a child for a tmpfs that is more than an empty one: the mode of what it covers, its content, read-only late.

Run between clone3(2) and execve(2) inside the container's root: see `child.py`.
"""

from __future__ import annotations

import errno
import os
import stat

from crishim.executor import jail
from crishim.linux import fs, mount

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_COPY_BYTES = 1 << 20

#: mounts that turn read-only when everything that lies below them is there
_late: list[int] = []


def mount_tmpfs(target: bytes, options: tuple[bytes, ...], set_: int, clear: int, copy_up: bool) -> None:
    """A tmpfs at `target`; without a mode among its options it has that of a directory that it covers.

    copy_up: it begins with what that directory holds. Read-only it becomes by `finish_tmpfs`, since mounts inside it
    and device nodes are still to be made.
    """
    covers = True
    try:
        place = fs.openat2(fs.AT_FDCWD, target, os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        place = jail.directory(target)
        covers = False  # then the mode is the file system's own, 1777
    jail.spare_proc(place)
    if covers and not any(option.startswith(b"mode=") for option in options):
        options = (*options, b"mode=%o" % stat.S_IMODE(os.fstat(place).st_mode))
    made = mount.new_mount(b"tmpfs", jail.pairs(options), set_ & ~mount.MOUNT_ATTR_RDONLY)
    if copy_up:
        _copy(place, made)
    mount.move_mount(made, place)
    os.close(place)
    if set_ & mount.MOUNT_ATTR_RDONLY:
        _late.append(made)
    else:
        os.close(made)


def finish_tmpfs() -> None:
    """The read-only ones become so."""
    for made in _late:
        mount.mount_setattr(made, set_=mount.MOUNT_ATTR_RDONLY)
        os.close(made)
    _late.clear()


def _copy(source: int, target: int) -> None:
    """Everything below the directory `source`: modes, owners, times and attributes are kept, links are not followed.

    Directories are opened by their paths from the top, so that no depth of the tree uses up descriptors.
    """
    top = os.open(".", _DIRECTORY, dir_fd=source)
    directories = [b""]
    for path in directories:  # grows while it is walked: parents come before what lies in them
        jail.detail = path
        here = _open(top, path)
        there = _open(target, path)
        try:
            for text in os.listdir(here):
                name = os.fsencode(text)
                if _copy_entry(name, here, there):
                    directories.append(path + b"/" + name if path else name)
        finally:
            os.close(here)
            os.close(there)
    for path in reversed(directories):  # what was made in a directory has changed its times
        if path:
            _copy_times(os.stat(path, dir_fd=top, follow_symlinks=False), path, target)
    os.close(top)
    jail.detail = b""


def _open(top: int, path: bytes) -> int:
    if not path:
        return os.open(".", _DIRECTORY, dir_fd=top)
    return fs.openat2(top, path, os.O_RDONLY | os.O_DIRECTORY, 0, fs.RESOLVE_BENEATH | fs.RESOLVE_NO_SYMLINKS)


def _copy_entry(name: bytes, here: int, there: int) -> bool:
    """Copy one entry; whether it is a directory."""
    status = os.stat(name, dir_fd=here, follow_symlinks=False)
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        os.mkdir(name, 0o700, dir_fd=there)
    elif stat.S_ISLNK(mode):
        os.symlink(os.readlink(name, dir_fd=here), name, dir_fd=there)
    elif stat.S_ISREG(mode):
        _copy_file(name, here, there)
    elif stat.S_ISSOCK(mode):
        return False  # nobody listens on it
    else:
        os.mknod(name, mode, status.st_rdev, dir_fd=there)
    os.chown(name, status.st_uid, status.st_gid, dir_fd=there, follow_symlinks=False)
    if not stat.S_ISLNK(mode):
        os.chmod(name, stat.S_IMODE(mode), dir_fd=there)
        if stat.S_ISREG(mode):
            _copy_attributes(name, here, there)  # after chown(2), which takes file capabilities away
    if not stat.S_ISDIR(mode):
        _copy_times(status, name, there)
    return stat.S_ISDIR(mode)


def _copy_file(name: bytes, here: int, there: int) -> None:
    source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here)
    target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=there)
    try:
        while os.sendfile(target, source, None, _COPY_BYTES):
            pass
    finally:
        os.close(source)
        os.close(target)


def _copy_attributes(name: bytes, here: int, there: int) -> None:
    """Extended attributes, those that this tmpfs can have."""
    source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here)
    target = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=there)
    try:
        for key in os.listxattr(source):
            try:
                os.setxattr(target, key, os.getxattr(source, key))
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                    raise
    finally:
        os.close(source)
        os.close(target)


def _copy_times(status: os.stat_result, name: bytes, there: int) -> None:
    os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=there, follow_symlinks=False)
