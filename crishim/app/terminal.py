"""Our terminal joined with a pty: raw mode, window size, and the bytes of both directions."""

from __future__ import annotations

import array
import fcntl
import os
import select
import signal
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from crishim.errors import InvalidSpec

_STDIN, _STDOUT = 0, 1
_PIECE = 1 << 16


def window_size() -> tuple[int, int]:
    """(columns, rows) of our terminal. InvalidSpec when standard input is none."""
    try:
        size = os.get_terminal_size(_STDIN)
    except OSError:
        raise InvalidSpec("-t needs a terminal as standard input") from None
    return size.columns, size.lines


@contextmanager
def raw_mode() -> Iterator[None]:
    """Every key goes to the process, Ctrl-C too; the terminal is as before at the end."""
    before = termios.tcgetattr(_STDIN)
    tty.setraw(_STDIN, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(_STDIN, termios.TCSADRAIN, before)


def pump(master: int) -> None:
    """Copy both ways and follow the window size until the last process has closed the pty."""
    before = signal.signal(signal.SIGWINCH, lambda *_: _resize(master))
    try:
        _resize(master)  # it may have changed meanwhile
        _copy(master)
    finally:
        signal.signal(signal.SIGWINCH, before)


def _copy(master: int) -> None:
    wanted = [master, _STDIN]
    while True:
        for ready in select.select(wanted, [], [])[0]:
            try:
                data = os.read(ready, _PIECE)
            except OSError:  # EIO: nobody has the pty open; or our own terminal has hung up
                data = b""
            if not data and ready == master:
                return
            if not data:
                wanted.remove(_STDIN)
            elif not _write(_STDOUT if ready == master else master, data) and ready != master:
                return


def _write(fd: int, data: bytes) -> bool:
    """All of it; False when nobody reads any more."""
    with suppress(OSError):
        while data:
            data = data[os.write(fd, data) :]
    return not data


def _resize(master: int) -> None:
    size = array.array("H", [0] * 4)  # struct winsize
    with suppress(OSError):
        fcntl.ioctl(_STDIN, termios.TIOCGWINSZ, size)
        fcntl.ioctl(master, termios.TIOCSWINSZ, size)
