"""A server that ends, or dies, under pods that run: the next one finds everything as it is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crishim.cri.client import Client
from crishim.cri.client import messages as m
from crishim.errors import Unavailable
from tests.support.faults import pids_of, server_with_image
from tests.support.server import DEADLINE_S, NEEDS_SERVER, Server, pod_config, wait_until

pytestmark = pytest.mark.skipif(not NEEDS_SERVER, reason="a server needs root, nsenter and ip")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with server_with_image(tmp_path / "node") as server:
        yield server


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_pod_does_not_notice_a_restart(server: Server, number: int) -> None:
    sandbox, pod = server.run_pod("steady")
    script = "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.005; done"
    container = server.started(sandbox, pod, "sh", "-c", script)
    before = server.status(container)
    monitors = wait_until(lambda: found if len(found := server.monitors()) == 1 else None, "one monitor")
    server.kill() if number == signal.SIGKILL else server.terminate()
    server.start()
    after = server.status(container)
    assert (after.state, after.started_at) == (m.CONTAINER_RUNNING, before.started_at)
    assert server.monitors() == monitors
    assert server.exec(container, "true").exit_code == 0
    server.stop(container, timeout=0)
    log = (server.logs / "steady/main/0.log").read_text().splitlines()
    numbers = [int(line.rsplit(" ", 1)[1]) for line in log]
    assert numbers == list(range(len(numbers))), "no line was lost or written twice"


def test_an_end_without_a_server_is_known_to_the_next(server: Server, tmp_path: Path) -> None:
    sandbox, pod = server.run_pod("absent")
    flag = tmp_path / "flag"
    flag.mkdir()
    mount = m.Mount(container_path="/flag", host_path=str(flag))
    script = "until [ -e /flag/go ]; do sleep 0.05; done; exit 42"
    container = server.started(sandbox, pod, "sh", "-c", script, mounts=[mount])
    server.kill()
    (flag / "go").touch()
    exits = server.state / "sandboxes" / sandbox / "exits" / container
    wait_until(exits.exists, "the record of the exit")
    server.start()
    status = server.status(container)
    assert (status.state, status.exit_code, status.reason) == (m.CONTAINER_EXITED, 42, "Error")


def test_a_signal_sent_by_a_server_that_died_is_still_ours(server: Server) -> None:
    sandbox, pod = server.run_pod("killed")
    container = server.started(sandbox, pod)
    server.terminate()
    server.start({"CRISHIM_CRASH_AT": "stop_container.killed"})
    with pytest.raises(Unavailable):
        server.stop(container, timeout=0)
    server.wait_ended()
    server.start()
    status = server.exited(container)
    assert (status.exit_code, status.reason) == (137, "Error")
    assert "by stop" in server.errors.read_text()


def test_an_exec_dies_with_its_server(server: Server) -> None:
    sandbox, pod = server.run_pod("execs")
    container = server.started(sandbox, pod)
    with Client(server.address) as client:
        request = m.ExecSyncRequest(container_id=container, cmd=["sh", "-c", "setsid sleep 666 & sleep 666"])
        call = client._runtime.ExecSync.future(request)
        wait_until(lambda: _sleeps(server, container, b"666") == 2, "the exec")
        server.kill()
        assert call.exception(timeout=DEADLINE_S) is not None
    wait_until(lambda: _sleeps(server, container, b"666") == 0, "the end of the exec")
    server.start()
    assert server.exec(container, "true").exit_code == 0


def test_a_pod_whose_monitor_died_is_ended_and_the_reason_says_so(server: Server) -> None:
    sandbox, pod = server.run_pod("orphan")
    container = server.started(sandbox, pod, "sh", "-c", "setsid sleep 888 & sleep 888")
    (monitor,) = wait_until(lambda: found if len(found := server.monitors()) == 1 else None, "one monitor")
    os.kill(monitor, signal.SIGKILL)
    status = server.exited(container)
    assert (status.exit_code, status.reason) == (137, "Error") and "monitor" in status.message
    wait_until(lambda: _sleeps(server, container, b"888") == 0, "the end of its processes")
    state = server.client.runtime("PodSandboxStatus", m.PodSandboxStatusRequest(pod_sandbox_id=sandbox)).status.state
    assert state == m.SANDBOX_NOTREADY
    server.remove_pod(sandbox)


def test_a_monitor_that_died_without_a_server_is_noticed(server: Server) -> None:
    sandbox, pod = server.run_pod("orphan2")
    container = server.started(sandbox, pod, "sleep", "888")
    (monitor,) = wait_until(lambda: found if len(found := server.monitors()) == 1 else None, "one monitor")
    server.kill()
    os.kill(monitor, signal.SIGKILL)
    server.start()
    status = server.status(container)
    assert (status.state, status.exit_code) == (m.CONTAINER_EXITED, 137) and "monitor" in status.message
    wait_until(lambda: _sleeps(server, container, b"888") == 0, "the end of its processes")


@pytest.fixture
def frozen(server: Server) -> Iterator[tuple[str, str]]:
    """A sandbox and its container, adopted by a server whose requests the monitor does not answer."""
    sandbox, pod = server.run_pod("frozen")
    container = server.started(sandbox, pod, "sleep", "777")
    (monitor,) = wait_until(lambda: found if len(found := server.monitors()) == 1 else None, "one monitor")
    server.kill()
    os.kill(monitor, signal.SIGSTOP)
    try:
        server.start()
        yield sandbox, container
    finally:
        if monitor in server.monitors():
            os.kill(monitor, signal.SIGCONT)


def test_a_pod_whose_monitor_is_frozen_can_be_stopped_and_removed(server: Server, frozen: tuple[str, str]) -> None:
    sandbox, container = frozen
    assert server.status(container).state == m.CONTAINER_RUNNING
    server.stop(container, timeout=0)
    status = server.status(container)
    assert (status.state, status.exit_code) == (m.CONTAINER_EXITED, 137) and "monitor" in status.message
    assert _sleeps(server, container, b"777") == 0
    server.remove_pod(sandbox)
    assert wait_until(lambda: not server.left_behind(), "an empty node")


def test_a_running_container_is_never_forgotten(server: Server, frozen: tuple[str, str]) -> None:
    sandbox, container = frozen
    server.remove(container)
    assert _sleeps(server, container, b"777") == 0
    server.remove_pod(sandbox)


def test_a_monitor_that_moves_again_is_adopted(server: Server, frozen: tuple[str, str]) -> None:
    sandbox, container = frozen
    (monitor,) = server.monitors()
    os.kill(monitor, signal.SIGCONT)
    wait_until(lambda: f"sandbox {sandbox} answers again" in server.errors.read_text(), "the answer")
    assert server.exec(container, "true").exit_code == 0
    server.stop(container, timeout=0)
    assert "monitor" not in server.status(container).message


def test_a_reboot_ends_everything_but_the_duty_to_take_the_network_down(server: Server) -> None:
    sandbox, pod = server.run_pod("rebooted")
    container = server.started(sandbox, pod)
    server.stop(container, timeout=0)
    server.kill()
    server.pretend_reboot()
    server.start()
    status = server.client.runtime("PodSandboxStatus", m.PodSandboxStatusRequest(pod_sandbox_id=sandbox)).status
    assert status.state == m.SANDBOX_NOTREADY
    assert server.status(container).state == m.CONTAINER_EXITED
    server.remove_pod(sandbox)


def test_a_state_directory_that_was_lost_leaves_nothing_of_its_pods(server: Server) -> None:
    """As on a node whose state is on a tmpfs, after a power cut: only the reservation is left."""
    sandbox, _ = server.run_pod("powercut")
    server.kill()
    for monitor in server.monitors():
        os.kill(monitor, signal.SIGKILL)
    wait_until(lambda: not server.monitors(), "the end of the monitors")
    for path in sorted((server.state / "sandboxes").glob("**/*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    server.start()
    items = server.client.runtime("ListPodSandbox", m.ListPodSandboxRequest()).items
    assert sandbox not in {item.id for item in items}
    assert wait_until(lambda: not server.left_behind(), "an empty node")
    assert server.run_pod_config(pod_config("powercut", server.logs)), "the name is free again"


def test_calls_are_refused_until_recovery_is_done(server: Server) -> None:
    for number in range(3):
        server.run_pod(f"many{number}")
    server.kill()
    server.start(ready=False)
    answers: list[int] = []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with Client(server.address) as client:
                answers.append(len(client.runtime("ListPodSandbox", m.ListPodSandboxRequest(), timeout_s=5).items))
            break
        except Unavailable:
            continue
    assert answers == [3], "never an empty list"


def _sleeps(server: Server, container: str, argument: bytes) -> int:
    """Processes of the container that sleep for `argument` seconds, wherever in its cgroup they are."""
    count = 0
    for pid in pids_of(server, container):
        try:
            count += Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\0" + argument + b"\0"
        except OSError:
            continue
    return count
