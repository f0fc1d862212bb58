"""critest, the conformance suite of cri-tools, against a server in a node of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.e2e.critest.suite import Suite, missing_programs, problems, serving
from tests.e2e.node import Node

_PROGRAMS = ("docker-registry", "gcc", "apt-get", "dpkg-deb", "ipcmk")


@pytest.fixture(scope="module")
def suite(node: Node) -> Iterator[Suite]:
    if not_built := missing_programs():
        pytest.skip(f"not built, see make e2e-tools: {', '.join(not_built)}")
    if missing := [name for name in _PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"not on this machine: {', '.join(missing)}")
    with serving(node) as suite:
        yield suite


def test_every_spec_passes_that_this_host_can_run(node: Node, suite: Suite) -> None:
    specs = suite.run(parallel=True)
    assert problems(specs) == []
    # a suite that lost its specs on the way would have no problems either
    assert sum(spec.state == "passed" for spec in specs) >= 106


def test_exec_attach_and_port_forward_pass_over_websocket_too(node: Node, suite: Suite) -> None:
    flags = ("--websocket-exec", "--websocket-attach", "--websocket-portforward")
    specs = suite.run(*flags, parallel=True, focus="Streaming")
    assert problems(specs) == []
    assert len(specs) >= 5
