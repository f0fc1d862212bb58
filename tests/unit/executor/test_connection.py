"""Requests to zygote and monitor: callers that are cancelled, and peers that are slow or gone."""

from __future__ import annotations

import asyncio
from _socket import AF_UNIX, SO_SNDBUF, SOCK_SEQPACKET, SOL_SOCKET, socket, socketpair
from collections.abc import Iterator

import pytest

from crishim.errors import Unavailable
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


MANY = 200
"""More requests than fit into the buffer of a socket whose peer does not read."""


def test_requests_beyond_the_peers_queue_wait_and_each_gets_its_answer(peers: tuple[socket, socket]) -> None:
    ours, theirs = peers
    ours.setsockopt(SOL_SOCKET, SO_SNDBUF, 1 << 14)
    theirs.setblocking(False)

    def answer_all() -> None:
        while True:
            try:
                asked = wire.receive(theirs)
            except BlockingIOError:
                return
            assert asked is not None
            wire.send(theirs, wire.OK, asked.seq, b"c", {"number": asked.body["number"]}, [])

    async def body() -> list[object]:
        connection = Connection(ours, ignore, ignore)
        calls = [asyncio.ensure_future(connection.request(wire.EXEC, b"c", {"number": n})) for n in range(MANY)]
        await asyncio.sleep(0)
        assert connection._blocked, "the queue is full"
        calls[-1].cancel()
        asyncio.get_running_loop().add_reader(theirs.fileno(), answer_all)
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*calls[:-1])
        asyncio.get_running_loop().remove_reader(theirs.fileno())
        connection.close()
        return [answer.body["number"] for answer in answers]

    assert asyncio.run(body()) == list(range(MANY - 1))


def test_requests_that_wait_for_a_place_are_told_that_the_peer_is_gone(peers: tuple[socket, socket]) -> None:
    ours, theirs = peers
    ours.setsockopt(SOL_SOCKET, SO_SNDBUF, 1 << 14)

    async def body() -> list[object]:
        connection = Connection(ours, ignore, ignore)
        calls = [asyncio.ensure_future(connection.request(wire.EXEC, b"c", {})) for _ in range(MANY)]
        await asyncio.sleep(0)
        assert connection._blocked, "the queue is full"
        theirs.close()
        async with asyncio.timeout(20):
            return await asyncio.gather(*calls, return_exceptions=True)

    assert {type(answer) for answer in asyncio.run(body())} == {Unavailable}
