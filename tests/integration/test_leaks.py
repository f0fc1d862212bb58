"""Pods that come and go while things fail, and execs by the hundred, leave nothing behind and nothing bigger.

The seed is printed and `CRISHIM_LEAK_SEED` repeats a run; a soak sets `CRISHIM_LEAK_CYCLES` and `CRISHIM_LEAK_EXECS`.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from crishim.cri.client import messages as m
from crishim.errors import CrishimError
from tests.support.faults import (
    PATIENCE_S,
    descriptors,
    monitor_of,
    pids_of,
    remove_all,
    resident_bytes,
    server_with_image,
    zygote_of,
)
from tests.support.server import NEEDS_SERVER, Server, pod_config, wait_until

pytestmark = pytest.mark.skipif(not NEEDS_SERVER, reason="a server needs root, nsenter and ip")

CYCLES = int(os.environ.get("CRISHIM_LEAK_CYCLES", "300"))
EXECS = int(os.environ.get("CRISHIM_LEAK_EXECS", "300"))
SEED = int(os.environ.get("CRISHIM_LEAK_SEED", str(int(time.time()))))
#: execs after which caches are full
WARM_EXECS = 100
MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server_with_image(tmp_path_factory.mktemp("leaks") / "node") as server:
        yield server


class Life:
    """The life of one pod with one fault in it; whatever is answered, it ends with the removal of the pod."""

    def __init__(self, server: Server, number: int) -> None:
        self.server = server
        self.config = pod_config(f"pod{number}", server.logs)
        self.config.port_mappings.append(m.PortMapping(protocol=m.TCP, container_port=80, host_port=20000))
        self.sandbox = server.run_pod_config(self.config)

    def start(self, *command: str, **changes: Any) -> str:
        return self.server.started(self.sandbox, self.config, *command, **changes)

    def nothing(self) -> None:
        container = self.start()
        assert self.server.exec(container, "echo", "here").stdout == b"here\n"
        self.server.stop(container, 0)
        self.server.remove(container)

    def program_is_missing(self) -> None:
        with pytest.raises(CrishimError):
            self.start("/no/such/program")

    def init_is_killed(self) -> None:
        container = self.start()
        for pid in pids_of(self.server, container):
            os.kill(pid, signal.SIGKILL)
        self.server.exited(container)

    def exec_runs_out_of_time(self) -> None:
        container = self.start()
        with pytest.raises(CrishimError):
            self.server.exec(container, "sh", "-c", "setsid sleep 1000 & sleep 1000", timeout=1)

    def exec_is_cancelled(self) -> None:
        container = self.start()
        script = "setsid sleep 1000 & sleep 1000"
        request = m.ExecSyncRequest(container_id=container, cmd=["sh", "-c", script], timeout=100)
        for wait in (lambda: True, lambda: len(pids_of(self.server, container)) >= 3):  # at birth, and while it runs
            call = self.server.client._runtime.ExecSync.future(request)
            wait_until(wait, "the exec", PATIENCE_S)
            call.cancel()
            wait_until(lambda: len(pids_of(self.server, container)) == 1, "its end", PATIENCE_S)

    def exec_leaves_a_daemon(self) -> None:
        container = self.start()
        self.server.exec(container, "sh", "-c", "setsid sleep 1000 > /dev/null 2>&1 &")

    def client_goes_away(self) -> None:
        container = self.server.create(self.sandbox, self.config)
        with suppress(CrishimError):
            request = m.StartContainerRequest(container_id=container)
            self.server.client.runtime("StartContainer", request, timeout_s=0.002)

    def memory_runs_out(self) -> None:
        resources = m.LinuxContainerConfig(resources=m.LinuxContainerResources(memory_limit_in_bytes=16 * MIB))
        container = self.start("dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1", linux=resources)
        assert self.server.exited(container).reason == "OOMKilled"

    def monitor_is_killed(self) -> None:
        container = self.start()
        os.kill(monitor_of(self.server, self.sandbox), signal.SIGKILL)
        self.server.exited(container)

    def zygote_is_killed(self) -> None:
        self.start()
        zygote = zygote_of(self.server)
        assert zygote is not None
        os.kill(zygote, signal.SIGKILL)
        wait_until(lambda: zygote_of(self.server) not in (None, zygote), "a new zygote", PATIENCE_S)

    def end(self) -> None:
        self.server.remove_pod(self.sandbox)


#: how often each happens, of 40
FAULTS: dict[Callable[[Life], None], int] = {
    Life.nothing: 10,
    Life.program_is_missing: 4,
    Life.init_is_killed: 4,
    Life.exec_runs_out_of_time: 2,
    Life.exec_is_cancelled: 2,
    Life.exec_leaves_a_daemon: 4,
    Life.client_goes_away: 6,
    Life.memory_runs_out: 3,
    Life.monitor_is_killed: 4,
    Life.zygote_is_killed: 1,
}


def measured(server: Server) -> dict[str, int]:
    """Descriptors of our processes, their children, addresses in use."""
    assert server.process is not None
    zygote = wait_until(lambda: zygote_of(server), "a zygote", PATIENCE_S)
    assert zygote is not None
    leases = server.in_netns("ip", "neigh", "show", "nud", "permanent").splitlines()
    database = sqlite3.connect(f"file:{server.root / 'network.db'}?mode=ro", uri=True)
    (addresses,) = database.execute("SELECT count(*) FROM address").fetchone()
    database.close()
    rules = [line for line in server.in_netns("nft", "list", "ruleset").splitlines() if "20000" in line]
    return {
        "descriptors of the server": descriptors(server.process.pid),
        "descriptors of the zygote": descriptors(zygote),
        "children of the server": len(_children(server.process.pid)),
        "children of the zygote": len(_children(zygote)),
        "permanent neighbours": len(leases),
        "rules of host ports": len(rules),
        "addresses in use": addresses,
        "filters": len(list(server.state.glob("filters/*"))),
    }


def at_rest(figures: dict[str, int]) -> bool:
    """Whether no helper of ours is under way: a zygote has children only while it works for somebody."""
    return figures["children of the zygote"] == 0 and figures["addresses in use"] == 0


def _children(pid: int) -> list[str]:
    found = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return " ".join(found).split()


@pytest.mark.timeout(max(900, 2 * CYCLES))
def test_pods_that_come_and_go_with_faults_leave_nothing(server: Server) -> None:
    print(f"seed {SEED}")
    dice = random.Random(SEED)
    seen: Counter[str] = Counter()
    number = 0

    def cycle(fault: Callable[[Life], None]) -> None:
        nonlocal number
        number += 1
        seen[fault.__name__] += 1
        life = Life(server, number)
        fault(life)
        life.end()

    # each once, so that what is kept on purpose is there before it is measured; then an exec, by the last zygote
    for fault in (*FAULTS, Life.nothing):
        cycle(fault)
    wait_until(lambda: not server.left_behind(), f"an empty node (seed {SEED})", PATIENCE_S)
    before = wait_until(lambda: figures if at_rest(figures := measured(server)) else None, "rest", PATIENCE_S)
    assert before is not None
    while number < CYCLES:
        cycle(dice.choices(list(FAULTS), list(FAULTS.values()))[0])
    wait_until(lambda: not server.left_behind(), f"an empty node (seed {SEED})", PATIENCE_S)
    deadline = time.monotonic() + PATIENCE_S
    while (after := measured(server)) != before and time.monotonic() < deadline:
        pass
    assert after == before, f"seed {SEED}, {seen}"
    assert server.client.runtime("ListPodSandbox", m.ListPodSandboxRequest()).items == []
    assert server.client.runtime("ListContainers", m.ListContainersRequest()).containers == []


def test_execs_grow_no_process_of_ours(server: Server) -> None:
    assert server.process is not None
    sandbox, config = server.run_pod("execs")
    container = server.started(sandbox, config)
    zygote = wait_until(lambda: zygote_of(server), "a zygote", PATIENCE_S)
    assert zygote is not None
    ours = {"server": server.process.pid, "zygote": zygote, "monitor": monitor_of(server, sandbox)}

    def run(count: int) -> None:
        for number in range(count):
            answer = server.exec(container, "sh", "-c", f"echo {number}; exit {number % 3}")
            assert (answer.stdout, answer.exit_code) == (b"%d\n" % number, number % 3)

    run(WARM_EXECS)
    memory = {name: resident_bytes(pid) for name, pid in ours.items()}
    files = {name: descriptors(pid) for name, pid in ours.items()}
    run(EXECS)
    grown = {name: resident_bytes(pid) - memory[name] for name, pid in ours.items()}
    assert all(size < MIB for size in grown.values()), grown
    wait_until(lambda: {name: descriptors(pid) for name, pid in ours.items()} == files, f"{files}", PATIENCE_S)
    assert len(pids_of(server, container)) == 1
    remove_all(server)
