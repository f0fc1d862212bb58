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
    from crishim.executor.loop import Loop

STDIN = 0
RESIZE = 4
CLOSE_STDIN = 5

BACKLOG_BYTES = 1 << 20
_MESSAGE_BYTES = 1 << 15
_SIZE = struct.Struct("=HH")


class Stdin:
    """The stdin of a container: a pipe or a pty master, which its clients feed together. Owns the descriptor."""

    __slots__ = ("_once", "_terminal", "clients", "fd", "pending")

    def __init__(self, *, once: bool, terminal: bool) -> None:
        """once: it ends with the first client that fed it (CRI's stdin_once)."""
        #: -1 for none
        self.fd = -1
        self.clients: list[Client] = []
        #: what a client sent and the container has not taken yet
        self.pending = b""
        self._once = once
        self._terminal = terminal

    def feed(self, loop: Loop, data: bytes) -> None:
        """Write to it; what does not fit waits, and the clients with it."""
        if self.fd < 0:
            return
        os.set_blocking(self.fd, False)
        rest = data[_write_some(self.fd, data) :]
        if rest:
            self.pending = rest
            loop.watch_writable(self.fd, lambda: self._flush(loop))
            self._choose()

    def _flush(self, loop: Loop) -> None:
        self.pending = self.pending[_write_some(self.fd, self.pending) :]
        if not self.pending:
            loop.forget(self.fd)
            self._choose()

    def _choose(self) -> None:
        for client in self.clients:
            client.choose()

    def client_ended(self, loop: Loop) -> None:
        """A client closed its side; with CRI's stdin_once that is the end of a pipe."""
        if self._once and not self._terminal:
            self.close(loop)

    def resize(self, rows: int, columns: int) -> None:
        """Window size of the container's terminal; one that is gone is fine."""
        if self._terminal and self.fd >= 0:
            try:
                fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            except OSError:
                pass

    def close(self, loop: Loop) -> None:
        """No more input."""
        if self.fd >= 0:
            loop.forget(self.fd)
            os.close(self.fd)
            self.fd = -1
        if self.pending:
            self.pending = b""
            self._choose()


class Client:
    """One attached client; owns its socket."""

    __slots__ = ("_backlog", "_backlog_bytes", "_ending", "_has_input", "_loop", "_sock", "_stdin", "fd")

    def __init__(self, loop: Loop, stdin: Stdin, sock: socket) -> None:
        """One of the clients of `stdin` from now on; the container's output is to be sent to it."""
        sock.setblocking(False)
        self._loop = loop
        self._stdin = stdin
        self._sock = sock
        self.fd = sock.fileno()
        self._backlog: list[bytes] = []
        self._backlog_bytes = 0
        self._ending = False
        #: it has fed stdin: only then its leaving is the end of an input
        self._has_input = False
        loop.watch(self.fd, self._ready)
        stdin.clients.append(self)
        self.choose()

    def choose(self) -> None:
        """Be called when the client takes what waits for it, and when it has input, unless that could go nowhere."""
        self._loop.choose(self.fd, reads=not self._stdin.pending, writes=bool(self._backlog))

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
            self.choose()

    def _try(self, message: bytes) -> bool:
        try:
            self._sock.send(message, MSG_DONTWAIT | MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError:
            pass  # the client is gone; its end of file comes next
        return True

    def _ready(self) -> None:
        if self._backlog:
            self._send_backlog()
        if self.fd < 0:
            return
        if self._stdin.pending:  # back-pressure: read on when the container has read
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
                self._stdin.client_ended(self._loop)

    def _send_backlog(self) -> None:
        while self._backlog and self._try(self._backlog[0]):
            self._backlog_bytes -= len(self._backlog.pop(0))
        if self._backlog:
            return
        if self._ending:
            self.close()
        else:
            self.choose()

    def _take(self, message: bytes) -> None:
        kind = message[0]
        if kind == STDIN:
            self._has_input = True
            self._stdin.feed(self._loop, message[1:])
        elif kind == CLOSE_STDIN:
            self._stdin.client_ended(self._loop)
        elif kind == RESIZE and len(message) == 1 + _SIZE.size:
            rows, columns = _SIZE.unpack_from(message, 1)
            self._stdin.resize(rows, columns)

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
            if self in self._stdin.clients:
                self._stdin.clients.remove(self)


def _write_some(fd: int, data: bytes) -> int:
    """Bytes that a non-blocking descriptor took, 0 when it is full, len(data) when nobody will ever read it."""
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0
    except OSError:
        return len(data)
