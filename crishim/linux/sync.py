"""syncfs(2). Through CDLL, not PyDLL: it waits for a disk, and other threads of the server go on meanwhile."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)


def syncfs(fd: int) -> None:
    """Write everything of the file system that holds the open file `fd` to its disk. Raises OSError (EIO, ENOSPC)."""
    if _libc.syncfs(fd) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
