"""The servers that a monitor speaks to: they find it by a socket in the sandbox's directory, and may come and go."""

from __future__ import annotations

import os
from _socket import AF_UNIX, SO_PEERCRED, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_SEQPACKET, SOL_SOCKET, SOMAXCONN, socket

from crishim.executor import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from crishim.executor.loop import Loop
    from crishim.executor.wire import Message

#: at most this many connections: the newest, and one that is about to be dropped
_MAX_CONNECTIONS = 4


class Servers:
    """The connections of one monitor. Owns its listening socket and them."""

    __slots__ = ("_connections", "_directory", "_handle", "_listener", "_loop", "_sandbox_id", "_versions")

    def __init__(
        self, sandbox_id: bytes, directory: int, loop: Loop, handle: Callable[[socket, Message], None]
    ) -> None:
        """directory: descriptor of the sandbox's; handle: takes a request with its descriptors."""
        self._sandbox_id = sandbox_id
        self._directory = directory
        self._loop = loop
        self._handle = handle
        self._listener: socket | None = None
        #: the newest last
        self._connections: list[socket] = []
        #: the version that the server of a connection spoke last; it is answered in it
        self._versions: dict[socket, int] = {}

    def listen(self) -> None:
        """Let servers find us. OSError: the directory takes no socket."""
        self._listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK)
        # by the directory's descriptor: a socket's path may not be longer than 107 bytes
        self._listener.bind(b"/proc/self/fd/%d/%b" % (self._directory, wire.MONITOR_SOCKET))
        self._listener.listen(SOMAXCONN)
        self._loop.watch(self._listener.fileno(), self._accept)

    def unlink(self) -> None:
        """No other server can find us; it is fine when none could."""
        try:
            os.unlink(wire.MONITOR_SOCKET, dir_fd=self._directory)
        except OSError:
            pass

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except OSError:  # the peer is gone already, or we are out of descriptors: the next one may have more luck
            return
        connection = socket(fileno=fd)
        uid = int.from_bytes(connection.getsockopt(SOL_SOCKET, SO_PEERCRED, 12)[4:8], "little")
        if uid != os.geteuid():
            connection.close()
            return
        self.serve(connection)

    def serve(self, connection: socket) -> None:
        """Take requests of a connected server; the newest connection also gets the events."""
        self._connections.append(connection)
        self._loop.watch(connection.fileno(), lambda: self._receive(connection))
        if len(self._connections) > _MAX_CONNECTIONS:
            self._drop(self._connections[0])

    def _drop(self, connection: socket) -> None:
        if connection not in self._connections:
            return  # an answer found it gone
        self._loop.forget(connection.fileno())
        self._connections.remove(connection)
        self._versions.pop(connection, None)
        connection.close()

    def _receive(self, connection: socket) -> None:
        try:
            message = wire.receive(connection)
        except wire.VersionError as error:  # our version is in the answer, so it tells a server what to do about us
            self.reply(connection, wire.ERROR, 0, {"message": str(error)})
            message = None
        except (OSError, wire.WireError):
            message = None
        if message is None:
            self._drop(connection)
            return
        self._versions[connection] = message.version
        self._handle(connection, message)

    def is_connected(self, connection: socket) -> bool:
        """Whether a server is still there to be answered."""
        return connection in self._connections

    def reply(
        self, connection: socket, kind: int, seq: int, body: dict[str, object], fds: list[int] | None = None
    ) -> None:
        """Answer a request of a server; one that is gone is fine."""
        if connection not in self._connections:
            return
        try:
            self._send(connection, kind, seq, body, fds)
        except OSError:
            self._drop(connection)

    def tell(self, kind: int, body: dict[str, object], fds: list[int] | None = None) -> None:
        """Tell the newest server of an event, if there is one."""
        if not self._connections:
            return
        try:
            self._send(self._connections[-1], kind, 0, body, fds)
        except OSError:  # the server is gone or does not read: it will find the record
            self._drop(self._connections[-1])

    def note(self, text: str) -> None:
        """What the server shall log."""
        self.tell(wire.EVENT_NOTE, {"message": text})

    def _send(self, connection: socket, kind: int, seq: int, body: dict[str, object], fds: list[int] | None) -> None:
        version = self._versions.get(connection, wire.VERSION)
        wire.send(connection, kind, seq, self._sandbox_id, body, fds or [], version)
