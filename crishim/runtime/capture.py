"""The output of a process through two pipes, read as it comes and kept up to a bound; what is beyond is dropped.

The process never blocks on us: the pipes are read to their end whatever is kept (CVE-2022-1708, CVE-2022-31030).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from contextlib import suppress

#: how long the output of an ended process is waited for when another process still holds the pipe
DRAIN_S = 0.1
#: a pipe that was found full is given this size, so that a flood costs fewer wake-ups
_PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031
_FULL_BYTES = 1 << 16


#: every capture keeps this much, however little is left for all
SURE_BYTES = 64 << 10


class Budget:
    """What all captures of a server may keep at one time, beyond `SURE_BYTES` of each."""

    def __init__(self, limit_bytes: int) -> None:
        self._left = limit_bytes

    def take(self, count: int) -> int:
        """At most `count` bytes; what is granted is given back by `release`."""
        granted = min(count, self._left)
        self._left -= granted
        return granted

    def release(self, count: int) -> None:
        """Give back what `take` granted."""
        self._left += count


class Capture:
    """Owns both ends of both pipes until `hand_over` and `close`, and its part of the budget until `close`."""

    def __init__(self, limit_bytes: int, budget: Budget) -> None:
        """limit_bytes: of both streams together; many at once may have to do with less."""
        self._left = limit_bytes
        self._budget = budget
        self._taken = 0
        # not lists of what was read: a process that writes byte by byte would make a list of millions
        self._kept = {1: bytearray(), 2: bytearray()}
        self._loop = asyncio.get_running_loop()
        #: reading ends that are open, by stream
        self._open: dict[int, int] = {}
        self._ended = asyncio.Event()
        self._open[1], self.stdout = _pipe()
        try:
            self._open[2], self.stderr = _pipe()
        except OSError:
            os.close(self._open[1])
            os.close(self.stdout)
            raise
        for stream, fd in self._open.items():
            self._loop.add_reader(fd, self._readable, stream)

    def hand_over(self) -> None:
        """The process has its copies of the writing ends: close ours, so that its end is seen."""
        for fd in (self.stdout, self.stderr):
            if fd >= 0:
                os.close(fd)
        self.stdout = self.stderr = -1

    async def drain(self, quiet_s: float) -> None:
        """Wait for the end of both streams; a process outside that holds a pipe is given `quiet_s`."""
        try:
            async with asyncio.timeout(quiet_s):
                await self._ended.wait()
        except TimeoutError:
            for stream in list(self._open):
                self._readable(stream)

    def output(self, stream: int) -> bytes:
        """What was kept of stream 1 or 2."""
        return bytes(self._kept[stream])

    def close(self) -> None:
        """Let go of all that is open."""
        self.hand_over()
        for stream in list(self._open):
            self._end(stream)
        self._kept = {1: bytearray(), 2: bytearray()}
        self._budget.release(self._taken)
        self._taken = 0

    def _readable(self, stream: int) -> None:
        fd = self._open[stream]
        try:
            data = os.read(fd, _PIPE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end(stream)
            return
        if len(data) == _FULL_BYTES:
            with suppress(OSError):  # the user's share of pipe pages is used up
                fcntl.fcntl(fd, _F_SETPIPE_SZ, _PIPE_BYTES)
        wanted = min(len(data), self._left)
        if not wanted:
            return
        sure = max(0, SURE_BYTES - len(self._kept[1]) - len(self._kept[2]))
        granted = self._budget.take(wanted - sure) if wanted > sure else 0
        self._taken += granted
        self._left -= wanted
        if granted < wanted - sure:
            wanted, self._left = sure + granted, 0  # nothing more is kept: what is, has no gap
        self._kept[stream] += data[:wanted]

    def _end(self, stream: int) -> None:
        fd = self._open.pop(stream)
        self._loop.remove_reader(fd)
        os.close(fd)
        if not self._open:
            self._ended.set()


def _pipe() -> tuple[int, int]:
    """(reading end, writing end); only ours is non-blocking, the process expects a pipe that blocks."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(reading, False)
    return reading, writing
