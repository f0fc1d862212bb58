"""Streaming clients that attack the server: a token is a promise of one session, and nothing more."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable

import pytest

from crishim.model.session import AttachRequest, ExecRequest
from tests.support.streaming import DEADLINE_S, ExecClient, serving


async def until(condition: Callable[[], bool], what: str) -> None:
    """Polls, since nothing tells of what the kernel does."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)
    assert condition(), what


def used() -> tuple[int, int]:
    """Descriptors and threads of this process."""
    return len(os.listdir("/proc/self/fd")), threading.active_count()


@pytest.mark.parametrize("kind", ["exec", "attach"])
def test_t37_500_dropped_clients_leave_descriptors_threads_and_processes_flat(kind: str) -> None:
    """CVE-2022-23471, CVE-2025-64329: clients that connect and vanish, each of which leaves something for ever.

    Defence: a session ends with its client, and all that it opened with the session.
    """

    async def test() -> None:
        async with serving() as (machine, server):

            async def visit(number: int) -> None:
                tty = number % 2 == 0
                request = ExecRequest("c", ("cat",), tty=tty, stdin=True, stderr=False)
                if kind == "attach":
                    url = machine.url(AttachRequest("c", tty=tty, stdin=True, stderr=False))
                else:
                    url = machine.url(request)
                client = await ExecClient.connect(url, "stdin", "stdout", *(["resize"] if tty else []))
                client.client.drop()

            async def settle() -> tuple[int, int]:
                await until(lambda: server.sessions == 0, "the end of all sessions")
                for session in machine.sessions:
                    await session.wait()
                machine.sessions.clear()
                for monitor in machine.monitors:
                    monitor.close()
                machine.monitors.clear()
                await until(lambda: used() <= highest, "descriptors and threads of before")
                return used()

            highest = (1 << 20, 1 << 20)
            for number in range(10):
                await visit(number)
            highest = await settle()
            for _ in range(25):
                await asyncio.gather(*(visit(number) for number in range(20)))
                await settle()

    async def bounded() -> None:
        async with asyncio.timeout(4 * DEADLINE_S):
            await test()

    asyncio.run(bounded())
