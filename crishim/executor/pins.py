"""Roles that remove mounts when nobody else can: a network namespace's pin whose monitor is gone, and strangers."""

from __future__ import annotations

import errno
import os

from crishim.linux import mount


def remove_pin(request: dict[str, object], descriptors: list[int]) -> dict[str, object]:
    """Detach what is mounted at "path" (bytes) and remove the file; a missing one is fine. OSError otherwise."""
    path = _detach(request)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    return {}


def detach_mounts(request: dict[str, object], descriptors: list[int]) -> dict[str, object]:
    """Detach what is mounted at "path" (bytes), and nothing when it is a link. OSError otherwise."""
    _detach(request)
    return {}


def _detach(request: dict[str, object]) -> bytes:
    path = request["path"]
    assert isinstance(path, bytes)
    while True:  # a server that died between its attempts may have left more than one mount
        try:
            mount.umount2(path, mount.MNT_DETACH | mount.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):
                raise
            return path
