"""The metrics server over loopback: the two pages, bad requests, bounds, and an end that leaves nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from crishim.metrics.server import MetricsServer

PAGE = b"# HELP x y\n# TYPE x gauge\nx 1\n"


def with_server(use: Callable[[MetricsServer], Awaitable[None]], problem: str | None = None, **options: float) -> None:
    async def main() -> None:
        server = MetricsServer(lambda: PAGE, lambda: problem, **options)
        await server.start("127.0.0.1", 0)
        try:
            await use(server)
        finally:
            await server.stop()
            await server.stop()

    asyncio.run(main())


async def ask(server: MetricsServer, request: bytes) -> bytes:
    """All that comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def get(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()


def test_the_page_is_served_as_text_0_0_4() -> None:
    async def use(server: MetricsServer) -> None:
        head, _, body = (await ask(server, get("/metrics?x=1"))).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ") and b"version=0.0.4" in head and body == PAGE

    with_server(use)


def test_head_tells_the_length_and_sends_no_body() -> None:
    async def use(server: MetricsServer) -> None:
        head, _, body = (await ask(server, get("/metrics", "HEAD"))).partition(b"\r\n\r\n")
        assert b"content-length: %d" % len(PAGE) in head.lower() and body == b""

    with_server(use)


def test_a_connection_serves_several_requests() -> None:
    async def use(server: MetricsServer) -> None:
        keep = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
        assert (await ask(server, keep + keep + get("/metrics"))).count(PAGE) == 3

    with_server(use)


@pytest.mark.parametrize(("problem", "status"), [(None, b"200"), ("recovering 3 pods", b"503")])
def test_health_is_the_problem_or_ok(problem: str | None, status: bytes) -> None:
    async def use(server: MetricsServer) -> None:
        answer = await ask(server, get("/healthz"))
        assert answer.split()[1] == status and answer.endswith((problem or "ok").encode() + b"\n")

    with_server(use, problem)


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (get("/"), b"404"),
        (get("/metrics", "POST"), b"405"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20000 + b"\r\n\r\n", b"431"),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", b"413"),
    ],
)
def test_a_bad_request_gets_its_status(request_text: bytes, status: bytes) -> None:
    async def use(server: MetricsServer) -> None:
        assert (await ask(server, request_text)).split()[1] == status
        assert (await ask(server, get("/metrics"))).split()[1] == b"200"

    with_server(use)


def test_a_silent_client_is_let_go() -> None:
    async def use(server: MetricsServer) -> None:
        assert await ask(server, b"GET /met") == b""

    with_server(use, timeout_s=0.05)


def test_connections_are_bounded() -> None:
    async def use(server: MetricsServer) -> None:
        opened = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(80)]
        closed = 0
        for reader, _ in opened[64:]:
            async with asyncio.timeout(10):
                try:
                    closed += await reader.read() == b""
                except ConnectionResetError:
                    closed += 1
        assert closed == 16
        for _, writer in opened:
            writer.close()

    with_server(use)


def test_the_page_is_made_outside_the_event_loop() -> None:
    names: list[str] = []

    async def main() -> None:
        def render() -> bytes:
            names.append(threading.current_thread().name)
            return PAGE

        server = MetricsServer(render, lambda: None)
        await server.start("127.0.0.1", 0)
        await ask(server, get("/metrics"))
        await server.stop()

    asyncio.run(main())
    assert len(names) == 1 and names[0].startswith("metrics")


def test_stop_ends_open_connections() -> None:
    async def main() -> None:
        server = MetricsServer(lambda: PAGE, lambda: None)
        await server.start("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"ok\n")
        await server.stop()
        async with asyncio.timeout(10):
            try:
                assert await reader.read() == b""
            except ConnectionResetError:
                pass
        writer.close()

    asyncio.run(main())


def test_a_taken_address_is_an_os_error() -> None:
    async def use(server: MetricsServer) -> None:
        with pytest.raises(OSError):
            await MetricsServer(lambda: PAGE, lambda: None).start("127.0.0.1", server.port)

    with_server(use)
