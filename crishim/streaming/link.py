"""One client's connection: bytes in and out, bounded in memory and in silence."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

READ_BYTES = 64 << 10
_HIGH_WATER_BYTES = 256 << 10
#: answers to pings and resets for a client that does not read; output waits long before
_ABORT_BYTES = 2 << 20


class Link:
    """A stream connection that is cut after `idle_s` without a byte in either direction."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, idle_s: float) -> None:
        self._reader = reader
        self._writer = writer
        self._idle_s = idle_s
        #: bytes of the client that were read with the request
        self._rest = b""
        self._sent_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._active_at = self._loop.time()
        self._timer = self._loop.call_later(idle_s, self._check_idle)
        writer.transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)

    def _check_idle(self) -> None:
        left = self._active_at + self._idle_s - self._loop.time()
        if left <= 0:
            self._writer.transport.abort()
        else:
            self._timer = self._loop.call_later(left, self._check_idle)

    def unread(self, data: bytes) -> None:
        """Give these bytes to the next `read`."""
        self._rest = data

    async def read(self) -> bytes:
        """What the client sent; b"" when it is gone."""
        if self._rest:
            data, self._rest = self._rest, b""
            return data
        try:
            data = await self._reader.read(READ_BYTES)
        except OSError:
            return b""
        self._active_at = self._loop.time()
        return data

    def send(self, parts: Sequence[bytes]) -> None:
        """Send; dropped when the client is gone, and a client that does not read its answers is cut."""
        if not parts or self._writer.transport.is_closing():
            return
        self._writer.writelines(parts)
        self._sent_bytes += sum(map(len, parts))
        self._active_at = self._loop.time()
        if self._writer.transport.get_write_buffer_size() > _ABORT_BYTES:
            self._writer.transport.abort()

    async def drain(self) -> None:
        """Wait while the client is slow; returns at once when it is gone."""
        with suppress(OSError):
            await self._writer.drain()
        self._active_at = self._loop.time()

    async def flush(self, patience_s: float) -> None:
        """Wait until the kernel has all that was sent; a client that takes nothing for `patience_s` is cut."""
        self._writer.transport.set_write_buffer_limits(high=0)
        while True:
            taken = self._taken_bytes()
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self.drain()
                    return
            if self._taken_bytes() == taken:
                self.abort()
                return

    async def wait_stuck(self, patience_s: float) -> None:
        """Return when something waits of which the client took nothing for `patience_s`."""
        while True:
            taken = self._taken_bytes()
            await asyncio.sleep(patience_s)
            if self._taken_bytes() == taken and taken < self._sent_bytes:
                return

    def _taken_bytes(self) -> int:
        return self._sent_bytes - self._writer.transport.get_write_buffer_size()

    def abort(self) -> None:
        """Cut the connection."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Let go of the connection."""
        self._timer.cancel()
        if self._writer.transport.get_write_buffer_size():
            self._writer.transport.abort()
        else:
            self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()
