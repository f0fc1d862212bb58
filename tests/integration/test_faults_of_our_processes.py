"""What a node does to the processes of a runtime: its zygote and monitors are killed and frozen, its calls given up."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from crishim.cri.client import Client
from crishim.cri.client import messages as m
from crishim.errors import CrishimError, Unavailable
from tests.support.fault_checks import ANSWER_S, gone, in_background, under_way
from tests.support.faults import PATIENCE_S, monitor_of, pids_of, server_with_image, zygote_of
from tests.support.server import NEEDS_SERVER, Server, wait_until

pytestmark = pytest.mark.skipif(not NEEDS_SERVER, reason="a server needs root, nsenter and ip")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server_with_image(tmp_path_factory.mktemp("faults") / "node") as server:
        yield server


def test_execs_go_on_after_a_zygote_was_killed_under_load(server: Server) -> None:
    sandbox, pod = server.run_pod("load")
    container = server.started(sandbox, pod)
    stop = threading.Event()
    answers: list[int] = []
    wrong: list[CrishimError] = []

    def load() -> None:
        with Client(server.address) as client:
            while not stop.is_set():
                request = m.ExecSyncRequest(container_id=container, cmd=["sh", "-c", "exit 7"], timeout=60)
                try:
                    answers.append(client.runtime("ExecSync", request).exit_code)
                except Unavailable:
                    continue  # killed with its zygote, as it is said
                except CrishimError as error:
                    wrong.append(error)

    callers = [threading.Thread(target=load) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        for _ in range(3):
            known, zygote = len(answers), zygote_of(server)
            assert zygote is not None
            wait_until(lambda: len(answers) > known + 5 or wrong, "answers", PATIENCE_S)  # noqa: B023
            os.kill(zygote, signal.SIGKILL)
            wait_until(lambda: zygote_of(server) not in (None, zygote), "a new zygote", PATIENCE_S)  # noqa: B023
        known = len(answers)
        wait_until(lambda: len(answers) > known + 5 or wrong, "answers of the last zygote", PATIENCE_S)
    finally:
        stop.set()
        for caller in callers:
            caller.join(PATIENCE_S)
    assert not wrong and set(answers) == {7}
    assert server.status(container).state == m.CONTAINER_RUNNING
    wait_until(lambda: len(pids_of(server, container)) == 1, "nothing of the execs", PATIENCE_S)
    server.remove_pod(sandbox)
    assert gone(server, sandbox)


def test_a_pod_whose_monitor_was_killed_is_ended_and_says_why(server: Server) -> None:
    sandbox, pod = server.run_pod("unwatched")
    other, other_pod = server.run_pod("watched")
    container = server.started(sandbox, pod, "sh", "-c", "sleep 1000 & sleep 1000", name="main")
    created = server.create(sandbox, pod, name="created")
    untouched = server.started(other, other_pod)
    processes = pids_of(server, container)
    os.kill(monitor_of(server, sandbox), signal.SIGKILL)
    status = server.exited(container)
    assert (status.exit_code, status.reason) == (137, "Error") and "monitor" in status.message
    request = m.PodSandboxStatusRequest(pod_sandbox_id=sandbox)
    wait_until(
        lambda: server.client.runtime("PodSandboxStatus", request).status.state == m.SANDBOX_NOTREADY,
        "a pod that is not ready",
        PATIENCE_S,
    )
    assert not [pid for pid in processes if Path(f"/proc/{pid}/exe").exists()]
    with pytest.raises(CrishimError):
        server.start_container(created)
    assert server.status(untouched).state == m.CONTAINER_RUNNING
    server.stop_pod(sandbox)
    server.remove_pod(sandbox)
    assert gone(server, sandbox)
    server.remove_pod(other)


def test_a_frozen_monitor_holds_up_no_call_for_ever_and_ends_with_its_pod(server: Server) -> None:
    sandbox, pod = server.run_pod("frozenmonitor")
    container = server.started(sandbox, pod)
    created = server.create(sandbox, pod, name="created")
    monitor = monitor_of(server, sandbox)
    os.kill(monitor, signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable, match="does not answer"):
            reopen = m.ReopenContainerLogRequest(container_id=container)
            server.client.runtime("ReopenContainerLog", reopen, timeout_s=ANSWER_S)
        start = m.StartContainerRequest(container_id=created)
        with Client(server.address) as client, in_background(lambda: client.runtime("StartContainer", start)) as ends:
            wait_until(lambda: under_way(server), "the start", PATIENCE_S)
            server.stop(container, timeout=0)
            assert server.status(container).state == m.CONTAINER_EXITED
            with pytest.raises(Unavailable, match="does not answer"):
                remove = m.RemoveContainerRequest(container_id=container)
                server.client.runtime("RemoveContainer", remove, timeout_s=ANSWER_S)
            server.stop_pod(sandbox)
        assert isinstance(ends[0], Unavailable)
    finally:
        if monitor in server.monitors():
            os.kill(monitor, signal.SIGCONT)
    assert monitor not in server.monitors()
    server.remove_pod(sandbox)
    assert gone(server, sandbox)


def test_an_exec_that_is_cancelled_while_it_starts_leaves_nothing(server: Server) -> None:
    """The zygote starts it after the call has gone, and it has children before the server hears of it."""
    sandbox, pod = server.run_pod("cancelled")
    container = server.started(sandbox, pod)
    zygote = wait_until(lambda: zygote_of(server), "a zygote", PATIENCE_S)
    assert zygote is not None and server.process is not None
    request = m.ExecSyncRequest(
        container_id=container, cmd=["sh", "-c", "setsid sleep 1000 & exec sleep 1000"], timeout=100
    )
    os.kill(zygote, signal.SIGSTOP)
    try:
        call = server.client._runtime.ExecSync.future(request)
        wait_until(lambda: under_way(server), "the exec", PATIENCE_S)
        call.cancel()
        server.client.runtime("Version", m.VersionRequest())  # on the same connection: what was sent before has arrived
        os.kill(server.process.pid, signal.SIGSTOP)
        os.kill(zygote, signal.SIGCONT)
        wait_until(lambda: len(pids_of(server, container)) == 3, "its children", PATIENCE_S)
    finally:
        os.kill(zygote, signal.SIGCONT)
        os.kill(server.process.pid, signal.SIGCONT)
    wait_until(lambda: len(pids_of(server, container)) == 1, "its end", PATIENCE_S)
    server.remove_pod(sandbox)
