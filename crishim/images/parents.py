"""The role that gives directories which a layer implies, but does not state, what the layers below say of them.

Overlayfs shows of a directory that several layers have the owner, mode, attributes and times of the topmost, so a layer
that holds "a/b" and not "a" must not make an "a" of its own liking. Runs when all below is there, since layers are
unpacked in any order. Source: what containerd does; OCI's image specification leaves it open (image-spec issue 737).
"""

from __future__ import annotations

import errno
import os
from typing import Any

from crishim.images.apply import OPAQUE_XATTR, allowed_xattr
from crishim.images.roles import (
    CHOWN,
    DAC_OVERRIDE,
    FOWNER,
    FSETID,
    SYS_ADMIN,
    Reply,
    drop_capabilities,
    open_layers,
    replying,
)
from crishim.linux.fs import RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS, openat2

#: CAP_SYS_ADMIN only because reading trusted.overlay.opaque wants it
_CAPABILITIES = (CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SYS_ADMIN)
_PIECE = 1 << 16
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
#: where the layers below have something else, or nothing: the directory stays as it was made
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


def adopt_parents(request: dict[str, Any], descriptors: list[int]) -> Reply:
    """Give implied directories what the layers below have; never raises.

    descriptors: the layer's directory, and the file of names that `roles.unpack` wrote. request: "lowers", paths of the
    layers below, topmost first. Reply: "adopted", how many there were.
    """
    return replying(lambda: _adopt_parents(request["lowers"], *descriptors))


def _adopt_parents(lowers: list[bytes], layer: int, names: int) -> Reply:
    below = open_layers(lowers)
    drop_capabilities(_CAPABILITIES)
    os.lseek(names, 0, os.SEEK_SET)
    adopted, rest = 0, b""
    while piece := os.read(names, _PIECE):
        *whole, rest = (rest + piece).split(b"\0")
        adopted += sum(_adopt(below, layer, name) for name in whole)
    return {"adopted": adopted}


def _adopt(below: int, layer: int, name: bytes) -> bool:
    """Whether the layers below had the directory, and it is visible through this layer."""
    if _is_hidden(layer, name):
        return False
    try:
        like = _open(below, name)
    except OSError as error:
        if error.errno in _ABSENT:
            return False
        raise
    try:
        directory = _open(layer, name)
        try:
            _copy(like, directory)
        finally:
            os.close(directory)
    except OSError as error:
        if error.errno not in _ABSENT:  # a later entry of the layer took its place
            raise
        return False
    finally:
        os.close(like)
    return True


def _is_hidden(layer: int, name: bytes) -> bool:
    """Whether the layer shows nothing of what is below, here or in a directory above."""
    parts = name.strip(b"/").split(b"/")
    for count in range(1, len(parts) + 1):
        try:
            directory = _open(layer, b"/".join(parts[:count]))
        except OSError as error:
            if error.errno in _ABSENT:
                return True
            raise
        try:
            if os.getxattr(directory, OPAQUE_XATTR) == b"y":
                return True
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOTSUP):
                raise
        finally:
            os.close(directory)
    return False


def _copy(like: int, directory: int) -> None:
    status = os.fstat(like)
    os.fchown(directory, status.st_uid, status.st_gid)
    os.fchmod(directory, status.st_mode & 0o7777)
    for name in os.listxattr(like):
        if allowed_xattr(name):
            os.setxattr(directory, name, os.getxattr(like, name))
    os.utime(directory, ns=(status.st_mtime_ns, status.st_mtime_ns))


def _open(root: int, name: bytes) -> int:
    return openat2(root, name, _OPEN, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS)
