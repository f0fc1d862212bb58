"""The output of an exec: bounded, never blocking the process, let go of in time."""

from __future__ import annotations

import asyncio
import os
import tracemalloc
from collections.abc import Coroutine
from typing import Any

from crishim.runtime.capture import SURE_BYTES, Budget, Capture


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 10))


def test_both_streams_are_kept_apart() -> None:
    async def scene() -> None:
        capture = Capture(1 << 20, Budget(1 << 30))
        os.write(capture.stdout, b"out")
        os.write(capture.stderr, b"err")
        capture.hand_over()
        await capture.drain(5)
        assert (capture.output(1), capture.output(2)) == (b"out", b"err")
        capture.close()

    run(scene())


def test_both_streams_share_the_bound_and_the_rest_is_dropped() -> None:
    async def scene() -> None:
        capture = Capture(100_000, Budget(1 << 30))
        writing = os.dup(capture.stdout)
        other = os.dup(capture.stderr)
        capture.hand_over()
        await asyncio.to_thread(lambda: [os.write(writing, b"x" * 65536) for _ in range(40)])
        await asyncio.to_thread(os.write, other, b"y" * 1000)
        os.close(writing)
        os.close(other)
        await capture.drain(5)
        assert len(capture.output(1)) + len(capture.output(2)) == 100_000
        capture.close()

    run(scene())


def test_all_captures_share_a_budget_beyond_what_is_sure() -> None:
    async def scene() -> None:
        budget = Budget(100_000)
        first, second, third = captures = [Capture(1 << 20, budget) for _ in range(3)]

        async def flood(capture: Capture) -> int:
            writing = os.dup(capture.stdout)
            capture.hand_over()
            await asyncio.to_thread(lambda: [os.write(writing, bytes(50_000)) for _ in range(4)])
            os.close(writing)
            await capture.drain(5)
            return len(capture.output(1))

        assert await flood(first) == SURE_BYTES + 100_000
        assert await flood(second) == SURE_BYTES
        first.close()
        first.close()
        assert await flood(third) == SURE_BYTES + 100_000
        for capture in captures:
            capture.close()
        assert budget.take(1 << 30) == 100_000, "all was given back, once"

    run(scene())


def test_output_byte_by_byte_takes_no_more_memory_than_at_once() -> None:
    async def scene() -> None:
        capture = Capture(1 << 20, Budget(1 << 20))
        writing = os.dup(capture.stdout)
        capture.hand_over()
        tracemalloc.start()
        for _ in range(5000):
            os.write(writing, b"x")
            await asyncio.sleep(0)
        os.close(writing)
        await capture.drain(5)
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert capture.output(1) == b"x" * 5000
        assert taken < 50_000
        capture.close()

    run(scene())


def test_somebody_who_keeps_a_pipe_is_not_waited_for() -> None:
    async def scene() -> None:
        capture = Capture(1000, Budget(1 << 30))
        kept = os.dup(capture.stdout)
        os.write(kept, b"before")
        capture.hand_over()
        await capture.drain(0.01)
        assert capture.output(1) == b"before"
        capture.close()
        os.close(kept)

    run(scene())


def test_every_descriptor_is_closed() -> None:
    async def scene() -> None:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            capture = Capture(10, Budget(1 << 30))
            capture.close()
            capture.close()
        assert len(os.listdir("/proc/self/fd")) == before

    run(scene())
