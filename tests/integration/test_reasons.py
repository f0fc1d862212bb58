"""Why a container ended: reason, exit code, signal and sender, each told truthfully every time.

Three containers of each kind end at once; `CRISHIM_REASON_RUNS=20` makes it twenty.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from crishim.cgroups.hierarchy import detect
from crishim.cri.client import messages as m
from tests.support.faults import PATIENCE_S, counter, pids_of, server_with_image, why, write_crasher
from tests.support.server import NEEDS_SERVER, Server, container_config, pod_config, wait_until

pytestmark = pytest.mark.skipif(not NEEDS_SERVER, reason="a server needs root, nsenter and ip")

RUNS = int(os.environ.get("CRISHIM_REASON_RUNS", "3"))
LIMIT_BYTES = 16 << 20
HUNGRY = "dd if=/dev/zero of=/dev/null bs=64M count=1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server_with_image(tmp_path_factory.mktemp("reasons") / "node") as server:
        write_crasher(server.directory / "crasher")
        yield server


@pytest.fixture(scope="module")
def private(server: Server) -> tuple[str, Any]:
    """A pod whose containers have a PID namespace each."""
    return server.run_pod("private")


@pytest.fixture(scope="module")
def shared(server: Server) -> tuple[str, Any]:
    """A pod with one PID namespace for all."""
    config = pod_config("together", server.logs)
    config.linux.security_context.namespace_options.pid = m.POD
    return server.run_pod_config(config), config


def _nothing(server: Server, container: str) -> None:
    pass


def _stop(grace_s: int) -> Callable[[Server, str], None]:
    return lambda server, container: server.stop(container, grace_s)


def _kill_from_outside(server: Server, container: str) -> None:
    (pid,) = pids_of(server, container)
    os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class Death:
    """How a container lives and dies, and what must be said of it."""

    script: str
    code: int
    reason: str
    signal: str = ""
    sender: str = "inside"
    oom: bool = False
    limit: int = 0
    #: the log has this line before `end` is called
    line: str = ""
    end: Callable[[Server, str], None] = field(default=_nothing)


SURVIVOR = f"trap 'exit CODE' TERM; {HUNGRY}; echo up; while :; do sleep 0.05; done"
PATIENT = "trap 'exit CODE' TERM; echo up; while :; do sleep 0.05; done"

DEATHS = {
    "the init was killed for memory": Death(
        f"exec {HUNGRY}", 137, "OOMKilled", "SIGKILL", "oom", oom=True, limit=LIMIT_BYTES
    ),
    "a child was killed for memory, then it ended by itself with 0": Death(
        f"{HUNGRY}; exit 0", 0, "Completed", oom=True, limit=LIMIT_BYTES
    ),
    "a child was killed for memory, then it ended by itself with 3": Death(
        f"{HUNGRY}; exit 3", 3, "Error", oom=True, limit=LIMIT_BYTES
    ),
    "a child was killed for memory and the shell passes that on": Death(
        f"{HUNGRY}; exit $?", 137, "OOMKilled", "", "oom", oom=True, limit=LIMIT_BYTES
    ),
    "a child was killed for memory, then the stop signal ended it with 143": Death(
        SURVIVOR.replace("CODE", "143"), 143, "Error", "", "stop", True, LIMIT_BYTES, "up", _stop(60)
    ),
    "a child was killed for memory, then the stop signal ended it with 0": Death(
        SURVIVOR.replace("CODE", "0"), 0, "Completed", "", "stop", True, LIMIT_BYTES, "up", _stop(60)
    ),
    "a child was killed for memory, then it was stopped without grace": Death(
        SURVIVOR, 137, "Error", "SIGKILL", "stop", True, LIMIT_BYTES, "up", _stop(0)
    ),
    "it was stopped without grace": Death("sleep 1000", 137, "Error", "SIGKILL", "stop", end=_stop(0)),
    "it took the stop signal for nothing": Death("exec sleep 1000", 137, "Error", "SIGKILL", "stop", end=_stop(1)),
    "the stop signal ended it with 0": Death(
        PATIENT.replace("CODE", "0"), 0, "Completed", "", "stop", line="up", end=_stop(60)
    ),
    "the stop signal ended it with 143": Death(
        PATIENT.replace("CODE", "143"), 143, "Error", "", "stop", line="up", end=_stop(60)
    ),
    "somebody outside of the pod killed it": Death(
        "exec sleep 1000", 137, "Error", "SIGKILL", "unknown", end=_kill_from_outside
    ),
    "it crashed": Death("exec /crasher", 139, "Error", "SIGSEGV"),
    "a child crashed and the shell passes that on": Death("/crasher; exit $?", 139, "Error"),
    "it ended by itself with 137": Death("exit 137", 137, "Error"),
    "it ended by itself with 143": Death("exit 143", 143, "Error"),
    "it ended by itself with 0": Death("exit 0", 0, "Completed"),
}


@pytest.mark.parametrize("what", DEATHS)
def test_the_reason_is_true_when(what: str, server: Server, private: tuple[str, Any]) -> None:
    _prove(server, private, DEATHS[what], m.CONTAINER)


SHARED_DEATHS = {
    "a container of the same PID namespace killed it": Death(
        "echo up; exec sleep 1000", 137, "Error", "SIGKILL", line="up"
    ),
    "it was stopped by a signal it does not handle": Death(
        "echo up; exec sleep 1000", 143, "Error", "SIGTERM", "stop", line="up", end=_stop(60)
    ),
    "it aborted itself": Death("ulimit -c 0; kill -ABRT $$", 134, "Error", "SIGABRT"),
}


@pytest.mark.parametrize("what", SHARED_DEATHS)
def test_the_reason_is_true_in_a_shared_pid_namespace_when(what: str, server: Server, shared: tuple[str, Any]) -> None:
    death = SHARED_DEATHS[what]
    if "killed it" not in what:
        _prove(server, shared, death, m.POD)
        return
    killer = _start(server, shared, Death("exec sleep 2000", 0, ""), "killer", m.POD)
    victims = [_start(server, shared, death, f"victim{number}", m.POD) for number in range(RUNS)]
    for name, victim in victims:
        _wait_for_line(server, shared, name, "up")
        inside = server.sh(killer[1], f"grep -ls {victim} /proc/[0-9]*/cgroup || true").split()  # processes come and go
        server.sh(killer[1], f"kill -9 {' '.join(path.split('/')[2] for path in inside)}")
    for _, victim in victims:
        _check(server, victim, death)
    server.remove(killer[1])


@pytest.mark.skipif(not detect().is_v2("memory"), reason="this host has no pure cgroup v2")
def test_the_reason_is_true_when_the_whole_cgroup_was_killed_for_memory(
    server: Server, private: tuple[str, Any]
) -> None:
    script = f"sleep 1000 & {HUNGRY}; sleep 1000"
    death = Death(script, 137, "OOMKilled", "SIGKILL", "oom", oom=True, limit=LIMIT_BYTES)
    config = _config(death, "group", m.CONTAINER, server)
    config.linux.resources.unified["memory.oom.group"] = "1"
    container = server.create_config(*private, config)
    server.start_container(container)
    _check(server, container, death)


def test_a_program_that_is_not_there_is_a_start_error(server: Server, private: tuple[str, Any]) -> None:
    container = server.create(*private, "/no/such/program", name="missing")
    with pytest.raises(Exception, match="no such file"):
        server.start_container(container)
    status = server.status(container)
    assert (status.exit_code, status.reason) == (128, "StartError") and "/no/such/program" in status.message
    server.remove(container)


def test_ends_are_counted_by_reason_and_signals_by_sender(server: Server, private: tuple[str, Any]) -> None:
    series = (
        'crishim_process_exits_total{reason="OOMKilled"}',
        'crishim_process_exits_total{reason="Error"}',
        'crishim_process_exits_total{reason="Completed"}',
        'crishim_signals_sent_total{sender="stop",signal="SIGTERM"}',
        'crishim_signals_sent_total{sender="stop",signal="SIGKILL"}',
    )
    before = [counter(server, each) for each in series]
    for what in (
        "the init was killed for memory",
        "the stop signal ended it with 0",
        "it was stopped without grace",
        "it ended by itself with 137",
    ):
        _prove(server, private, DEATHS[what], m.CONTAINER)
    after = [counter(server, each) for each in series]
    assert [now - then for now, then in zip(after, before)] == [RUNS, 2 * RUNS, RUNS, RUNS, RUNS]


def _prove(server: Server, pod: tuple[str, Any], death: Death, pid: int) -> None:
    """RUNS containers live at once and die in this way."""
    started = [_start(server, pod, death, f"run{number}", pid) for number in range(RUNS)]
    for name, container in started:
        if death.line:
            _wait_for_line(server, pod, name, death.line)
        death.end(server, container)
    for _, container in started:
        _check(server, container, death)


def _config(death: Death, name: str, pid: int, server: Server) -> Any:
    config = container_config("sh", "-c", death.script, name=name)
    config.linux.resources.memory_limit_in_bytes = death.limit
    config.linux.security_context.namespace_options.pid = pid
    config.mounts.append(m.Mount(container_path="/crasher", host_path=str(server.directory / "crasher"), readonly=True))
    return config


def _start(server: Server, pod: tuple[str, Any], death: Death, name: str, pid: int) -> tuple[str, str]:
    container = server.create_config(*pod, _config(death, name, pid, server))
    server.start_container(container)
    return name, container


def _wait_for_line(server: Server, pod: tuple[str, Any], name: str, line: str) -> None:
    log = server.logs / pod[1].metadata.name / name / "0.log"
    wait_until(lambda: f" F {line}\n" in log.read_text(), f"{line!r} of {name}", PATIENCE_S)


def _check(server: Server, container: str, death: Death) -> None:
    wait_until(lambda: server.status(container).state == m.CONTAINER_EXITED, "an exit", PATIENCE_S)
    status, told = server.status(container), why(server, container)
    assert (status.exit_code, status.reason) == (death.code, death.reason), (status, told)
    assert (told["signal"], told["sender"]) == (death.signal, death.sender), told
    assert bool(told["oom_kills"]) == death.oom, told
    assert ("memory" in status.message) == (death.reason == "OOMKilled"), status
    server.remove(container)
