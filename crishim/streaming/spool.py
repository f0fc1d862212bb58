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
from contextlib import suppress
from pathlib import Path

_CHUNK_BYTES = 64 << 10
_MOVE_BYTES = 1 << 20


class SpoolFiles:
    """Where the files of all spools of a server are, and what they take together of a disk that is not only theirs."""

    def __init__(self, directory: Path | None = None, limit_bytes: int = 1 << 30) -> None:
        """directory: None for that of temporary files; limit_bytes: from then on who has a file has to wait."""
        self.directory = directory
        self._limit_bytes = limit_bytes
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether they take more than they should."""
        return self._bytes >= self._limit_bytes

    def grew(self, count: int) -> None:
        """A file has so many bytes more, or fewer."""
        self._bytes += count


class Spool:
    """Bytes in order, for one writer and one reader on the same loop; owns its file until `close`."""

    def __init__(
        self,
        *,
        memory_bytes: int = 1 << 20,
        file_bytes: int = 64 << 20,
        files: SpoolFiles | None = None,
        on_take: Callable[[], None] = lambda: None,
    ) -> None:
        """memory_bytes: kept in memory; file_bytes: beyond that in a file without a name. Together the bound.

        files: of the server; while those are full, what is in a file may not grow. It takes at most twice what waits,
        or twice file_bytes.
        on_take: called after something was taken out.
        """
        self._files = files or SpoolFiles()
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
        if self.size >= self._memory_bytes + self._file_bytes or (self.is_spilled and self._files.is_full):
            self._room.clear()
        self._changed.set()

    def _spill(self, data: bytes) -> None:
        if self._file < 0:
            with tempfile.TemporaryFile(buffering=0, dir=self._files.directory) as file:
                self._file = os.dup(file.fileno())
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file, view, self._write_at)
            self._write_at += written
            self._files.grew(written)
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
            self._files.grew(-self._write_at)
            self._read_at = self._write_at = 0
        elif self._read_at >= max(self._write_at - self._read_at, self._file_bytes):
            with suppress(OSError):  # what could not be moved is still where it was
                self._move_to_front()
        return data

    def _move_to_front(self) -> None:
        """Give back the room of what was read, once it is no less than the rest: so each byte is moved once or so."""
        left = self._write_at - self._read_at
        moved = 0
        while moved < left:
            data = os.pread(self._file, min(_MOVE_BYTES, left - moved), self._read_at + moved)
            moved += os.pwrite(self._file, data, moved)
        self._files.grew(left - self._write_at)
        self._read_at, self._write_at = 0, left
        os.ftruncate(self._file, left)

    def close(self) -> None:
        """Drop everything and wake who waits."""
        self.end()
        self._pieces.clear()
        self._files.grew(-self._write_at)
        self._in_memory = self._read_at = self._write_at = 0
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._room.set()
