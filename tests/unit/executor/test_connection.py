"""Requests to zygote and monitor when their caller is cancelled."""

from __future__ import annotations

import asyncio
from _socket import AF_UNIX, SOCK_SEQPACKET, socket, socketpair
from collections.abc import Iterator

import pytest

from crishim.executor import wire
from crishim.executor.connection import Connection


@pytest.fixture
def peers() -> Iterator[tuple[socket, socket]]:
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    yield ours, theirs
    theirs.close()


def ignore(*_: object) -> None:
    """Nothing but answers matters here."""


def test_who_began_something_is_cancelled_when_it_has_begun(peers: tuple[socket, socket]) -> None:
    """Before that there is nothing to end, and after it nobody would."""
    ours, theirs = peers
    late: list[object] = []

    async def body() -> list[bool]:
        connection = Connection(ours, ignore, ignore)
        call = asyncio.ensure_future(
            connection.request(wire.EXEC, b"c", {}, on_late=lambda answer: late.append(answer.body["pid"]))
        )
        await asyncio.sleep(0)
        asked = wire.receive(theirs)
        assert asked is not None
        call.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        ended = [call.done()]
        wire.send(theirs, wire.OK, asked.seq, b"c", {"pid": 7}, [])
        with pytest.raises(asyncio.CancelledError):
            await call
        connection.close()
        return [*ended, call.cancelled()]

    assert asyncio.run(body()) == [False, True]
    assert late == [7]


def test_who_only_asked_is_cancelled_at_once(peers: tuple[socket, socket]) -> None:
    ours, _ = peers

    async def body() -> None:
        connection = Connection(ours, ignore, ignore)
        call = asyncio.ensure_future(connection.request(wire.EXEC, b"c", {}))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        connection.close()

    asyncio.run(body())
