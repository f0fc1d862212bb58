"""The role that tries whether pods can have user namespaces: in a child, since it leaves the host's mounts."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress

from crishim.executor import prepare, userns
from crishim.executor.seed import make_seed
from crishim.linux import fs, mount

_MAP = [[0, 1 << 20, 65536]]


def try_user_namespaces(request: dict[str, object], descriptors: list[int]) -> dict[str, object]:
    """Make what a pod would need: "why_not" is empty, or the first thing that this node cannot, with its errno.

    "root" and "state" (bytes): directories of layers, and of files that containers see. Needs Linux 5.19 for idmapped
    layers of overlayfs, and 6.3 for idmapped mounts of a tmpfs.
    """
    step = "a user namespace"
    try:
        user = userns.make(_MAP, _MAP, 0).fd
        for name in ("root", "state"):
            step = f"an id-mapped mount of the file system of the {name} directory"
            tree = mount.open_tree(fs.AT_FDCWD, request[name], mount.OPEN_TREE_CLONE)  # type: ignore[arg-type]
            mount.mount_setattr(tree, set_=mount.MOUNT_ATTR_IDMAP, userns=user, propagation=mount.MS_PRIVATE)
        step = "an overlay of id-mapped layers"
        _try_overlay(request["root"], user)  # type: ignore[arg-type]
    except OSError as error:
        return {"why_not": f"{step}: {os.strerror(error.errno or 0).lower()}"}
    return {"why_not": ""}


def _try_overlay(root: bytes, user: int) -> None:
    home = root + b"/idmap.tmp"  # one server has the root directory, so the name is free
    with suppress(FileNotFoundError):
        shutil.rmtree(home)
    try:
        for name in (b"lower/file", b"upper", b"work"):
            os.makedirs(home + b"/" + name, 0o700)
        rootfs: dict[str, object] = {
            "path": None,
            "lowers": [home + b"/lower"],
            "upper": home + b"/upper",
            "work": home + b"/work",
        }
        overlay = prepare.open_root(rootfs, make_seed(), user)
        try:
            if os.stat("file", dir_fd=overlay).st_uid != _MAP[0][1]:
                raise OSError(errno.EOPNOTSUPP, "owners are not shifted")
        finally:
            os.close(overlay)
    finally:
        shutil.rmtree(home)
