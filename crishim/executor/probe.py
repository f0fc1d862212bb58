"""What this node can do, asked once at the start."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import NamedTuple

from crishim.linux import mount, process
from crishim.model.capabilities import CAPABILITIES


class NodeFacts(NamedTuple):
    """kernel (major, minor); machine "x86_64"; capabilities: names in our own bounding set.

    recursive_read_only: a mount with those below it became read-only, tried on one that nobody else sees.
    """

    kernel: tuple[int, int]
    machine: str
    capabilities: frozenset[str]
    recursive_read_only: bool


def probe() -> NodeFacts:
    """The facts of the running kernel and of our own privileges."""
    system = os.uname()
    release = system.release.split(".")
    mask = process.bounding_set()
    names = frozenset(name for number, name in enumerate(CAPABILITIES) if mask >> number & 1)
    kernel = (int(release[0]), int(release[1].split("-")[0]))
    return NodeFacts(kernel, system.machine, names, _recursive_read_only())


def _recursive_read_only() -> bool:
    with suppress(OSError):
        tree = mount.new_mount(b"tmpfs")
        try:
            mount.mount_setattr(tree, set_=mount.MOUNT_ATTR_RDONLY, recursive=True)
            return bool(os.fstatvfs(tree).f_flag & os.ST_RDONLY)
        finally:
            os.close(tree)
    return False
