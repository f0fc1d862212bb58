"""HTTP/1.1 for one page: GET /metrics for Prometheus and GET /healthz for probes; bounded in size, time and number."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import h11

from crishim.metrics.containers import CONTENT_TYPE

_MAX_HEAD_BYTES = 8192
_MAX_CONNECTIONS = 64
_PLAIN = "text/plain; charset=utf-8"


class MetricsServer:
    """Serves what `render` returns, the page in the text format 0.0.4; it runs in a thread of its own.

    `problem` answers /healthz: None is 200, a sentence is 503 with that sentence.
    """

    def __init__(
        self, render: Callable[[], bytes], problem: Callable[[], str | None], *, timeout_s: float = 30.0
    ) -> None:
        """`timeout_s` bounds the wait for a request and the sending of a response."""
        self._render = render
        self._problem = problem
        self._timeout_s = timeout_s
        self._thread: ThreadPoolExecutor | None = None
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def port(self) -> int:
        """The port it listens on, also when 0 was asked for."""
        assert self._server is not None, "the server was not started"
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self, host: str, port: int) -> None:
        """Listen; OSError when the address is taken or not of this machine."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=_MAX_HEAD_BYTES)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="metrics")

    async def stop(self) -> None:
        """Close the listener and every connection; allowed twice and before start."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            for writer in self._writers:
                writer.transport.abort()
            await server.wait_closed()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown(wait=False)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._writers) >= _MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._writers.add(writer)
        try:
            await self._converse(reader, writer)
        except (OSError, TimeoutError):
            pass  # the client went or is too slow: nobody is left to tell
        finally:
            self._writers.discard(writer)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD_BYTES)
        while True:
            try:
                async with asyncio.timeout(self._timeout_s):
                    request = await _next_request(connection, reader)
            except h11.RemoteProtocolError as error:
                await self._send(connection, writer, b"", error.error_status_hint, _PLAIN, b"bad request\n")
                return
            if request is None:
                return
            await self._answer(connection, writer, request)
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()

    async def _answer(self, connection: h11.Connection, writer: asyncio.StreamWriter, request: h11.Request) -> None:
        path = request.target.partition(b"?")[0]
        if request.method not in (b"GET", b"HEAD"):
            await self._send(connection, writer, request.method, 405, _PLAIN, b"only GET and HEAD\n")
        elif path == b"/metrics":
            page = await asyncio.get_running_loop().run_in_executor(self._thread, self._render)
            await self._send(connection, writer, request.method, 200, CONTENT_TYPE, page)
        elif path == b"/healthz":
            problem = self._problem()
            body = (problem or "ok").encode("utf-8", "replace") + b"\n"
            await self._send(connection, writer, request.method, 503 if problem else 200, _PLAIN, body)
        else:
            await self._send(
                connection, writer, request.method, 404, _PLAIN, b"not found: /metrics and /healthz are served\n"
            )

    async def _send(
        self,
        connection: h11.Connection,
        writer: asyncio.StreamWriter,
        method: bytes,
        status: int,
        content_type: str,
        body: bytes,
    ) -> None:
        headers = [("Content-Type", content_type), ("Content-Length", str(len(body)))]
        if status in (400, 405, 431):
            headers.append(("Connection", "close"))
        head = connection.send(h11.Response(status_code=status, headers=headers))
        # The answer to HEAD tells the length of a body that is not sent.
        text = None if method == b"HEAD" else connection.send(h11.Data(data=body))
        writer.write(b"".join(part for part in (head, text, connection.send(h11.EndOfMessage())) if part))
        async with asyncio.timeout(self._timeout_s):
            await writer.drain()


async def _next_request(connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
    """The next request with its body skipped; None when the client closed. Raises h11.RemoteProtocolError."""
    request = None
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_MAX_HEAD_BYTES))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.EndOfMessage):
            return request
        elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
            return None
        else:
            raise h11.RemoteProtocolError("a request here has no body", error_status_hint=413)
