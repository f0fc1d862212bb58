"""The executor of one Python process: its zygote, a loop in a thread, and the names of what it makes on the machine."""

from __future__ import annotations

import asyncio
import atexit
import os
import secrets
import threading
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from crishim.cgroups import effects
from crishim.executor.client import Executor

T = TypeVar("T")

_TOKEN = secrets.token_hex(4)


def program_id() -> str:
    """Name of this Python process that no later one has, as it has the pid alone: "PID-random"."""
    return f"{os.getpid()}-{_TOKEN}"


def cgroup_root(program: str | None = None) -> str:
    """Cgroup of what a Python process runs, by its `program_id` (None: ours); no other has cgroups in it.

    It goes with the engine.
    """
    return f"/crishim-run-{program or program_id()}"


def monitor_directories(program: str | None = None) -> str:
    """What the names of the monitors' directories begin with, below the directory of temporary files."""
    return f"crishim-{program or program_id()}-"


class Engine:
    """The executor of this Python process, with its loop in a thread."""

    def __init__(self, roles: Mapping[str, str]) -> None:
        self.executor = Executor.launch(cgroup=f"{cgroup_root()}/monitors", roles=roles)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="crishim", daemon=True)
        self._thread.start()
        self.call(self.executor.open())

    def call(self, coroutine: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """The result of `coroutine`, run on the loop; TimeoutError, or a signal's exception here, cancels it."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout_s)
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End the zygote and the loop; cgroups go unless something runs in them."""
        self.call(self.executor.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        effects.remove(self.executor.hierarchy, cgroup_root())


_the_engine: Engine | None = None
_engine_lock = threading.Lock()


def open_engine(roles: Mapping[str, str]) -> Engine:
    """The engine of this process, whose zygote knows `roles` ("module:function") if it was not open before."""
    global _the_engine
    with _engine_lock:
        if _the_engine is None:
            _the_engine = Engine(roles)
            atexit.register(close_engine)
        return _the_engine


def close_engine() -> None:
    """End the zygote and its execs, as the end of the process does; the next start opens another engine."""
    global _the_engine
    with _engine_lock:
        if _the_engine is not None:
            _the_engine.close()
            _the_engine = None
            atexit.unregister(close_engine)


def running_engine() -> Engine:
    """The engine of this process, opened without roles when there is none."""
    return open_engine({})
