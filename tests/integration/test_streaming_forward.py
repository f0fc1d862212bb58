"""Port-forward over real sockets: SPDY, the tunnel, and plain WebSocket, to servers on this machine's loopback."""

from __future__ import annotations

import asyncio
import hashlib
import os
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import websockets
from websockets.frames import Opcode
from websockets.protocol import Protocol, Side

from crishim.model.session import PortForwardRequest
from crishim.streaming import spdy_frames
from tests.support.streaming import DEADLINE_S, SpdyClient, serving

SANDBOX = PortForwardRequest("sandbox")
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(4 * DEADLINE_S):
            await test()

    asyncio.run(bounded())


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Back what came, and the end after it."""
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    writer.close()


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[int]:
    """Port of a TCP server; its connections are closed at the end."""
    writers: list[asyncio.StreamWriter] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await handler(reader, writer)

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await server.wait_closed()


async def until(condition: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)
    assert condition(), what


def test_bytes_go_both_ways_and_both_ends_are_passed_on() -> None:
    async def test() -> None:
        data = os.urandom(1 << 20) * 50
        async with serving() as (machine, _), listening(echo) as port:
            client = await SpdyClient.connect(machine.url(SANDBOX), "portforward.k8s.io")
            error, stream = await client.open_forward(port, 0)
            sending = asyncio.ensure_future(client.send_all(stream, data))
            await client.until(lambda: stream in client.ended and error in client.ended)
            await sending
            assert hashlib.sha256(client.received[stream]).digest() == hashlib.sha256(data).digest()
            assert client.received[error] == b""
            await client.close()

    run(test)


def test_many_forwards_share_a_connection() -> None:
    async def test() -> None:
        async with serving() as (machine, _), listening(echo) as port:
            client = await SpdyClient.connect(machine.url(SANDBOX), "portforward.k8s.io")
            streams = [(await client.open_forward(port, number))[1] for number in range(50)]
            for stream in streams:
                client.send(stream, b"hello %d" % stream, fin=True)
            await client.until(lambda: set(streams) <= client.ended)
            assert all(client.received[stream] == b"hello %d" % stream for stream in streams)
            await client.close()

    run(test)


def test_a_port_where_nobody_listens_is_an_error_text_and_others_go_on() -> None:
    async def test() -> None:
        async with serving() as (machine, _), listening(echo) as port:
            async with listening(echo) as closed:
                pass
            client = await SpdyClient.connect(machine.url(SANDBOX), "portforward.k8s.io")
            error, _stream = await client.open_forward(closed, 0)
            await client.until(lambda: error in client.ended)
            assert b"no connection to port" in client.received[error]
            _, stream = await client.open_forward(port, 1)
            client.send(stream, b"still", fin=True)
            await client.until(lambda: stream in client.ended)
            assert client.received[stream] == b"still"
            await client.close()

    run(test)


def test_a_forward_that_is_not_read_holds_up_neither_pings_nor_other_forwards() -> None:
    async def test() -> None:
        asleep = asyncio.Event()

        async def stuck(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            await asleep.wait()

        async with serving() as (machine, _), listening(echo) as port, listening(stuck) as stuck_port:
            client = await SpdyClient.connect(machine.url(SANDBOX), "portforward.k8s.io")
            _, first = await client.open_forward(stuck_port, 0)
            _, second = await client.open_forward(port, 1)
            for _ in range(40):
                client.send(first, b"x" * (1 << 20))
            client.send(second, b"through", fin=True)
            await client.until(lambda: second in client.ended)
            assert client.received[second] == b"through"
            await client.ping()
            asleep.set()
            await client.close()

    run(test)


def test_a_forward_that_stays_stuck_at_the_bound_is_reset_and_the_others_go_on() -> None:
    async def test() -> None:
        asleep = asyncio.Event()

        async def stuck(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            await asleep.wait()

        async with (
            serving(stuck_s=0.3, waiting_bytes=4 << 20) as (machine, _),
            listening(echo) as port,
            listening(stuck) as stuck_port,
        ):
            client = await SpdyClient.connect(machine.url(SANDBOX), "portforward.k8s.io")
            _, first = await client.open_forward(stuck_port, 0)
            _, second = await client.open_forward(port, 1)
            for _ in range(40):
                client.send(first, b"x" * (1 << 20))
            client.send(second, b"through", fin=True)
            await client.until(lambda: second in client.ended and first in client.reset)
            asleep.set()
            await client.close()

    run(test)


def test_a_forward_whose_input_no_disk_takes_is_reset_alone(tmp_path: Path) -> None:
    async def test() -> None:
        asleep = asyncio.Event()

        async def stuck(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            await asleep.wait()

        async with (
            serving(spool_dir=tmp_path / "missing") as (machine, _),
            listening(echo) as port,
            listening(stuck) as stuck_port,
        ):
            client = await SpdyClient.connect(machine.url(SANDBOX), "portforward.k8s.io")
            _, first = await client.open_forward(stuck_port, 0)
            _, second = await client.open_forward(port, 1)
            for _ in range(40):
                client.send(first, b"x" * (1 << 20))
            client.send(second, b"through", fin=True)
            await client.until(lambda: second in client.ended and first in client.reset)
            assert client.received[second] == b"through"
            asleep.set()
            await client.close()

    run(test)


def test_a_connection_that_the_pod_cuts_is_reset() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER of nothing: close(2) sends RST
        writer.transport.abort()

    async def test() -> None:
        async with serving() as (machine, _), listening(cut) as port:
            client = await SpdyClient.connect(machine.url(SANDBOX), "portforward.k8s.io")
            error, stream = await client.open_forward(port, 0)
            client.send(stream, b"x")
            await client.until(lambda: stream in client.reset)
            await client.until(lambda: error in client.ended)
            assert client.received[error] == b""
            await client.close()

    run(test)


def test_a_reset_of_the_client_closes_the_connection_into_the_pod() -> None:
    async def test() -> None:
        ended = asyncio.Event()

        async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()
            ended.set()

        async with serving() as (machine, _), listening(wait) as port:
            client = await SpdyClient.connect(machine.url(SANDBOX), "portforward.k8s.io")
            _, stream = await client.open_forward(port, 0)
            client.spdy.reset(stream, spdy_frames.ResetStatus.CANCEL)
            client.flush()
            await asyncio.wait_for(ended.wait(), DEADLINE_S)
            await client.close()

    run(test)


def test_forwards_end_with_their_sandbox() -> None:
    async def test() -> None:
        async with serving() as (machine, server), listening(echo) as port:
            client = await SpdyClient.connect(machine.url(SANDBOX), "portforward.k8s.io")
            await client.open_forward(port, 0)
            machine.sandbox_ended.set()
            await client.until(lambda: client.gone)
            await client.close()
            await until(lambda: server.sessions == 0, "the end of the session")

    run(test)


def test_500_dropped_clients_leave_descriptors_flat() -> None:
    async def test() -> None:
        async with serving() as (machine, server), listening(echo) as port:

            async def visit() -> None:
                client = await SpdyClient.connect(machine.url(SANDBOX), "portforward.k8s.io")
                _, stream = await client.open_forward(port, 0)
                client.send(stream, b"x")
                client.drop()

            async def settle(highest: int) -> int:
                await until(lambda: server.sessions == 0, "the end of all sessions")
                await until(lambda: len(os.listdir("/proc/self/fd")) <= highest, "descriptors of before")
                return len(os.listdir("/proc/self/fd"))

            await visit()
            highest = await settle(1 << 20)
            for _ in range(25):
                await asyncio.gather(*(visit() for _ in range(20)))
                await settle(highest)

    run(test)


def test_a_half_that_does_not_come_is_refused_with_a_text() -> None:
    async def test() -> None:
        async with serving(creation_s=0.2) as (machine, _):
            client = await SpdyClient.connect(machine.url(SANDBOX), "portforward.k8s.io")
            error = await client.open(streamtype="error", port="80", requestid="0")
            await client.until(lambda: error in client.ended)
            assert b"did not come in time" in client.received[error]
            await client.close()

    run(test)


class Tunnel:
    """A transport whose bytes are messages of WebSocket; (reader, writer) as a SpdyClient takes them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._protocol: Protocol | None = None
        self.transport = writer.transport

    def write(self, data: bytes) -> None:
        """The request is rewritten into that of WebSocket; later writes are messages, an empty one before each."""
        if self._protocol is not None:
            self._protocol.send_binary(b"")
            self._protocol.send_binary(data)
            self._writer.writelines(self._protocol.data_to_send())
            return
        path = data.split()[1].decode()
        lines = [f"GET {path} HTTP/1.1", "Host: x", "Connection: Upgrade", "Upgrade: websocket"]
        lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
        lines += ["Sec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io", "", ""]
        self._writer.write("\r\n".join(lines).encode())

    def writelines(self, parts: list[bytes]) -> None:
        """As Go does: a message for each part."""
        for part in parts:
            self.write(part)

    async def drain(self) -> None:
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()

    async def wait_closed(self) -> None:
        await self._writer.wait_closed()

    async def readuntil(self, mark: bytes) -> bytes:
        head = await self._reader.readuntil(mark)
        self._protocol = Protocol(Side.CLIENT, max_size=None)
        return head

    async def read(self, size: int) -> bytes:
        """The payloads of what came."""
        assert self._protocol is not None
        while data := await self._reader.read(size):
            self._protocol.receive_data(data)
            frames = [frame for frame in self._protocol.events_received() if frame.opcode is Opcode.BINARY]  # type: ignore[union-attr]
            if payload := b"".join(bytes(frame.data) for frame in frames):  # type: ignore[union-attr]
                return payload
        return b""


