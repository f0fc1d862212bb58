"""The server is killed by SIGKILL at random moments under a random load of all RPCs; nothing is lost, nothing is left.

The seed is printed and `CRISHIM_KILL_SEED` repeats the draws of a run; `CRISHIM_KILL_POINTS` is how often it is killed.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from crishim.cri.client import messages as m
from tests.support.load import Worker, methods
from tests.support.server import NEEDS_SERVER, Server, start_with_demo_image, wait_until

pytestmark = pytest.mark.skipif(not NEEDS_SERVER, reason="a server needs root, nsenter and ip")

POINTS = int(os.environ.get("CRISHIM_KILL_POINTS", "20"))
SEED = os.environ.get("CRISHIM_KILL_SEED", str(int(time.time())))
CLIENTS = 3
#: a start that is not killed takes no longer
PATIENCE_S = 60.0


@pytest.mark.timeout(120 + 20 * POINTS)
def test_a_load_of_all_calls_loses_nothing_to_a_server_that_is_killed_again_and_again(tmp_path: Path) -> None:
    print(f"CRISHIM_KILL_SEED={SEED}")
    server = Server(tmp_path / "node")
    over = threading.Event()
    workers = [Worker(number, SEED, server.address, server.logs, over) for number in range(CLIENTS)]
    try:
        start_with_demo_image(server)
        for worker in workers:
            worker.start()
        _kill_again_and_again(server, random.Random(SEED), over)
        _read_everything_once(workers)
        over.set()
        for worker in workers:
            worker.join(10 * PATIENCE_S)
            if worker.failure is not None:
                raise worker.failure
        assert "Traceback" not in server.errors.read_text()
        assert server.client.runtime("ListPodSandbox", m.ListPodSandboxRequest()).items == []
        wait_until(lambda: not server.left_behind(), "an empty node", PATIENCE_S)
    finally:
        over.set()
        for worker in workers:
            worker.join(PATIENCE_S)
        server.close()
    called = sum((worker.called for worker in workers), start=Counter[str]())
    print(f"{POINTS} kills, {called.total()} calls: {dict(called)}")


def _kill_again_and_again(server: Server, draws: random.Random, over: threading.Event) -> None:
    """Mostly within a second after it answers, now and then while it still recovers, or after a few seconds.

    Without those few seconds a call that takes a second of a busy machine would never come to its end.
    """
    for number in range(POINTS):
        print(f"{time.monotonic():.1f}: kill {number}", flush=True)
        recovering = draws.random() < 0.2
        if recovering:
            server.kill()
            server.start(ready=False)
        over.wait(draws.uniform(0, 1) if draws.random() < 0.8 else draws.uniform(1, 5))  # or until a client has failed
        if over.is_set():
            return
        assert server.process is not None
        server.process.send_signal(signal.SIGKILL)
        assert server.wait_ended() == -signal.SIGKILL
        server.start()


def _read_everything_once(workers: list[Worker]) -> None:
    """Every method was called at least once; the load goes on until it is so."""
    wait_until(
        lambda: (
            any(worker.failure for worker in workers)
            or methods() <= {name for worker in workers for name in worker.called} | {"PullImage"}
        ),
        "a call of every method",
        5 * PATIENCE_S,
    )
