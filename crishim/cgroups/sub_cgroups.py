"""Where an exec goes that is to run below its container's cgroup: a directory in each tree (libcontainer's
SubCgroupPaths).

Not loaded by the executor's processes: whoever asks them for the exec opens the directories.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from crishim.cgroups.files import join_path
from crishim.cgroups.hierarchy import Hierarchy
from crishim.errors import InvalidSpec, StartFailed

_FIELD = "sub_cgroup_paths"


def sub_cgroups(h: Hierarchy, path: str, wanted: Mapping[str, str]) -> dict[bytes, str]:
    """Tree directory to the cgroup in it, for every tree of the node.

    wanted: controller to a path below the cgroup `path`; "" is all trees, and the only name on a v2 node. A tree that
    is not named keeps the container's cgroup. InvalidSpec names what no node, or not this one, can honour; StartFailed
    a cgroup that does not exist: it must be there before.
    """
    if "" in wanted and len(wanted) > 1:
        other = next(name for name in wanted if name)
        raise InvalidSpec(f'{_FIELD}: "" is for all controllers, and {other!r} is named besides')
    found = dict.fromkeys(h.trees(), path)
    named: dict[bytes, str] = {}
    for controller, below in wanted.items():
        place = _below(path, controller, below)
        for tree in [*found] if controller == "" else [_tree(h, controller)]:
            if named.setdefault(tree, controller) != controller and found[tree] != place:
                other = named[tree]
                raise InvalidSpec(
                    f"{_FIELD}[{controller!r}]: {below!r} is not the path of {other!r}, which has the same cgroups"
                )
            found[tree] = place
    for tree, controller in named.items():
        if not os.path.isdir(join_path(tree, found[tree])):
            raise StartFailed(
                f"{_FIELD}[{controller!r}]: {wanted[controller]!r} does not exist below the container's cgroup"
                f" {os.fsdecode(join_path(tree, path))}"
            )
    return found


def task_files(h: Hierarchy, places: Mapping[bytes, str]) -> list[bytes]:
    """As `effects.task_files`, for an exec that has a cgroup of its own in each tree."""
    return [join_path(tree, places[tree]) + b"/tasks" for tree in h.v1_trees()]


def _below(path: str, controller: str, below: str) -> str:
    parts = [part for part in below.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in below:
        raise InvalidSpec(
            f"{_FIELD}[{controller!r}]: bad sub cgroup path {below!r}: it may lead out of the container's"
        )
    return "/".join((path, *parts))


def _tree(h: Hierarchy, controller: str) -> bytes:
    if h.mode == "v2":
        raise InvalidSpec(f'{_FIELD}: {controller!r} is named, and cgroup v2 has one tree for all: its name is ""')
    tree = h.controllers.get(controller)
    if tree is None:
        known = ", ".join(h.controllers)
        raise InvalidSpec(f"{_FIELD}: unknown controller {controller!r}; this node has {known}")
    return tree
