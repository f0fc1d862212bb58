"""Work that belongs to the server and not to the call that asked for it; the only place that makes tasks.

A caller that goes away (a timeout of the kubelet, a lost connection) leaves its operation running. A retry with the
same key joins it, or is handed the result that nobody was there to take, so there is never a "name is reserved".
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any, TypeVar

from crishim.errors import AlreadyExists, Unavailable

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: results kept for callers that come again; the oldest goes first
_PARKED_LIMIT = 1024


class Operation:
    """One piece of work under way: what it is, which stage it is in, and since when."""

    __slots__ = ("concerned", "key", "request", "stage", "stage_since", "started", "task", "waiters")

    def __init__(self, key: Hashable, request: object) -> None:
        self.key = key
        #: what a joining call must repeat, None when the key says it all
        self.request = request
        self.started = self.stage_since = time.monotonic()
        self.stage = ""
        #: calls that wait for the result
        self.waiters = 0
        self.task: asyncio.Task[Any] | None = None
        #: ids of what is made, which the key cannot name yet
        self.concerned: list[str] = []

    def concern(self, id: str) -> None:
        """The work makes a sandbox or container `id`: until it ends, nothing that bears this id is a leftover."""
        self.concerned.append(id)

    def enter(self, stage: str) -> None:
        """The work goes on with `stage` ("run_sandbox.network"): shown while it lasts."""
        self.stage = stage
        self.stage_since = time.monotonic()


class Operations:
    """All operations of one server."""

    def __init__(self) -> None:
        self._running: dict[Hashable, Operation] = {}
        #: (request, result) by key, of operations that ended when no caller was left
        self._parked: dict[Hashable, tuple[object, Any]] = {}
        self._background: set[asyncio.Task[Any]] = set()
        #: cancelled with their last caller and not at their end yet: nobody joins them
        self._leaving: set[asyncio.Task[Any]] = set()
        self._closing = False

    async def run(
        self,
        key: Hashable,
        work: Callable[[Operation], Awaitable[T]],
        *,
        stage: str,
        request: object = None,
        still_valid: Callable[[T], bool] | None = None,
        cancel_with_last_caller: bool = False,
    ) -> T:
        """The result of `work`, begun now or joined.

        request: AlreadyExists when the operation of this key was begun with another one. still_valid: results that
        nobody took are kept for the next call as long as this says so; without it they are dropped.
        """
        if still_valid is not None and key not in self._running:
            parked = self._parked.pop(key, None)
            if parked is not None and parked[0] == request and still_valid(parked[1]):
                result: T = parked[1]
                return result
        operation = self._running.get(key)
        if operation is None:
            operation = self._begin(key, work, stage, request, keep=still_valid is not None)
        elif operation.request != request:
            raise AlreadyExists(f"another request for {_name(key)} is under way, and it asks for something else")
        awaited: T = await self._wait(operation, cancel_with_last_caller)
        return awaited

    def park(self, key: Hashable, request: object, result: object) -> None:
        """Keep a result for the next call of `key` with this request, as if its caller had gone away."""
        self._parked[key] = (request, result)
        while len(self._parked) > _PARKED_LIMIT:
            del self._parked[next(iter(self._parked))]

    def spawn(self, work: Coroutine[Any, Any, object], name: str) -> None:
        """Run something in the background; a failure is logged, and `close` cancels it. Unavailable after that."""
        if self._closing:
            work.close()
            raise Unavailable("the server is stopping")
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background_done)

    def in_flight(self) -> list[tuple[str, float]]:
        """(stage, age of the operation in seconds) of everything under way."""
        now = time.monotonic()
        return [(operation.stage, now - operation.started) for operation in list(self._running.values())]

    def concerned(self) -> frozenset[str]:
        """The words of all keys under way, ids of sandboxes and containers among them, and what `concern` named."""
        words: set[str] = set()
        for operation in self._running.values():
            words.update(operation.concerned)
            if isinstance(operation.key, tuple):
                words.update(each for each in operation.key if isinstance(each, str))
        return frozenset(words)

    def under_way(self) -> list[tuple[str, str, float, float, int]]:
        """(key, stage, age in s, seconds in this stage, calls that wait) of everything under way, the oldest first."""
        now = time.monotonic()
        found = [
            (_name(each.key), each.stage, now - each.started, now - each.stage_since, each.waiters)
            for each in self._running.values()
        ]
        return sorted(found, key=lambda entry: -entry[2])

    async def close(self, grace_s: float) -> None:
        """Refuse new operations, let the running ones end for `grace_s`, then cancel what is left."""
        self._closing = True
        for task in self._background:
            task.cancel()
        tasks = {operation.task for operation in self._running.values() if operation.task} | self._leaving
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=grace_s)
            for task in pending:
                task.cancel()
            if pending:
                await asyncio.wait(pending)
        for task in self._background:
            task.cancel()  # once more: one that was in the midst of its clean-up may have gone on waiting
        if self._background:
            await asyncio.wait(self._background)

    def _begin(
        self, key: Hashable, work: Callable[[Operation], Awaitable[T]], stage: str, request: object, *, keep: bool
    ) -> Operation:
        if self._closing:
            raise Unavailable("the server is stopping")
        operation = Operation(key, request)
        operation.enter(stage)

        async def run() -> T:
            return await work(operation)

        def done(task: asyncio.Task[T]) -> None:
            if self._running.get(key) is operation:
                del self._running[key]
            if task.cancelled():
                return
            failure = task.exception()  # taken, so that asyncio does not complain about it
            if operation.waiters:
                return
            if failure is not None:
                logger.warning("%s failed after its caller had gone: %s", _name(key), failure)
            elif keep:
                self.park(key, request, task.result())

        self._running[key] = operation
        operation.task = asyncio.get_running_loop().create_task(run(), name=_name(key))
        operation.task.add_done_callback(done)
        return operation

    async def _wait(self, operation: Operation, cancel_with_last_caller: bool) -> Any:
        task = operation.task
        assert task is not None
        operation.waiters += 1
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise Unavailable("the server is stopping") from None
            raise
        finally:
            operation.waiters -= 1
            if cancel_with_last_caller and not operation.waiters and not task.done():
                self._leave(operation, task)

    def _leave(self, operation: Operation, task: asyncio.Task[Any]) -> None:
        """Cancel it; the next call with its key begins anew instead of joining what ends."""
        if self._running.get(operation.key) is operation:
            del self._running[operation.key]
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        task.cancel()

    def _background_done(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            logger.error("background work %s failed", task.get_name(), exc_info=failure)


class Locks:
    """One lock per id, kept only while somebody holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    def of(self, name: str) -> _Held:
        """An async context manager that holds the lock of `name`."""
        return _Held(self, name)

    def take(self, name: str) -> asyncio.Lock:
        """The lock of `name`, counted; `drop` gives it back."""
        lock, users = self._locks.get(name) or (asyncio.Lock(), 0)
        self._locks[name] = (lock, users + 1)
        return lock

    def drop(self, name: str) -> None:
        """One user less."""
        lock, users = self._locks[name]
        if users == 1:
            del self._locks[name]
        else:
            self._locks[name] = (lock, users - 1)


class _Held:
    def __init__(self, locks: Locks, name: str) -> None:
        self._locks = locks
        self._name = name

    async def __aenter__(self) -> None:
        self._lock = self._locks.take(self._name)
        try:
            await self._lock.acquire()
        except BaseException:
            self._locks.drop(self._name)
            raise

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()
        self._locks.drop(self._name)


def _name(key: Hashable) -> str:
    return " ".join(str(part) for part in key) if isinstance(key, tuple) else str(key)
