"""Where a cgroup is in each tree: directories and membership files, for those who open them ahead of a clone."""

from __future__ import annotations

import os

from crishim.cgroups.hierarchy import Hierarchy


def procs_files(hierarchy: Hierarchy, path: str) -> list[bytes]:
    """The cgroup.procs files that a process born in the v2 directory must still write to: those of the v1 trees."""
    return [tree + os.fsencode(path) + b"/cgroup.procs" for tree in hierarchy.v1_trees()]


def directories(hierarchy: Hierarchy, path: str) -> list[tuple[bytes, bytes]]:
    """(name below /sys/fs/cgroup, directory) of the cgroup in each tree; the name is empty on a v2 node."""
    if hierarchy.mode == "v2":
        return [(b"", hierarchy.mount + os.fsencode(path))]
    return [(os.path.basename(tree), tree + os.fsencode(path)) for tree in hierarchy.trees()]
