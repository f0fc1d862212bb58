"""Steps of a child that has SELinux contexts: that of its keys, and of file systems that take none as a mount option.

The context of the process itself is an attribute of its execve(2) (`child.write_exec_attribute`), that of most file
systems the option `context` (`plan.py`). Run between clone3(2) and execve(2): see `child.py`.
"""

from __future__ import annotations

import errno
import os

from crishim.linux import fs
from crishim.linux.selinux import ATTRIBUTE


def label_new_keys(proc: int, label: bytes) -> None:
    """The context of keyrings that this process makes, until execve(2), which forgets it."""
    fd = os.open("thread-self/attr/keycreate", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
    try:
        os.write(fd, label)
    finally:
        os.close(fd)


def label_mount(target: bytes, label: bytes) -> None:
    """Give the root of a file system that was just mounted its context; one that keeps none stays as it is.

    mqueue is one file system for the whole IPC namespace and was there before, so it takes no option of a mount.
    """
    place = fs.openat2(fs.AT_FDCWD, target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.setxattr(place, ATTRIBUTE, label)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    finally:
        os.close(place)
