"""Programs that a test talks to while they run: through pipes, or on a terminal of their own, as a person would."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

_READ_BYTES = 65536


@contextmanager
def running(command: Sequence[str], environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A program with pipes to its stdio, stderr among its stdout; killed when the block ends."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, env=dict(environ)) as process:
        try:
            yield process
        finally:
            process.kill()


class Terminal:
    """The master side of a pty, and the program on its other side. Use as a context manager."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], *, rows: int, columns: int) -> None:
        self._master, peer = os.openpty()
        self._text = ""
        self._size(rows, columns)
        try:
            # the program must be told of a new size, so the terminal has to be its controlling one
            self._process = subprocess.Popen(
                ["setsid", "--ctty", *command], stdin=peer, stdout=peer, stderr=peer, env=dict(environ)
            )
        except BaseException:
            os.close(self._master)
            raise
        finally:
            os.close(peer)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def type(self, text: str) -> None:
        """Types text; control characters are themselves, "\\x03" is Ctrl-C."""
        os.write(self._master, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        """As when the window changes its size: the kernel signals the program."""
        self._size(rows, columns)

    def expect(self, pattern: str, *, deadline_s: float = 30.0) -> re.Match[str]:
        """The first match in what was not matched yet. Raises TimeoutError that shows what was written instead."""
        end = time.monotonic() + deadline_s
        while True:
            found = re.search(pattern, self._text)
            if found:
                self._text = self._text[found.end() :]
                return found
            if not self._read(end):
                raise TimeoutError(f"{pattern!r} was not written, but {self._text!r}")

    def wait(self, *, deadline_s: float = 30.0) -> int:
        """Exit code of the program."""
        end = time.monotonic() + deadline_s
        while self._read(end):  # a terminal that is not read blocks who writes to it
            pass
        return self._process.wait(max(0.1, end - time.monotonic()))

    def _read(self, end: float) -> bool:
        """Takes what was written; False after the deadline, or when nobody can write any more."""
        readable, _, _ = select.select([self._master], [], [], max(0.0, end - time.monotonic()))
        if not readable:
            return False
        try:
            data = os.read(self._master, _READ_BYTES)
        except OSError:  # EIO: the other side was closed by all
            return False
        self._text += data.decode(errors="replace")
        return bool(data)

    def _size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
