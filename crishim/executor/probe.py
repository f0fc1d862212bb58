"""What this node can do, asked once at the start."""

from __future__ import annotations

import os
from typing import NamedTuple

from crishim.executor.plan import CAPABILITIES
from crishim.linux import process


class NodeFacts(NamedTuple):
    """kernel (major, minor); machine "x86_64"; capabilities: names in our own bounding set."""

    kernel: tuple[int, int]
    machine: str
    capabilities: frozenset[str]


def probe() -> NodeFacts:
    """The facts of the running kernel and of our own privileges."""
    system = os.uname()
    release = system.release.split(".")
    mask = process.bounding_set()
    names = frozenset(name for number, name in enumerate(CAPABILITIES) if mask >> number & 1)
    return NodeFacts((int(release[0]), int(release[1].split("-")[0])), system.machine, names)
