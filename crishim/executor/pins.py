"""The role that removes a network namespace's pin when the monitor that made it is gone."""

from __future__ import annotations

import errno
import os

from crishim.linux import mount


def remove_pin(request: dict[str, object], descriptors: list[int]) -> dict[str, object]:
    """Detach what is mounted at "path" (bytes) and remove the file; a missing one is fine. OSError otherwise."""
    path = request["path"]
    assert isinstance(path, bytes)
    while True:  # a server that died between its attempts may have left more than one mount
        try:
            mount.umount2(path, mount.MNT_DETACH)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):
                raise
            break
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    return {}
