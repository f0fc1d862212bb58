"""Handing a v2 cgroup to the user of a container, who may then make cgroups below it; its limits stay ours."""

from __future__ import annotations

import os

from crishim.cgroups.files import join_path, write
from crishim.cgroups.hierarchy import Hierarchy

#: what the kernel says may be handed over (cgroups(7), "delegation")
_LIST = "/sys/kernel/cgroup/delegate"
#: cgroups that may be made below: each takes memory of the kernel, and time of whoever looks through them. A system
#: manager inside has some hundred, and our own execs at most 4,096
_DESCENDANTS = 5000
_LEAST = (b"cgroup.procs", b"cgroup.threads", b"cgroup.subtree_control")


def delegate(h: Hierarchy, path: str, uid: int, gid: int) -> None:
    """Directory and files of the cgroup belong to `uid` and `gid` of the host; nothing on a v1 node. OSError."""
    if not h.mount:
        return
    directory = join_path(h.mount, path)
    write(directory + b"/cgroup.max.descendants", str(_DESCENDANTS))
    os.chown(directory, uid, gid, follow_symlinks=False)
    for name in _names():
        try:
            os.chown(directory + b"/" + name, uid, gid, follow_symlinks=False)
        except FileNotFoundError:
            pass  # of a controller that this cgroup does not have


def _names() -> list[bytes]:
    try:
        with open(_LIST, "rb") as file:
            return file.read().split()
    except FileNotFoundError:  # before Linux 4.15
        return list(_LEAST)
