"""Fixtures of the tests that run containers: one executor for the session, pods for each test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crishim.executor.client import PodSpec
from crishim.model.process import ProcessSpec
from crishim.process import close_engine
from tests.support.container import IDLE, Ended, Node, Pod, make_busybox_root, program, wait_until

#: starts a process as a container's init or as an exec, and tells what it wrote
Run = Callable[..., Ended]


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    """The executor that most tests share; a test that breaks it makes its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    node = Node(f"/crishim-executor-test-{os.getpid()}")
    yield node
    node.close()


@pytest.fixture(scope="session")
def busybox_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root directory that containers use as their lower layer; nobody writes to it."""
    root = tmp_path_factory.mktemp("busybox")
    make_busybox_root(root)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root directory of this test's own."""
    root = tmp_path / "root"
    root.mkdir()
    make_busybox_root(root)
    return root


@pytest.fixture(scope="module")
def engine() -> Iterator[None]:
    """The library's engine, which starts when it is needed, ends with the module."""
    yield
    close_engine()


def _descriptors(pid: int | str) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.fixture
def make_pod(node: Node, busybox_root: Path, tmp_path: Path) -> Iterator[Callable[..., Pod]]:
    """Pods of this test by the fields of PodSpec. They leave no descriptor, no mount and no cgroup."""
    counter = itertools.count(1)
    pods: list[Pod] = []
    zygote = node.executor.pid
    before = _descriptors("self"), _descriptors(zygote)

    def make(**fields: Any) -> Pod:
        pod = Pod(node, busybox_root, tmp_path, f"p{next(counter)}", PodSpec(**fields))
        pods.append(pod)
        return pod

    yield make
    for pod in pods:
        pod.stop()
    assert _descriptors("self") == before[0], "descriptors of the server side leak"
    if node.executor.pid == zygote:
        # fewer is fine: it may have been letting go of the last test's when they were counted
        wait_until(lambda: _descriptors(zygote) <= before[1], "the zygote's release of descriptors", timeout_s=15)
    mounts = Path("/proc/self/mountinfo").read_text()
    assert str(tmp_path) not in mounts, "a mount of a pod is left on the host"


@pytest.fixture
def pod(make_pod: Callable[..., Pod]) -> Pod:
    """A pod with its own IPC and UTS namespace, and the host's network."""
    return make_pod()


@pytest.fixture(params=["init", "exec"])
def run(pod: Pod, request: pytest.FixtureRequest) -> Run:
    """Runs a process as init of a new container or as an exec in one; further arguments are of the container."""

    def run_as_init(process: ProcessSpec, **changes: Any) -> Ended:
        return pod.run(process, **changes)

    def run_as_exec(process: ProcessSpec, **changes: Any) -> Ended:
        return pod.exec(pod.start(program(*IDLE), **changes), process)

    return run_as_init if request.param == "init" else run_as_exec
