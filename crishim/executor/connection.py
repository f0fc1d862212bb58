"""Requests and answers over a socket to zygote or monitor, on the running loop (part of the executor's door).

Every request has one answer, found by its sequence number. Descriptors in answers become the caller's.
"""

from __future__ import annotations

import asyncio
import os
from _socket import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from crishim.errors import CrishimError, StartFailed, Unavailable, Unsupported
from crishim.executor import wire

#: how long a cancelled caller waits for the answer to what it began; later ones are still taken, by `on_late`
_ANSWER_S = 5.0


class Connection:
    """Requests and answers over one socket, on the running loop."""

    def __init__(self, sock: socket, on_event: Callable[[wire.Message], None], on_lost: Callable[[], None]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_event = on_event
        self._on_lost = on_lost
        self._waiting: dict[int, asyncio.Future[wire.Message]] = {}
        #: what to do with the answer of a request whose caller was cancelled
        self._late: dict[int, Callable[[wire.Message], None]] = {}
        #: requests that wait for a place in the peer's queue
        self._blocked: list[asyncio.Future[None]] = []
        self._seq = 0
        #: of the messages that are sent
        self.version = wire.VERSION
        self._why_lost: CrishimError = Unavailable("the process that should answer is gone")
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable)
        self.lost = False

    def next_seq(self) -> int:
        """A sequence number that no request has had."""
        self._seq = self._seq % 0x7FFFFFFF + 1
        return self._seq

    async def request(
        self,
        kind: int,
        sandbox_id: bytes,
        body: dict[str, object],
        fds: Sequence[int] = (),
        seq: int = 0,
        on_late: Callable[[wire.Message], None] | None = None,
    ) -> wire.Message:
        """The OK answer; StartFailed with the peer's sentence for an ERROR; Unavailable when the peer is gone.

        Unsupported when the peer speaks a version that we do not.

        on_late: given the answer when the caller was cancelled, to undo what was done; its descriptors are closed in
        any case. A caller that gives one hears of its cancellation only when the answer is there: what its request
        begins has begun by then, and can be ended.
        """
        seq = seq or self.next_seq()
        future: asyncio.Future[wire.Message] = self._loop.create_future()
        if self.lost:
            raise self._why_lost
        self._waiting[seq] = future
        try:
            await self._send(kind, seq, sandbox_id, body, fds)
            if on_late is not None:
                self._late[seq] = on_late
                message = await self._answer(future)
            else:
                message = await future
            self._late.pop(seq, None)
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._take_late(future.result())
            raise
        finally:
            self._waiting.pop(seq, None)
        if message.kind == wire.ERROR:
            message.close()
            raise StartFailed(str(message.body.get("message", "refused")))
        return message

    async def _answer(self, future: asyncio.Future[wire.Message]) -> wire.Message:
        """The answer, also for a caller that is cancelled while the peer works."""
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            with suppress(TimeoutError, Unavailable):
                async with asyncio.timeout(_ANSWER_S):
                    await future
            raise

    def _take_late(self, message: wire.Message) -> None:
        on_late = self._late.pop(message.seq, None)
        if on_late is not None:
            on_late(message)
        message.close()

    async def _send(self, kind: int, seq: int, sandbox_id: bytes, body: dict[str, object], fds: Sequence[int]) -> None:
        while True:
            try:
                wire.send(self._sock, kind, seq, sandbox_id, body, list(fds), self.version)
                return
            except BlockingIOError:  # the peer's queue is full
                await self._until_writable()
            except OSError as error:
                self._lose()
                raise Unavailable(f"the process that should answer is gone: {error.strerror}") from None

    async def _until_writable(self) -> None:
        """Until the peer's queue has a place, or the peer is gone. The loop knows one writer, and many may wait."""
        if not self._blocked:
            self._loop.add_writer(self._sock.fileno(), self._unblock)
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._blocked.append(waiter)
        await waiter

    def _unblock(self) -> None:
        """All try again, in the order they came; who finds the queue full once more waits once more."""
        self._loop.remove_writer(self._sock.fileno())
        blocked, self._blocked = self._blocked, []
        for waiter in blocked:
            _resolve(waiter)

    def _readable(self) -> None:
        for _ in range(64):
            try:
                message = wire.receive(self._sock)
            except BlockingIOError:
                return
            except wire.VersionError as error:
                self._why_lost = Unsupported(str(error))
                message = None
            except (OSError, wire.WireError):
                message = None
            if message is None:
                self._lose()
                return
            waiting = self._waiting.get(message.seq)
            if message.seq and waiting is not None and not waiting.done():
                waiting.set_result(message)
            elif message.seq:
                self._take_late(message)
            else:
                self._on_event(message)

    def _lose(self) -> None:
        if self.lost:
            return
        self.close()
        self._on_lost()

    def close(self) -> None:
        """Stop; whoever waits gets Unavailable, or Unsupported when that is why."""
        if self.lost:
            return
        self.lost = True
        self._loop.remove_reader(self._sock.fileno())
        self._unblock()
        self._sock.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(self._why_lost)


def reap_later(pid: int) -> None:
    """Reap a child when it is dead: its connection closes a moment before that."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()

    def ended() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)

    loop.add_reader(pidfd, ended)


async def reap(pid: int) -> None:
    """Wait for a child's end; one that is reaped already is fine."""
    with suppress(ProcessLookupError, ChildProcessError):
        pidfd = os.pidfd_open(pid)
        try:
            await until_readable(pidfd)
            os.waitpid(pid, 0)
        finally:
            os.close(pidfd)


async def until_readable(fd: int) -> None:
    """Until a descriptor is readable, or its peer is gone."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _resolve, readable)
    try:
        await readable
    finally:
        loop.remove_reader(fd)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def first_message(sock: socket) -> wire.Message | None:
    """The first message on a socket, without keeping a reader on it; None when its peer is gone or makes no sense."""
    sock.setblocking(False)
    await until_readable(sock.fileno())
    try:
        return wire.receive(sock)
    except (OSError, wire.WireError):
        return None
