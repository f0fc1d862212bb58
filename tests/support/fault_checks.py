"""What holds while one thing is stuck, and afterwards: reads are answered, others go on, nothing is left."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from crishim.cri.client import Client
from crishim.cri.client import messages as m
from crishim.errors import CrishimError
from tests.support.faults import PATIENCE_S
from tests.support.server import Server

#: calls that must not be held up by a fault elsewhere are given up after this time
ANSWER_S = 30.0


def gone(server: Server, sandbox: str) -> bool:
    """Whether nothing of a sandbox is left."""
    return not [path for path in server.left_behind() if sandbox in path]


def assert_reads_are_answered(server: Server, sandbox: str, container: str) -> None:
    """Every list and status, by a client of its own."""
    with Client(server.address) as client:

        def ask(method: str, request: Any) -> Any:
            return client.runtime(method, request, timeout_s=ANSWER_S)

        assert sandbox in {each.id for each in ask("ListPodSandbox", m.ListPodSandboxRequest()).items}
        assert container in {each.id for each in ask("ListContainers", m.ListContainersRequest()).containers}
        ask("PodSandboxStatus", m.PodSandboxStatusRequest(pod_sandbox_id=sandbox, verbose=True))
        ask("ContainerStatus", m.ContainerStatusRequest(container_id=container, verbose=True))
        ask("ListContainerStats", m.ListContainerStatsRequest())
        ask("ListPodSandboxStats", m.ListPodSandboxStatsRequest())
        conditions = ask("Status", m.StatusRequest(verbose=True)).status.conditions
        assert all(each.status for each in conditions)


def under_way(server: Server) -> list[dict[str, Any]]:
    """What `crishim stuck` shows."""
    command = [sys.executable, "-m", "crishim", "stuck", "--json", "--address", server.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=True)
    found = json.loads(done.stdout)["operations"]
    assert isinstance(found, list)
    return found


@contextmanager
def in_background(call: Callable[[], object]) -> Iterator[list[CrishimError | None]]:
    """A call that may hang; the list gets its error, or None, when it ends. It has to end before the block does."""
    ends: list[CrishimError | None] = []

    def body() -> None:
        try:
            call()
        except CrishimError as error:
            ends.append(error)
        else:
            ends.append(None)

    caller = threading.Thread(target=body)
    caller.start()
    try:
        yield ends
    finally:
        caller.join(PATIENCE_S)
    assert not caller.is_alive()
