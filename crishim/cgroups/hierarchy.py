"""Which cgroup trees this node has: asked once, then handed around as a value (cgroups(7)).

A *v2* node has one tree. A *v1* node has one tree per controller, some of them merged ("cpu,cpuacct"). A *hybrid* node
has the v1 trees and besides them a v2 tree, "unified", with the controllers that no v1 tree took.
"""

from __future__ import annotations

import os

#: cpuset first: a join of an unfilled cpuset fails, and then nothing else was changed. The v2 tree comes after these.
_JOIN_ORDER = (
    *("cpuset", "devices", "memory", "cpu", "cpuacct", "pids", "blkio", "hugetlb", "net_cls", "net_prio"),
    *("perf_event", "freezer", "rdma", "name=systemd", "misc"),
)
#: any other directory that is a cgroup tree is a named one without controller ("systemd" is "name=systemd")
_KERNEL_CONTROLLERS = frozenset(_JOIN_ORDER) - {"name=systemd"}


class Hierarchy:
    """The cgroup trees of a node.

    mode: "v2", "hybrid" or "v1".
    mount: directory of the v2 tree, b"" on a v1 node.
    controllers: controller name (or "name=NAME" of a v1 tree without controller) to the directory of its tree, in the
        order of joining; a controller belongs to the v2 tree when this is `mount`.
    """

    __slots__ = ("controllers", "mode", "mount")

    def __init__(self, mode: str, mount: bytes, controllers: dict[str, bytes]) -> None:
        self.mode = mode
        self.mount = mount
        self.controllers = controllers

    def is_v2(self, controller: str) -> bool:
        """True when the controller is there and sits in the v2 tree."""
        return bool(self.mount) and self.controllers.get(controller) == self.mount

    def v1_trees(self) -> list[bytes]:
        """Directories of the v1 trees, each once, in the order of joining."""
        return list(dict.fromkeys(tree for tree in self.controllers.values() if tree != self.mount))

    def trees(self) -> list[bytes]:
        """Directories of every tree, the v2 tree last."""
        return self.v1_trees() + ([self.mount] if self.mount else [])

    def to_value(self) -> dict[str, object]:
        """A dict of str and bytes, for a message."""
        return {"mode": self.mode, "mount": self.mount, "controllers": dict(self.controllers)}

    @classmethod
    def from_value(cls, value: dict[str, object]) -> Hierarchy:
        """The inverse of `to_value`; KeyError or TypeError for another shape."""
        mode, mount, controllers = value["mode"], value["mount"], value["controllers"]
        if not (isinstance(mode, str) and isinstance(mount, bytes) and isinstance(controllers, dict)):
            raise TypeError("a hierarchy is a mode, a mount and controllers")
        return cls(mode, mount, dict(controllers))


def detect(root: bytes = b"/sys/fs/cgroup") -> Hierarchy:
    """The trees below `root`; FileNotFoundError when there is none.

    Only a v2 directory has a file cgroup.controllers, so no statfs(2) is needed.
    """
    if os.path.exists(root + b"/cgroup.controllers"):
        return Hierarchy("v2", root, dict.fromkeys(_controllers_of(root), root))
    unified = root + b"/unified"
    hybrid = os.path.exists(unified + b"/cgroup.controllers")
    found: dict[str, bytes] = {}
    for entry in sorted(os.listdir(root)):
        tree = os.path.realpath(os.path.join(root, entry))  # "cpu" is often a link to "cpu,cpuacct"
        if tree == unified or not os.path.exists(tree + b"/cgroup.procs"):
            continue
        for name in os.fsdecode(os.path.basename(tree)).split(","):
            found[name if name in _KERNEL_CONTROLLERS else "name=" + name] = tree
    if hybrid:
        for name in _controllers_of(unified):
            found.setdefault(name, unified)
    if not found and not hybrid:
        raise FileNotFoundError(2, "no cgroup tree is mounted", root)
    return Hierarchy("hybrid" if hybrid else "v1", unified if hybrid else b"", _in_join_order(found))


def _controllers_of(tree: bytes) -> list[str]:
    fd = os.open(tree + b"/cgroup.controllers", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096).decode().split()
    finally:
        os.close(fd)


def _in_join_order(found: dict[str, bytes]) -> dict[str, bytes]:
    ordered = {name: found[name] for name in _JOIN_ORDER if name in found}
    return ordered | {name: tree for name, tree in found.items() if name not in ordered}
