"""The role that reads the users of an image: its layers mounted detached, where no process sees them, for one look."""

from __future__ import annotations

import errno
import os
from typing import Any

from crishim.images.roles import read_users
from crishim.linux import fs, mount


def read_image_users(request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
    """The reply of `roles.read_users` for layers; never raises.

    request: "lowers" (list of bytes) are the directories of the layers, topmost first.
    """
    try:
        root = _mounted(request["lowers"])
    except OSError as error:
        return {"error": f"its layers cannot be mounted: {error.strerror}", "kind": "Unavailable"}
    try:
        return read_users({}, [root])
    finally:
        os.close(root)


def _mounted(lowers: list[bytes]) -> int:
    """Descriptor of a detached mount of the layers; nothing is written through it."""
    if len(lowers) == 1:  # an overlay without an upper directory wants two
        return mount.open_tree(fs.AT_FDCWD, lowers[0], mount.OPEN_TREE_CLONE)
    try:
        return mount.new_mount(b"overlay", tuple((b"lowerdir+", lower) for lower in lowers))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return mount.new_mount(b"overlay", ((b"lowerdir", b":".join(lowers)),))  # before Linux 6.5
