"""Nodes for the end-to-end tests; a machine that cannot make one skips them and says why."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterator

import pytest

from tests.e2e.machine import Machine
from tests.e2e.node import Node
from tests.support.server import DRIVER

_SHOWN_LINES = 60
_node = pytest.StashKey[Node]()
_PROGRAMS = ("unshare", "nsenter", "ip", "mount", "busybox")


@pytest.fixture(scope="session")
def can_make_nodes() -> None:
    if os.geteuid() != 0:
        pytest.skip("a node of its own needs root")
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not on this machine: {', '.join(missing)}")


@pytest.fixture(scope="module")
def node(can_make_nodes: None, request: pytest.FixtureRequest) -> Iterator[Node]:
    with Machine() if DRIVER == "systemd" else Node() as node:
        request.session.stash[_node] = node
        yield node


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the ends of the node's logs to a failure: the node and its files are gone when it is read."""
    report = yield
    node = item.session.stash.get(_node, None)
    if report.failed and node is not None:
        for path in sorted(node.directory.glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()[-_SHOWN_LINES:]
            report.sections.append((f"end of {path.name}", "\n".join(line[:400] for line in lines)))
    return report
