"""Operations outlive their callers, retries join them, and nothing is lost in between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import pytest

from crishim.errors import AlreadyExists, NotFound, Unavailable
from crishim.runtime.operations import Locks, Operation, Operations
from crishim.runtime.undo import Undo

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 10))


class Work:
    """A piece of work that waits until it is let go, and counts how often it was begun."""

    def __init__(self, result: str = "id", error: Exception | None = None) -> None:
        self.begun = 0
        self.go = asyncio.Event()
        self.cancelled = False
        self._result = result
        self._error = error

    async def __call__(self, operation: Operation) -> str:
        self.begun += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self._error:
            raise self._error
        return self._result


async def settle() -> None:
    """Let everything that can run, run."""
    for _ in range(10):
        await asyncio.sleep(0)


async def abandoned(call: Coroutine[Any, Any, object]) -> None:
    """A call whose client went away while it waited."""
    caller = asyncio.ensure_future(call)
    await settle()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller


def begin(
    operations: Operations, work: Callable[[Operation], Awaitable[str]], **options: Any
) -> Coroutine[Any, Any, str]:
    return operations.run(("Run", "pod"), work, stage="run.first", **options)


def test_calls_with_one_key_share_one_operation() -> None:
    async def scene() -> None:
        operations, work = Operations(), Work()
        calls = [asyncio.ensure_future(begin(operations, work)) for _ in range(3)]
        await settle()
        work.go.set()
        assert await asyncio.gather(*calls) == ["id"] * 3 and work.begun == 1

    run(scene())


def test_a_retry_with_another_request_is_refused() -> None:
    async def scene() -> None:
        operations, work = Operations(), Work()
        first = asyncio.ensure_future(begin(operations, work, request="a"))
        await settle()
        with pytest.raises(AlreadyExists, match="Run pod"):
            await begin(operations, work, request="b")
        work.go.set()
        assert await first == "id"

    run(scene())


def test_a_failure_reaches_every_caller() -> None:
    async def scene() -> None:
        operations, work = Operations(), Work(error=NotFound("gone"))
        calls = [asyncio.ensure_future(begin(operations, work)) for _ in range(2)]
        await settle()
        work.go.set()
        assert [type(each) for each in await asyncio.gather(*calls, return_exceptions=True)] == [NotFound] * 2

    run(scene())


def test_a_result_that_nobody_took_is_handed_to_the_retry_once() -> None:
    async def scene() -> None:
        operations, work = Operations(), Work()
        await abandoned(begin(operations, work, request="same", still_valid=lambda result: True))
        work.go.set()
        await settle()
        assert await begin(operations, work, request="same", still_valid=lambda result: True) == "id"
        assert work.begun == 1
        await begin(operations, work, request="same", still_valid=lambda result: True)
        assert work.begun == 2

    run(scene())


@pytest.mark.parametrize(("request_", "valid"), [("other", True), ("same", False)])
def test_a_kept_result_must_still_be_what_is_asked_for(request_: str, valid: bool) -> None:
    async def scene() -> None:
        operations, work = Operations(), Work()
        await abandoned(begin(operations, work, request="same", still_valid=lambda result: True))
        work.go.set()
        await settle()
        await begin(operations, work, request=request_, still_valid=lambda result: valid)
        assert work.begun == 2

    run(scene())


def test_a_parked_result_comes_from_before_the_restart() -> None:
    async def scene() -> None:
        operations, work = Operations(), Work()
        operations.park(("Run", "pod"), "same", "adopted")
        assert await begin(operations, work, request="same", still_valid=lambda result: True) == "adopted"

    run(scene())


def test_work_without_callers_goes_on_unless_it_is_only_for_them() -> None:
    async def scene() -> None:
        operations, kept, dropped = Operations(), Work(), Work()
        await abandoned(operations.run("kept", kept, stage="x"))
        await abandoned(operations.run("dropped", dropped, stage="x", cancel_with_last_caller=True))
        await settle()
        assert (kept.cancelled, dropped.cancelled) == (False, True)
        assert [stage for stage, _ in operations.in_flight()] == ["x"]
        kept.go.set()
        await settle()
        assert operations.in_flight() == []

    run(scene())


def test_what_is_cancelled_with_the_last_caller_waits_for_the_last() -> None:
    async def scene() -> None:
        operations, work = Operations(), Work()
        second = asyncio.ensure_future(begin(operations, work, cancel_with_last_caller=True))
        await abandoned(begin(operations, work, cancel_with_last_caller=True))
        await settle()
        assert not work.cancelled
        work.go.set()
        assert await second == "id"

    run(scene())


def test_the_stage_in_which_an_operation_hangs_is_named() -> None:
    async def scene() -> None:
        operations = Operations()
        go = asyncio.Event()

        async def work(operation: Operation) -> str:
            operation.enter("run.network")
            await go.wait()
            return ""

        call = asyncio.ensure_future(begin(operations, work))
        await settle()
        ((key, stage, age, in_stage, callers),) = operations.under_way()
        assert (key, stage, callers) == ("Run pod", "run.network", 1) and age >= in_stage >= 0
        go.set()
        await call

    run(scene())


def test_closing_lets_work_end_and_then_cancels_it() -> None:
    async def scene() -> None:
        operations, quick, slow = Operations(), Work(), Work()
        calls = [
            asyncio.ensure_future(operations.run("quick", quick, stage="x")),
            asyncio.ensure_future(operations.run("slow", slow, stage="x")),
        ]
        await settle()
        quick.go.set()
        await operations.close(0.01)
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert done[0] == "id" and isinstance(done[1], Unavailable) and slow.cancelled
        with pytest.raises(Unavailable, match="stopping"):
            await begin(operations, quick)

    run(scene())


def test_a_retry_does_not_join_what_ends_with_its_last_caller() -> None:
    async def scene() -> None:
        operations = Operations()
        clean = asyncio.Event()

        async def slow_to_end(operation: Operation) -> str:
            try:
                await asyncio.Event().wait()
            finally:
                await clean.wait()
            return ""

        again = Work("again")
        again.go.set()
        await abandoned(begin(operations, slow_to_end, cancel_with_last_caller=True))
        assert await begin(operations, again, cancel_with_last_caller=True) == "again"
        third = Work("third")
        call = asyncio.ensure_future(begin(operations, third))
        await settle()
        clean.set()
        await settle()
        assert len(operations.in_flight()) == 1, "the end of the first is not the end of the third"
        third.go.set()
        assert await call == "third"

    run(scene())


def test_what_is_being_cleaned_up_is_waited_for_at_the_end() -> None:
    async def scene() -> None:
        operations, ended = Operations(), False

        async def work(operation: Operation) -> str:
            nonlocal ended
            try:
                await asyncio.Event().wait()
            finally:
                await settle()
                ended = True
            return ""

        await abandoned(begin(operations, work, cancel_with_last_caller=True))
        await operations.close(5)
        assert ended

    run(scene())


def test_nothing_is_begun_in_the_background_at_the_end() -> None:
    async def scene() -> None:
        operations = Operations()

        async def work() -> None:
            raise AssertionError("it was begun")

        await operations.close(0.01)
        with pytest.raises(Unavailable, match="stopping"):
            operations.spawn(work(), "late")
        await settle()

    run(scene())


def test_background_work_that_outlives_one_cancellation_is_cancelled_again() -> None:
    async def scene() -> None:
        operations = Operations()

        async def stubborn() -> None:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            await asyncio.Event().wait()

        operations.spawn(stubborn(), "stubborn")
        operation = asyncio.ensure_future(begin(operations, Work()))
        await settle()
        await operations.close(0.01)
        with pytest.raises(Unavailable):
            await operation

    run(scene())


def test_locks_are_kept_only_while_they_are_wanted() -> None:
    async def scene() -> None:
        locks = Locks()
        order: list[str] = []

        async def use(name: str) -> None:
            async with locks.of("id"):
                order.append(f"{name} in")
                await settle()
                order.append(f"{name} out")

        await asyncio.gather(use("a"), use("b"))
        assert order == ["a in", "a out", "b in", "b out"]
        assert not locks._locks

    run(scene())


class Effects:
    """Records inverses; those named in `broken` fail."""

    def __init__(self, *broken: str) -> None:
        self.done: list[str] = []
        self._broken = broken

    def undo(self, name: str) -> Callable[[], Awaitable[object]]:
        async def inverse() -> None:
            self.done.append(name)
            if name in self._broken:
                raise OSError(f"{name} is stuck")

        return inverse


async def _failing(effects: Effects) -> None:
    async def stuck(problems: str) -> None:
        effects.done.append(f"stuck: {problems}")

    async with Undo(effects.undo("reservation"), stuck) as undo:
        undo.push("the directory", effects.undo("directory"))
        undo.push("the network", effects.undo("network"))
        raise NotFound("no such image")


def test_inverses_run_in_reverse_and_the_reservation_goes_last() -> None:
    effects = Effects()
    with pytest.raises(NotFound, match="no such image"):
        run(_failing(effects))
    assert effects.done == ["network", "directory", "reservation"]


def test_what_cannot_be_taken_back_is_noted_hides_nothing_and_keeps_the_reservation() -> None:
    effects = Effects("network")
    with pytest.raises(NotFound) as caught:
        run(_failing(effects))
    sentence = "the network could not be taken back: network is stuck"
    assert caught.value.__notes__ == [sentence]
    assert effects.done == ["network", "directory", f"stuck: {sentence}"]


def test_what_is_kept_is_not_taken_back() -> None:
    async def scene() -> None:
        effects = Effects()
        async with Undo(effects.undo("reservation")) as undo:
            undo.push("the directory", effects.undo("directory"))
            undo.keep()
        assert effects.done == []

    run(scene())
