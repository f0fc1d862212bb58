"""Messages between server, zygote and monitors over SOCK_SEQPACKET, with descriptors beside them.

A message is a header (magic, version, kind, flags, sequence number, length of the sandbox id, length of the body), the
sandbox id and a body. A body is one value: None, bool, int, bytes, str, list or dict, encoded by tag and length, so a
receiver never runs what a peer sent. Bodies over 64 KiB travel as a sealed memfd, the last descriptor of the message.

Versions. Monitors live as long as their pods, so a server meets older ones, and after a downgrade newer ones. Within a
version bodies only grow: a receiver takes what it knows, a field that came later has a default for peers that do not
send it, a request that is not known is answered by ERROR. Whatever an old peer would misunderstand makes a new version.
A server opens a conversation in the oldest version that it accepts, STATE tells it that of the monitor, and both go on
in the lower one; a monitor answers in the version it was asked in. What lies outside ACCEPTED_VERSIONS ends the
conversation and nothing else. `tests/wire` has conversations of each version, replayed against either side.
"""

from __future__ import annotations

import array
import fcntl
import os
import struct
from _socket import (
    AF_UNIX,
    MSG_CMSG_CLOEXEC,
    MSG_CTRUNC,
    MSG_NOSIGNAL,
    MSG_TRUNC,
    SCM_RIGHTS,
    SOCK_CLOEXEC,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    socket,
    socketpair,
)

MAGIC = b"CRIx"
VERSION = 1
#: versions of a peer that this code understands, ascending: this one and those of the last two minor releases
ACCEPTED_VERSIONS = (1,)

# Kinds. Requests are answered by OK or ERROR with the same sequence number; events have sequence number 0.
OK = 1
ERROR = 2
START_MONITOR = 10
EXEC = 11
RUN_ROLE = 12
START_CONTAINER = 20
REOPEN_LOG = 21
OPEN_SOCKET = 22
OPEN_NETNS = 23
FORGET = 24
STOP = 25
STATE = 26
ATTACH = 27
CANCEL_START = 28
EVENT_CONTAINER_EXITED = 40
EVENT_EXEC_EXITED = 41
EVENT_NOTE = 42
EVENT_CONTAINER_STARTED = 43
EVENT_POD_INIT_EXITED = 44

#: the monitor's socket in the directory of its sandbox
MONITOR_SOCKET = b"monitor.sock"
INLINE_LIMIT_BYTES = 1 << 16
MAX_DESCRIPTORS = 250
_BODY_LIMIT_BYTES = 64 << 20
_FLAG_BODY_IN_MEMFD = 1
_HEADER = struct.Struct("=4sHHHHII")
_RECEIVE_BYTES = _HEADER.size + 256 + INLINE_LIMIT_BYTES
_F_ADD_SEALS = 1033
_ALL_SEALS = 0xF

Value = object

TYPE_CHECKING = False  # typing costs the zygote memory that every monitor would share
if TYPE_CHECKING:
    from collections.abc import Callable

    Put = Callable[[bytes], None]


class WireError(Exception):
    """A message that this version does not understand; the connection is closed."""


class VersionError(WireError):
    """The peer speaks a version that this code does not know."""

    def __init__(self, version: int) -> None:
        known = ", ".join(str(each) for each in ACCEPTED_VERSIONS)
        super().__init__(f"version {version} of the messages is not understood, only {known}")
        self.version = version


