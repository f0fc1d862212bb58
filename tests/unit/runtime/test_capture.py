"""The output of an exec: bounded, never blocking the process, let go of in time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any

from crishim.runtime.capture import Capture


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 10))


def test_both_streams_are_kept_apart() -> None:
    async def scene() -> None:
        capture = Capture(1 << 20)
        os.write(capture.stdout, b"out")
        os.write(capture.stderr, b"err")
        capture.hand_over()
        await capture.drain(5)
        assert (capture.output(1), capture.output(2)) == (b"out", b"err")
        capture.close()

    run(scene())


def test_both_streams_share_the_bound_and_the_rest_is_dropped() -> None:
    async def scene() -> None:
        capture = Capture(100_000)
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


def test_somebody_who_keeps_a_pipe_is_not_waited_for() -> None:
    async def scene() -> None:
        capture = Capture(1000)
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
            capture = Capture(10)
            capture.close()
            capture.close()
        assert len(os.listdir("/proc/self/fd")) == before

    run(scene())
