"""Both ends of streaming sessions for tests: processes of this machine as sessions, and a client that speaks SPDY."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from crishim.errors import CrishimError, Unavailable
from crishim.model.session import AttachRequest, Ending, ExecRequest, Exited, SessionRequest
from crishim.runtime.sessions.stdio import STDERR, STDOUT, Attached, Descriptors, Stdio
from crishim.runtime.sessions.tokens import Tokens
from crishim.streaming import spdy, spdy_events
from crishim.streaming.server import StreamingServer

DEADLINE_S = 30.0


class ProcessSession:
    """A process of this machine, killed when its client goes."""

    def __init__(self, request: ExecRequest) -> None:
        theirs, ours = {}, {}
        wanted = [stream for stream in (0, STDOUT, STDERR) if (request.stdin, request.stdout, request.stderr)[stream]]
        if request.tty:
            master, peer = os.openpty()
            self.stdio = Descriptors.of_console(master, stdin=request.stdin)
            theirs = {0: peer, STDOUT: peer, STDERR: peer}
        else:
            for stream in wanted:
                reading, writing = os.pipe2(os.O_CLOEXEC)
                theirs[stream], ours[stream] = (writing, reading) if stream else (reading, writing)
            stdin = ours.pop(0, None)
            self.stdio = Descriptors(stdin, ours)
        actions: list[Any] = []
        for stream in (0, STDOUT, STDERR):
            if stream in theirs:
                actions.append((os.POSIX_SPAWN_DUP2, theirs[stream], stream))
            else:
                actions.append((os.POSIX_SPAWN_OPEN, stream, "/dev/null", os.O_RDWR, 0))
        args = ("setsid", "-c", *request.args) if request.tty else request.args
        # a process group of its own, so that what a shell forked goes with it; setsid(1) would fork as a group's leader
        group = {} if request.tty else {"setpgroup": 0}
        self.pid = os.posix_spawnp(args[0], args, os.environ, file_actions=actions, setsigdef=range(1, 32), **group)
        for fd in set(theirs.values()):
            os.close(fd)
        self._ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._pidfd = os.pidfd_open(self.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self._ended.set_result(Exited(code if code >= 0 else 128 - code))
        self.stdio.process_ended()

    async def wait(self) -> Ending:
        return await asyncio.shield(self._ended)

    async def wait_ended(self) -> None:
        await self.wait()

    def close(self) -> None:
        self.stdio.close()
        if not self._ended.done():
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            with suppress(ProcessLookupError):  # a terminal's process that has not become a leader yet
                os.killpg(self.pid, signal.SIGKILL)  # not reaped, so the number is still its own


class AttachSession:
    """A view of whatever writes to the other end of a socket pair."""

    def __init__(self, stdio: Stdio) -> None:
        self.stdio = stdio

    async def wait(self) -> Ending:
        return Exited(0)

    async def wait_ended(self) -> None:
        await asyncio.Event().wait()  # it goes on

    def close(self) -> None:
        self.stdio.close()


class Machine:
    """Use cases whose containers are this machine."""

    def __init__(self) -> None:
        self._tokens = Tokens()
        self.base_url: str | None = None
        self.sandbox_ended = asyncio.Event()
        #: the monitor's end of attach sessions
        self.monitors: list[socket.socket] = []
        self.refusal: CrishimError | None = None
        self.sessions: list[ProcessSession] = []

    def listening_at(self, base_url: str | None) -> None:
        self.base_url = base_url

    def take(self, token: str) -> SessionRequest | None:
        return self._tokens.take(token)

    def url(self, request: SessionRequest) -> str:
        kind = {ExecRequest: "exec", AttachRequest: "attach"}.get(type(request), "portforward")
        return f"{self.base_url}/{kind}/{self._tokens.mint(request)}"

    async def open_exec(self, request: ExecRequest) -> ProcessSession:
        if self.refusal is not None:
            raise self.refusal
        session = ProcessSession(request)
        self.sessions.append(session)
        return session

    async def open_attach(self, request: AttachRequest) -> AttachSession:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.monitors.append(ours)
        return AttachSession(Attached(theirs.detach(), stdout=request.stdout, stderr=request.stderr))

    async def dial(self, sandbox_id: str, port: int) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except OSError as error:
            sock.close()
            raise Unavailable(f"no connection to port {port}: {error.strerror}") from None
        return sock

    def watch_sandbox(self, sandbox_id: str) -> asyncio.Event:
        return self.sandbox_ended

    def unwatch_sandbox(self, sandbox_id: str, event: asyncio.Event) -> None:
        pass


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[tuple[Machine, StreamingServer]]:
    """A server on loopback whose sessions are of this machine; all of it is gone at the end."""
    machine = Machine()
    server = StreamingServer(machine, **settings)
    await server.start("127.0.0.1", 0)
    try:
        yield machine, server
    finally:
        await server.stop(0.5)
        for monitor in machine.monitors:
            monitor.close()
        for session in machine.sessions:
            await asyncio.wait_for(session.wait(), DEADLINE_S)


class Refused(Exception):
    """The upgrade was answered by something else than 101; args are the status and the text."""


class SpdyClient:
    """A client of exec, attach or port-forward over SPDY/3.1."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        self._reader = reader
        self._writer = writer
        self.head = head
        self.spdy = spdy.Connection(client=True)
        #: by stream
        self.received: dict[int, bytearray] = defaultdict(bytearray)
        self.ended: set[int] = set()
        self.replied: set[int] = set()
        self.reset: set[int] = set()
        self.pongs: set[int] = set()
        self.gone = False
        self.closed = False

    @classmethod
    async def connect(cls, url: str, *protocols: str, method: str = "POST", connection: Any = None) -> SpdyClient:
        """Upgrade; `connection` is (reader, writer) of another transport than TCP to the URL's host."""
        parts = urlsplit(url)
        reader, writer = connection or await asyncio.open_connection(parts.hostname, parts.port)
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        lines = [f"{method} {target} HTTP/1.1", f"Host: {parts.netloc}", "Connection: Upgrade", "Upgrade: SPDY/3.1"]
        lines += [f"X-Stream-Protocol-Version: {protocol}" for protocol in protocols]
        writer.write("\r\n".join([*lines, "Content-Length: 0", "", ""]).encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
        status = int(head.split()[1])
        if status != 101:
            text = (await reader.read()).decode()
            writer.close()
            raise Refused(status, text, head.decode())
        return cls(reader, writer, head)

    def flush(self) -> None:
        self._writer.writelines(self.spdy.take_output())

    async def open(self, **headers: str) -> int:
        stream = self.spdy.open_stream(headers)
        self.flush()
        await self.until(lambda: stream in self.replied or stream in self.reset)
        return stream

    async def open_forward(self, port: int, request: int) -> tuple[int, int]:
        """(error stream, data stream)."""
        headers = {"port": str(port), "requestid": str(request)}
        error = await self.open(streamtype="error", **headers)
        self.spdy.send_data(error, b"", fin=True)
        return error, await self.open(streamtype="data", **headers)

    def send(self, stream: int, data: bytes, *, fin: bool = False) -> None:
        self.spdy.send_data(stream, data, fin=fin)
        self.flush()

    async def send_all(self, stream: int, data: bytes) -> None:
        """With an end, and no faster than the server takes it."""
        for start in range(0, len(data), 32768):
            self.send(stream, data[start : start + 32768])
            await self._writer.drain()
        self.send(stream, b"", fin=True)

    async def until(self, condition: Any, timeout_s: float = DEADLINE_S) -> None:
        """Receive until the condition holds; TimeoutError otherwise."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                await self.receive()

    async def receive(self) -> None:
        data = await self._reader.read(1 << 18)
        if not data:
            self.closed = True
            raise ConnectionError("the server closed")
        for event in self.spdy.receive(data):
            if isinstance(event, spdy_events.DataReceived):
                self.received[event.stream_id] += event.data
                if event.fin:
                    self.ended.add(event.stream_id)
            elif isinstance(event, spdy_events.StreamReplied):
                self.replied.add(event.stream_id)
            elif isinstance(event, spdy_events.StreamReset):
                self.reset.add(event.stream_id)
            elif isinstance(event, spdy_events.PingReceived):
                self.pongs.add(event.ping_id)
            elif isinstance(event, spdy_events.GoneAway):
                self.gone = True
        self.flush()

    async def ping(self, timeout_s: float = DEADLINE_S) -> None:
        """Until the answer."""
        ping = self.spdy.ping()
        self.flush()
        await self.until(lambda: ping in self.pongs, timeout_s)

    async def closed_by_server(self, timeout_s: float = DEADLINE_S) -> None:
        with suppress(ConnectionError):
            await self.until(lambda: False, timeout_s)

    def drop(self) -> None:
        """Without a word."""
        self._writer.transport.abort()

    async def close(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


class ExecClient:
    """A client of exec or attach as kubectl is one."""

    def __init__(self, client: SpdyClient, streams: dict[str, int]) -> None:
        self.client = client
        self.streams = streams

    @classmethod
    async def connect(cls, url: str, *types: str, protocol: str = "v4.channel.k8s.io", **options: Any) -> ExecClient:
        """types: the streams after the error stream, in kubectl's order."""
        client = await SpdyClient.connect(url, "v5.channel.k8s.io", protocol, **options)
        return cls(client, {kind: await client.open(streamtype=kind) for kind in ("error", *types)})

    def received(self, kind: str) -> bytes:
        return bytes(self.client.received[self.streams[kind]])

    def type(self, data: bytes) -> None:
        self.client.send(self.streams["stdin"], data)

    def end_input(self) -> None:
        self.client.send(self.streams["stdin"], b"", fin=True)

    def resize(self, rows: int, columns: int) -> None:
        self.client.send(self.streams["resize"], json.dumps({"Width": columns, "Height": rows}).encode() + b"\n")

    async def until_shown(self, text: bytes, kind: str = "stdout") -> None:
        try:
            await self.client.until(lambda: text in self.received(kind))
        except TimeoutError:
            raise AssertionError(f"{text!r} is not in {self.received(kind)[-2000:]!r}") from None

    async def status(self) -> dict[str, Any]:
        """At the end of the session."""
        try:
            # a Go server resets its streams where ours ends them
            await self.client.until(lambda: self.streams["error"] in self.client.ended | self.client.reset)
        except TimeoutError:
            shown = {kind: bytes(self.received(kind))[-2000:] for kind in self.streams}
            raise AssertionError(f"the session did not end; it showed {shown}") from None
        found: dict[str, Any] = json.loads(self.received("error"))
        await self.client.close()
        return found


def exit_code(status: dict[str, Any]) -> int:
    """As kubectl reads it."""
    if status["status"] == "Success":
        return 0
    assert status["reason"] == "NonZeroExitCode", status
    return int(status["details"]["causes"][0]["message"])


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test of coroutines, for a bounded time."""

    async def bounded() -> None:
        async with asyncio.timeout(4 * DEADLINE_S):
            await test()

    asyncio.run(bounded())


def sh(script: str, **streams: bool) -> ExecRequest:
    """An exec of a shell's script."""
    return ExecRequest("container", ("sh", "-c", script), **streams)


async def until(condition: Callable[[], bool], what: str) -> None:
    """Polls, since nothing tells of what the kernel does."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)
    assert condition(), what