def test_the_tunnel_of_websocket_carries_forwards() -> None:
    async def test() -> None:
        data = os.urandom(5 << 20)
        async with serving() as (machine, _), listening(echo) as port:
            url = machine.url(SANDBOX)
            parts = urlsplit(url)
            tunnel = Tunnel(*await asyncio.open_connection(parts.hostname, parts.port))
            client = await SpdyClient.connect(url, connection=(tunnel, tunnel))
            assert b"Sec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io" in client.head
            error, stream = await client.open_forward(port, 0)
            sending = asyncio.ensure_future(client.send_all(stream, data))
            await client.until(lambda: stream in client.ended and error in client.ended)
            await sending
            await client.ping()
            assert client.received[stream] == data
            await client.close()

    run(test)


def test_a_plain_websocket_forwards_the_ports_of_the_request() -> None:
    async def test() -> None:
        async with serving() as (machine, _), listening(echo) as port:
            url = machine.url(PortForwardRequest("sandbox", (port,))).replace("http://", "ws://")
            async with websockets.connect(url, subprotocols=["v4.channel.k8s.io"]) as socket:  # type: ignore[list-item]
                number = struct.pack("<H", port)
                assert [await socket.recv(), await socket.recv()] == [b"\0" + number, b"\1" + number]
                await socket.send(b"\0hello")
                assert await socket.recv() == b"\0hello"

    run(test)


def test_a_plain_websocket_without_ports_is_a_bad_request() -> None:
    async def test() -> None:
        async with serving() as (machine, _):
            url = machine.url(SANDBOX).replace("http://", "ws://")
            with pytest.raises(websockets.InvalidStatus) as refused:
                async with websockets.connect(url):
                    pass
            assert refused.value.response.status_code == 400

    run(test)
