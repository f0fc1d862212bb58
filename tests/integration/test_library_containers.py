"""A container of the library as a whole: its state, its pauses, its limits, and what it tells while it lives."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crishim import Container, ContainerStatus, EventKind, Process, ProcessSpec, isolated
from crishim.cgroups import effects, stats
from crishim.errors import WrongState
from crishim.model.resources import Resources
from crishim.process import open_engine
from tests.support.container import read_line, wait_until

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.usefixtures("engine")]

IDLE = ProcessSpec(args=("sleep", "1000"), init=True)


@pytest.fixture
def container(root: Path) -> Iterator[Container]:
    spec = isolated(root, id=f"whole-{os.getpid()}")
    with Container(replace(spec, annotations={"example.org/kind": "test"})) as container:
        yield container


def test_the_state_is_that_of_the_runtime_specification(container: Container) -> None:
    assert container.state().to_json() == {
        "ociVersion": "1.2.0",
        "id": container.spec.id,
        "status": "created",
        "pid": 0,
        "bundle": "",
        "annotations": {"example.org/kind": "test"},
    }
    init = Process(IDLE)
    container.start(init)
    assert (container.state().status, container.state().pid) == (ContainerStatus.RUNNING, init.pid)
    container.signal(signal.SIGKILL)
    init.wait(20)
    assert (container.state().status, container.state().pid) == (ContainerStatus.STOPPED, 0)


def test_a_paused_container_stands_still_and_goes_on(container: Container) -> None:
    ours, theirs = os.pipe()
    counting = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.01; done"
    container.start(Process(ProcessSpec(args=("sh", "-c", counting), init=True), stdout=theirs))
    os.close(theirs)
    read_line(ours)
    container.pause()
    assert container.state().status is ContainerStatus.PAUSED
    os.set_blocking(ours, False)
    drained = True
    while drained:  # what was in the pipe; nothing comes after it
        try:
            drained = bool(os.read(ours, 1 << 16))
        except BlockingIOError:
            drained = False
    time.sleep(0.1)
    with pytest.raises(BlockingIOError):
        os.read(ours, 1)
    with pytest.raises(WrongState, match="is paused, not running"):
        container.pause()
    with pytest.raises(WrongState, match="is paused"):
        container.start(Process(ProcessSpec(args=("true",))))
    container.resume()
    os.set_blocking(ours, True)
    assert read_line(ours)
    with pytest.raises(WrongState, match="is running, not paused"):
        container.resume()
    os.close(ours)


def test_a_pause_by_somebody_else_is_seen(container: Container) -> None:
    container.start(Process(IDLE))
    hierarchy = open_engine({}).executor.hierarchy
    effects.freeze(hierarchy, container.spec.cgroup.path)
    assert container.state().status is ContainerStatus.PAUSED
    container.resume()
    assert container.state().status is ContainerStatus.RUNNING


def test_a_paused_container_dies_of_sigkill(container: Container) -> None:
    init = Process(IDLE)
    container.start(init)
    container.pause()
    container.signal(signal.SIGKILL)
    assert init.wait(20).signal == signal.SIGKILL


def test_limits_change_together_or_not_at_all(container: Container) -> None:
    container.start(Process(IDLE))
    hierarchy, path = open_engine({}).executor.hierarchy, container.spec.cgroup.path
    container.update(Resources(memory_limit_bytes=64 << 20, pids_limit=50))
    assert stats.read(hierarchy, path).memory_limit_bytes == 64 << 20
    assert container.spec.cgroup.resources == Resources(memory_limit_bytes=64 << 20, pids_limit=50)
    with pytest.raises(WrongState, match="cpuset"):
        container.update(Resources(memory_limit_bytes=32 << 20, cpuset_cpus="9999"))
    assert stats.read(hierarchy, path).memory_limit_bytes == 64 << 20
    with pytest.raises(WrongState, match="bytes in use"):
        container.update(Resources(memory_limit_bytes=4096))


def test_events_are_told_in_order_until_the_end(container: Container) -> None:
    init = Process(IDLE)
    container.start(init)
    with container.events(timeout_s=20) as events:
        check = Process(ProcessSpec(args=("sh", "-c", "exit 3")))
        container.start(check)
        check.wait(20)
        container.pause()
        container.resume()
        container.update(Resources(pids_limit=60))
        container.signal(signal.SIGKILL)
        seen = list(events)
    assert [event.kind for event in seen] == [
        EventKind.EXEC_STARTED,
        EventKind.EXEC_EXITED,
        EventKind.PAUSED,
        EventKind.RESUMED,
        EventKind.UPDATED,
        EventKind.EXITED,
    ]
    assert (seen[0].pid, seen[1].pid, seen[-1].pid) == (check.pid, check.pid, init.pid)
    assert seen[1].status is not None and seen[1].status.code == 3
    assert seen[-1].status is not None and seen[-1].status.signal == signal.SIGKILL
    assert [event.kind for event in container.events(timeout_s=20)] == [EventKind.EXITED], "told to whoever asks late"


def test_an_event_that_does_not_come_times_out_and_may_be_asked_again(container: Container) -> None:
    container.start(Process(IDLE))
    with container.events(timeout_s=0.01) as events:
        with pytest.raises(TimeoutError):
            next(events)
        container.pause()
        assert next(events).kind is EventKind.PAUSED


def test_an_oom_kill_of_a_child_is_an_event_while_the_container_lives(container: Container) -> None:
    container.spec = replace(
        container.spec, cgroup=replace(container.spec.cgroup, resources=Resources(memory_limit_bytes=32 << 20))
    )
    script = "read go; tail /dev/zero; sleep 1000"
    init = Process(ProcessSpec(args=("sh", "-c", script), init=True))
    io = init.initialize_io()
    container.start(init)
    with container.events(timeout_s=60) as events:
        os.write(io.stdin, b"go\n")
        event = next(events)
        assert (event.kind, event.oom_kills) == (EventKind.OOM, 1)
    assert container.state().status is ContainerStatus.RUNNING
    for fd in (io.stdin, io.stdout, io.stderr):
        os.close(fd)


def test_an_oom_kill_of_init_is_told_before_its_end(container: Container) -> None:
    container.spec = replace(
        container.spec, cgroup=replace(container.spec.cgroup, resources=Resources(memory_limit_bytes=32 << 20))
    )
    ours, theirs = os.pipe()
    container.start(Process(ProcessSpec(args=("sh", "-c", "read go; exec tail /dev/zero"), init=True), stdin=ours))
    os.close(ours)
    with container.events(timeout_s=60) as events:
        os.write(theirs, b"go\n")
        assert [event.kind for event in events] == [EventKind.OOM, EventKind.EXITED]
    os.close(theirs)


def test_iterating_leaves_no_descriptor(container: Container) -> None:
    container.start(Process(IDLE))
    before = len(os.listdir("/proc/self/fd"))
    with container.events():
        pass
    assert wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)
