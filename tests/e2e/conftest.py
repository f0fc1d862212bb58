"""Nodes for the end-to-end tests; a machine that cannot make one skips them and says why."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.e2e.node import Node

_PROGRAMS = ("unshare", "nsenter", "ip", "mount", "busybox")


@pytest.fixture(scope="session")
def can_make_nodes() -> None:
    if os.geteuid() != 0:
        pytest.skip("a node of its own needs root")
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not on this machine: {', '.join(missing)}")


@pytest.fixture(scope="module")
def node(can_make_nodes: None) -> Iterator[Node]:
    with Node() as node:
        yield node
