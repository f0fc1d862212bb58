"""What a client sent and nobody has read yet: a queue of bytes that goes on in a file when memory is not enough.

Clients use no flow control, so the only brake is not to read their connection, which would hold up pings and every
other stream on it. A queue with a large file behind it lets one stuck reader wait alone.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections import deque
from collections.abc import Callable

_CHUNK_BYTES = 64 << 10


class Spool:
    """Bytes in order, for one writer and one reader on the same loop; owns its file until `close`."""

    def __init__(
        self,
        *,
        memory_bytes: int = 1 << 20,
        file_bytes: int = 64 << 20,
        on_take: Callable[[], None] = lambda: None,
    ) -> None:
        """memory_bytes: kept in memory; file_bytes: beyond that in a file without a name. Together the bound.

        on_take: called after something was taken out.
        """
        self._on_take = on_take
        #: all that was ever taken out
        self.taken_bytes = 0
        self._memory_bytes = memory_bytes
        self._file_bytes = file_bytes
        self._pieces: deque[bytes] = deque()
        self._in_memory = 0
        self._file = -1
        self._read_at = 0
        self._write_at = 0
        self._ended = False
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    @property
    def size(self) -> int:
        """Bytes that wait."""
        return self._in_memory + self._write_at - self._read_at

    @property
    def is_spilled(self) -> bool:
        """Whether some of it is in the file."""
        return self._write_at > self._read_at

    @property
    def is_full(self) -> bool:
        """Whether the writer should wait for room; one piece more is taken all the same."""
        return not self._room.is_set()

    async def wait_room(self) -> None:
        """Return when it is not full, or was closed."""
        await self._room.wait()

    def put(self, data: bytes) -> None:
        """Add bytes; OSError when the disk is full. Dropped after `end`."""
        if self._ended or not data:
            return
        if self._write_at == self._read_at and self._in_memory + len(data) <= self._memory_bytes:
            self._pieces.append(data)
            self._in_memory += len(data)
        else:
            self._spill(data)
        if self.size >= self._memory_bytes + self._file_bytes:
            self._room.clear()
        self._changed.set()

    def _spill(self, data: bytes) -> None:
        if self._file < 0:
            with tempfile.TemporaryFile(buffering=0) as file:
                self._file = os.dup(file.fileno())
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file, view, self._write_at)
            self._write_at += written
            view = view[written:]

    def end(self) -> None:
        """No more bytes come."""
        self._ended = True
        self._changed.set()

    async def get(self) -> bytes | None:
        """The next bytes, at most 64 KiB from the file; None at the end."""
        while True:
            data = self._take()
            if data:
                if not self.is_full or self.size < self._memory_bytes + self._file_bytes // 2:
                    self._room.set()
                self.taken_bytes += len(data)
                self._on_take()
                return data
            if self._ended:
                return None
            self._changed.clear()
            await self._changed.wait()

    def _take(self) -> bytes:
        if self._pieces:
            data = self._pieces.popleft()
            self._in_memory -= len(data)
            return data
        if self._read_at == self._write_at:
            return b""
        data = os.pread(self._file, min(_CHUNK_BYTES, self._write_at - self._read_at), self._read_at)
        self._read_at += len(data)
        if self._read_at == self._write_at:
            os.ftruncate(self._file, 0)
            self._read_at = self._write_at = 0
        return data

    def close(self) -> None:
        """Drop everything and wake who waits."""
        self.end()
        self._pieces.clear()
        self._in_memory = self._read_at = self._write_at = 0
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._room.set()
