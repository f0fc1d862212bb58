"""Attach: clients that see a running container's output as it comes, and feed its stdin.

A client is one end of a SOCK_SEQPACKET pair, handed to the server. Messages to it: a byte for the stream (1 stdout,
2 stderr) and data; end of file when the container ended. Messages from it: STDIN and data, RESIZE and two unsigned
shorts (rows, columns), CLOSE_STDIN. A client with too much unread output is dropped: it never slows the log.
"""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from _socket import MSG_DONTWAIT, MSG_NOSIGNAL, socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crishim.executor.init import InitProcess
    from crishim.executor.loop import Loop

STDIN = 0
RESIZE = 4
CLOSE_STDIN = 5

BACKLOG_BYTES = 1 << 20
_MESSAGE_BYTES = 1 << 15
_SIZE = struct.Struct("=HH")


class Client:
    """One attached client; owns its socket."""

    __slots__ = ("_backlog", "_backlog_bytes", "_ending", "_has_input", "_init", "_loop", "_sock", "fd")

    def __init__(self, loop: Loop, init: InitProcess, sock: socket) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._init = init
        self._sock = sock
        self.fd = sock.fileno()
        self._backlog: list[bytes] = []
        self._backlog_bytes = 0
        self._ending = False
        #: it has fed stdin: only then its leaving is the end of an input
        self._has_input = False
        loop.watch(self.fd, self._ready)

    def send(self, stream: int, data: bytes) -> None:
        """Pass output on, in messages of a bounded size."""
        head = bytes((stream,))
        for start in range(0, len(data), _MESSAGE_BYTES):
            message = head + data[start : start + _MESSAGE_BYTES]
            if self._backlog or not self._try(message):
                self._backlog.append(message)
                self._backlog_bytes += len(message)
        if self._backlog_bytes > BACKLOG_BYTES:
            self.close()
        elif self._backlog:
            self._loop.want_write(self.fd, True)

    def _try(self, message: bytes) -> bool:
        try:
            self._sock.send(message, MSG_DONTWAIT | MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError:
            pass  # the client is gone; its end of file comes next
        return True

    def _ready(self) -> None:
        while self._backlog and self._try(self._backlog[0]):
            self._backlog_bytes -= len(self._backlog.pop(0))
        if not self._backlog:
            if self._ending:
                self.close()
                return
            self._loop.want_write(self.fd, False)
        if self._init.stdin_pending:  # back-pressure: read on when the container has read
            return
        try:
            message = self._sock.recv(_MESSAGE_BYTES + 1, MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if message:
            self._take(message)
        else:
            self.close()
            if self._has_input:
                self._init.client_stdin_ended(self._loop)

    def _take(self, message: bytes) -> None:
        kind = message[0]
        if kind == STDIN:
            self._has_input = True
            self._init.feed_stdin(self._loop, message[1:])
        elif kind == CLOSE_STDIN:
            self._init.client_stdin_ended(self._loop)
        elif kind == RESIZE and len(message) == 1 + _SIZE.size:
            rows, columns = _SIZE.unpack_from(message, 1)
            self._init.resize(rows, columns)

    def end(self) -> None:
        """The container ended: close once what is left was read."""
        self._ending = True
        if not self._backlog:
            self.close()

    def close(self) -> None:
        """Drop the client."""
        if self.fd >= 0:
            self._loop.forget(self.fd)
            self._sock.close()
            self.fd = -1
            if self in self._init.clients:
                self._init.clients.remove(self)


def set_size(master: int, rows: int, columns: int) -> None:
    """Window size of a terminal; a master whose terminal is gone is fine."""
    try:
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    except OSError:
        pass


def write_some(fd: int, data: bytes) -> int:
    """Bytes that a non-blocking descriptor took, 0 when it is full, len(data) when nobody will ever read it."""
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0
    except OSError:
        return len(data)
