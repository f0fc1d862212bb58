"""Streaming clients that attack the server: a token is a promise of one session, and nothing more."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

from crishim.model.session import AttachRequest, ExecRequest
from tests.support.streaming import DEADLINE_S, ExecClient, exit_code, serving


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


def test_t54_who_only_holds_connections_shuts_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod on the host's network opens as many connections as the server waits for, and sends its requests so slowly
    that they never end. Nobody else can begin a session then.

    Defence: the oldest of those gives way to a new one; a kubelet sends its request at once.
    """
    monkeypatch.setattr("crishim.streaming.server._MAX_HANDSHAKES", 20)

    async def test() -> None:
        async with serving() as (machine, server):
            host, port = str(machine.base_url).removeprefix("http://").split(":")
            held = [await asyncio.open_connection(host, int(port)) for _ in range(100)]
            for _, writer in held:
                writer.write(b"GET /exec/")
            await until(lambda: server.sessions <= 20, "the end of the oldest")
            client = await ExecClient.connect(machine.url(ExecRequest("c", ("echo", "served"))), "stdout", "stderr")
            assert exit_code(await client.status()) == 0
            for _, writer in held:
                writer.transport.abort()

    asyncio.run(asyncio.wait_for(test(), 4 * DEADLINE_S))


@pytest.mark.parametrize(
    "head",
    [
        b"GET /exec/x HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(100_000)),
        b"GET /exec/x HTTP/1.1\r\nX: " + b"y" * 1_000_000,
        b"GET /exec/" + b"x" * 1_000_000,
        b"POST /exec/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"ffff\r\n" + b"x" * 1_000_000,
        b"\x16\x03\x01" + bytes(100_000),
    ],
    ids=["headers", "header", "path", "body", "tls"],
)
def test_t54_a_request_that_does_not_end_costs_no_memory(head: bytes) -> None:
    """The same with much instead of slowly. Defence: a head of more than 16 KiB is refused, and no body is read."""

    async def test() -> None:
        async with serving() as (machine, server):
            host, port = str(machine.base_url).removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(head)
            with suppress(ConnectionError):
                answer = await reader.read()
                assert answer.startswith(b"HTTP/1.1 4"), answer[:100]
            writer.transport.abort()
            await until(lambda: server.sessions == 0, "the end of the connection")

    asyncio.run(asyncio.wait_for(test(), 4 * DEADLINE_S))
