"""The stdio of a process that a session shows: pipes or a terminal of an exec, or a container's through its monitor.

Reading and writing wait without a thread, and never for each other: each is used by one coroutine at a time. `close`
is called when nobody waits any more.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import termios
from contextlib import suppress
from typing import Protocol

from crishim.runtime.capture import DRAIN_S

STDOUT = 1
STDERR = 2

_READ_BYTES = 64 << 10


class Stdio(Protocol):
    """What a session needs of a process."""

    async def read(self) -> tuple[int, bytes] | None:
        """The next output, with STDOUT or STDERR; None when there will be none."""
        ...

    async def write(self, data: bytes) -> bool:
        """Feed stdin, waiting until it was taken; False when nobody will ever read it."""
        ...

    async def end_input(self) -> None:
        """No more stdin; a terminal has no such end."""
        ...

    def resize(self, rows: int, columns: int) -> None:
        """The user's terminal changed."""
        ...

    def close(self) -> None:
        """Let go of the descriptors."""
        ...


class Descriptors:
    """Ends of pipes, or a terminal's master; owns them."""

    def __init__(self, stdin: int | None, outputs: dict[int, int], *, console: bool = False) -> None:
        """outputs: STDOUT or STDERR to a descriptor; console: they are of a terminal."""
        self._stdin = stdin
        self._outputs = outputs
        self._console = console
        self._process_ended = asyncio.Event()
        #: what `read` waits for; woken by the process' end too
        self._waiting: asyncio.Future[None] | None = None
        for fd in (*outputs.values(), *([] if stdin is None else [stdin])):
            os.set_blocking(fd, False)

    @classmethod
    def of_console(cls, master: int, *, stdin: bool) -> Descriptors:
        """A terminal; takes the master."""
        return cls(os.dup(master) if stdin else None, {STDOUT: master}, console=True)

    def process_ended(self) -> None:
        """From now on `read` waits only shortly: another process may hold the other ends for ever."""
        self._process_ended.set()
        if self._waiting is not None:
            _resolve(self._waiting)

    async def read(self) -> tuple[int, bytes] | None:
        """What comes first, of both streams in turn."""
        while True:
            for stream, fd in list(self._outputs.items()):
                data = _read_now(fd)
                if data:
                    self._outputs[stream] = self._outputs.pop(stream)  # the other stream's turn
                    return stream, data
                if data is not None:
                    os.close(self._outputs.pop(stream))
            if not self._outputs:
                await self._process_ended.wait()
                return None
            if not await self._wait_output():
                return None

    async def _wait_output(self) -> bool:
        """Wait for something to read; False when the process is gone and nothing came."""
        self._waiting = asyncio.get_running_loop().create_future()
        try:
            if not self._process_ended.is_set():
                await _until_readable(self._waiting, *self._outputs.values())
                return True
            async with asyncio.timeout(DRAIN_S):
                await _until_readable(self._waiting, *self._outputs.values())
        except TimeoutError:
            return False
        finally:
            self._waiting = None
        return True

    async def write(self, data: bytes) -> bool:
        """Feed stdin."""
        view = memoryview(data)
        while view and self._stdin is not None:
            try:
                view = view[os.write(self._stdin, view) :]
            except BlockingIOError:
                await _until_writable(self._stdin)
            except OSError:  # EPIPE: the process closed its end; EIO: the terminal has nobody
                self._close_stdin()
        return self._stdin is not None

    async def end_input(self) -> None:
        """Close the pipe."""
        if not self._console:
            self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin is not None:
            os.close(self._stdin)
            self._stdin = None

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of the terminal; its foreground processes get SIGWINCH."""
        if self._console and STDOUT in self._outputs:
            with suppress(OSError):
                fcntl.ioctl(self._outputs[STDOUT], termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        """Let go of the descriptors: the processes of a terminal get SIGHUP."""
        self._close_stdin()
        for fd in self._outputs.values():
            os.close(fd)
        self._outputs.clear()


class Attached:
    """A client of the monitor's fan-out: one message per piece, a byte that says what it is before it."""

    _STDIN = b"\x00"
    _RESIZE = b"\x04"
    _END_INPUT = b"\x05"
    _CHUNK_BYTES = 32 << 10
    _SIZE = struct.Struct("=HH")

    def __init__(self, fd: int, *, stdout: bool, stderr: bool) -> None:
        """Takes the descriptor; output that is not asked for is dropped here."""
        self._sock = socket.socket(fileno=fd)
        self._sock.setblocking(False)
        self._wanted = {stream for stream, wanted in ((STDOUT, stdout), (STDERR, stderr)) if wanted}
        #: the latest size that the monitor was not told yet
        self._size: bytes | None = None

    async def read(self) -> tuple[int, bytes] | None:
        """The next message; None when the monitor closed: the container ended, or we did not read for too long."""
        while True:
            try:
                message = self._sock.recv(_READ_BYTES)
            except BlockingIOError:
                await _until_readable(asyncio.get_running_loop().create_future(), self._sock.fileno())
                continue
            except OSError:
                return None
            if not message:
                return None
            if message[0] in self._wanted and len(message) > 1:
                return message[0], message[1:]
            await asyncio.sleep(0)

    async def write(self, data: bytes) -> bool:
        """Feed the container's stdin."""
        for start in range(0, len(data), self._CHUNK_BYTES):
            if not await self._send(self._STDIN + data[start : start + self._CHUNK_BYTES]):
                return False
        return True

    async def end_input(self) -> None:
        """The monitor closes the container's stdin when it is for one client only (stdin_once)."""
        await self._send(self._END_INPUT)

    def resize(self, rows: int, columns: int) -> None:
        """Told at once, or before the next input when that waits."""
        self._size = self._RESIZE + self._SIZE.pack(rows, columns)
        with suppress(OSError):
            self._send_size()

    def _send_size(self) -> None:
        if self._size is not None:
            self._sock.send(self._size)
            self._size = None

    async def _send(self, message: bytes) -> bool:
        while True:
            try:
                self._send_size()
                self._sock.send(message)
                return True
            except BlockingIOError:
                await _until_writable(self._sock.fileno())
            except OSError:
                return False

    def close(self) -> None:
        """Leave; the container goes on."""
        self._sock.close()


def _read_now(fd: int) -> bytes | None:
    """What can be read without waiting: None when nothing can, b"" at the end."""
    try:
        return os.read(fd, _READ_BYTES)
    except BlockingIOError:
        return None
    except OSError:  # EIO: nobody has the terminal open any more
        return b""


async def _until_readable(ready: asyncio.Future[None], *fds: int) -> None:
    """Wait until one of the descriptors can be read, or somebody else resolves the future."""
    loop = asyncio.get_running_loop()
    for fd in fds:
        loop.add_reader(fd, _resolve, ready)
    try:
        await ready
    finally:
        for fd in fds:
            loop.remove_reader(fd)


async def _until_writable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(fd, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_writer(fd)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