class Message:
    """One received message; the receiver owns `fds`."""

    __slots__ = ("body", "fds", "kind", "sandbox_id", "seq", "version")

    def __init__(
        self, kind: int, seq: int, sandbox_id: bytes, body: dict[str, object], fds: list[int], version: int = VERSION
    ) -> None:
        self.kind = kind
        self.seq = seq
        self.sandbox_id = sandbox_id
        self.body = body
        self.fds = fds
        self.version = version

    def close(self) -> None:
        """Close the descriptors that came along and were not taken out of `fds`."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []


_INT = struct.Struct("=q")
_LENGTH = struct.Struct("=I")


def encode(value: Value) -> bytes:
    """Bytes of a value; TypeError for a type that has no encoding."""
    out: list[bytes] = []
    _encode(value, out.append)
    return b"".join(out)


def _encode(value: Value, put: Put) -> None:
    # in the order of frequency; bool before int, of which it is a kind
    if isinstance(value, bytes):
        put(b"b" + _LENGTH.pack(len(value)) + value)
    elif isinstance(value, str):
        raw = value.encode("utf-8", "surrogateescape")
        put(b"s" + _LENGTH.pack(len(raw)) + raw)
    elif value is None:
        put(b"n")
    elif value is True:
        put(b"t")
    elif value is False:
        put(b"f")
    elif isinstance(value, int):
        put(b"i" + _INT.pack(value))
    elif isinstance(value, (list, tuple)):
        put(b"l" + _LENGTH.pack(len(value)))
        for item in value:
            _encode(item, put)
    elif isinstance(value, dict):
        put(b"d" + _LENGTH.pack(len(value)))
        for key, item in value.items():
            _encode(key, put)
            _encode(item, put)
    else:
        raise TypeError(f"{type(value).__name__} has no encoding on the wire")


def decode(data: bytes) -> Value:
    """The value of `data`; WireError when it is cut short, has a rest, nests deeper than 32 or an unknown tag."""
    try:
        value, end = _decode(data, 0, 32)
    except (struct.error, IndexError, UnicodeDecodeError, TypeError) as error:
        raise WireError(f"malformed value: {error}") from None
    if end != len(data):
        raise WireError(f"{len(data) - end} bytes behind the value")
    return value


def _decode(data: bytes, at: int, depth: int) -> tuple[Value, int]:
    tag = data[at]
    at += 1
    if tag == 98 or tag == 115:  # b, s
        start = at + 4
        end = start + _LENGTH.unpack_from(data, at)[0]
        raw = data[start:end]
        if len(raw) != end - start:
            raise WireError("value is cut short")
        return (raw if tag == 98 else raw.decode("utf-8", "surrogateescape")), end
    if tag == 105:  # i
        return _INT.unpack_from(data, at)[0], at + 8
    if tag == 110:  # n
        return None, at
    if tag == 116:  # t
        return True, at
    if tag == 102:  # f
        return False, at
    if depth == 0:
        raise WireError("value nests too deep")
    count = _LENGTH.unpack_from(data, at)[0]
    at += 4
    if tag == 108:  # l
        items: list[Value] = []
        for _ in range(count):
            item, at = _decode(data, at, depth - 1)
            items.append(item)
        return items, at
    if tag == 100:  # d
        mapping: dict[Value, Value] = {}
        for _ in range(count):
            key, at = _decode(data, at, depth - 1)
            mapping[key], at = _decode(data, at, depth - 1)
        return mapping, at
    raise WireError(f"unknown tag {tag}")


def send(
    sock: socket,
    kind: int,
    seq: int,
    sandbox_id: bytes,
    body: dict[str, object],
    fds: list[int] | tuple[int, ...] = (),
    version: int = VERSION,
) -> None:
    """Send one message; the descriptors stay the caller's. OSError when the peer is gone or its queue is full."""
    payload = encode(body)
    flags = 0
    memfd = -1
    try:
        if len(payload) > INLINE_LIMIT_BYTES:
            memfd = _sealed(payload)
            fds = [*fds, memfd]
            payload = b""
            flags = _FLAG_BODY_IN_MEMFD
        if len(fds) > MAX_DESCRIPTORS:
            raise WireError(f"{len(fds)} descriptors in one message")
        header = _HEADER.pack(MAGIC, version, kind, flags, len(sandbox_id), seq, len(payload))
        ancillary = [(SOL_SOCKET, SCM_RIGHTS, array.array("i", fds))] if fds else []
        sock.sendmsg([header, sandbox_id, payload], ancillary, MSG_NOSIGNAL)
    finally:
        if memfd >= 0:
            os.close(memfd)


def _sealed(payload: bytes) -> int:
    fd = os.memfd_create("crishim-body", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(payload)
    while view:
        view = view[os.write(fd, view) :]
    fcntl.fcntl(fd, _F_ADD_SEALS, _ALL_SEALS)
    return fd


def receive(sock: socket) -> Message | None:
    """The next message, None at the end of the stream; BlockingIOError when the socket does not block and is empty.

    A message that is truncated or malformed raises WireError, one of a version outside ACCEPTED_VERSIONS VersionError,
    and the descriptors that came with it are closed.
    """
    data, ancillary, flags, _ = sock.recvmsg(_RECEIVE_BYTES, 4096, MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, content in ancillary:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            received = array.array("i")
            received.frombytes(content[: len(content) - len(content) % received.itemsize])
            fds.extend(received)
    if not data and not fds:
        return None
    try:
        return _parse(data, flags, fds)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _parse(data: bytes, flags: int, fds: list[int]) -> Message:
    if flags & (MSG_TRUNC | MSG_CTRUNC):
        raise WireError("message was truncated")
    if len(data) < _HEADER.size:
        raise WireError(f"message of {len(data)} bytes")
    magic, version, kind, own_flags, id_length, seq, length = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise WireError(f"magic {magic!r} is not understood")
    if version not in ACCEPTED_VERSIONS:
        raise VersionError(version)
    start = _HEADER.size + id_length
    sandbox_id = data[_HEADER.size : start]
    payload = data[start:]
    if len(payload) != length:
        raise WireError(f"body of {len(payload)} bytes where the header says {length}")
    if own_flags & _FLAG_BODY_IN_MEMFD:
        if not fds:
            raise WireError("body descriptor is missing")
        payload = _read_body(fds[-1])
        os.close(fds.pop())
    body = decode(payload)
    if not isinstance(body, dict):
        raise WireError("body is not a mapping")
    return Message(kind, seq, sandbox_id, body, fds, version)


def _read_body(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    if size > _BODY_LIMIT_BYTES:
        raise WireError(f"body of {size} bytes")
    parts = []
    at = 0
    while at < size:
        part = os.pread(fd, size - at, at)
        if not part:
            raise WireError("body is cut short")
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def pair() -> tuple[socket, socket]:
    """Two connected sockets of the kind that messages travel on, close-on-exec."""
    return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)


def hand_over(sock: int, fd: int, text: bytes) -> None:
    """Send a descriptor to a caller's connected socket, as libcontainer's console and pidfd sockets get theirs."""
    peer = socket(fileno=os.dup(sock))
    try:
        peer.sendmsg([text], [(SOL_SOCKET, SCM_RIGHTS, array.array("i", [fd]))])
    finally:
        peer.close()
