"""A netlink socket that sends batches and checks every acknowledgement: the only place of this room that talks netlink.

Blocking, but the kernel answers within the send call: a receive waits only when the socket is broken, which the
deadline turns into an error. Not safe for two threads at once.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection, Iterable, Sequence

from crishim.network.netlink import NLM_F_ACK, NLM_F_DUMP, Message, Request, acknowledgement, decode, encode

_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11

_SO_SNDBUFFORCE = 32
_DEFAULT_SEND_BUFFER = 128 * 1024

_DEADLINE_S = 5.0
_RECEIVE_BYTES = 256 * 1024
#: a dump that the kernel marks as interrupted is asked again this often
_DUMP_ATTEMPTS = 8

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12


class NetlinkError(OSError):
    """A request that the kernel refused: errno, and a sentence with the operation and the kernel's explanation."""

    def __init__(self, request: Request, code: int, text: str) -> None:
        super().__init__(code, f"{request.what}: {os.strerror(code)}" + (f" ({text})" if text else ""))


class NetlinkSocket:
    """One netlink socket; it acts in the network namespace in which it was opened, whoever uses it later."""

    def __init__(self, sock: socket.socket) -> None:
        """Owns `sock` from here on, also when this raises OSError because it is no netlink socket."""
        self._socket = sock
        self._sequence = 0
        self._send_buffer = _DEFAULT_SEND_BUFFER
        try:
            sock.settimeout(_DEADLINE_S)
            sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            sock.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        except OSError:
            sock.close()
            raise

    @classmethod
    def open(cls, protocol: int) -> NetlinkSocket:
        """In the network namespace of this process; OSError EPROTONOSUPPORT when the kernel lacks the protocol."""
        return cls(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol))

    @classmethod
    def borrow(cls, descriptor: int, protocol: int) -> NetlinkSocket:
        """Over a duplicate of a descriptor that stays the caller's."""
        copy = os.dup(descriptor)
        try:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol, fileno=copy)
        except OSError:
            os.close(copy)
            raise
        return cls(sock)

    def __enter__(self) -> NetlinkSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def request(self, requests: Sequence[Request], tolerate: Collection[int] = ()) -> None:
        """Perform each, whatever becomes of the others, by one system call. NetlinkError for the first refused.

        Errors with a number in `tolerate` count as success.
        """
        first = self._send([Request(each.what, each.type, each.flags | NLM_F_ACK, each.body) for each in requests])
        failures: dict[int, NetlinkError] = {}
        pending = set(range(len(requests)))
        while pending:
            for message in self._receive(first):
                index = message.sequence - first
                answer = acknowledgement(message)
                if answer is None or index not in pending:
                    continue
                pending.remove(index)
                if answer.errno and answer.errno not in tolerate:
                    failures[index] = NetlinkError(requests[index], answer.errno, answer.text)
        if failures:
            raise failures[min(failures)]

    def transact(self, begin: Request, requests: Sequence[Request], end: Request) -> None:
        """A batch that the kernel performs as a whole or not at all (nf_tables). NetlinkError for the first refused.

        Only the last request asks for an acknowledgement: the kernel reports errors of every member, and it reports
        them before it acknowledges, all within the send call.
        """
        marked = requests[-1]
        members = [*requests[:-1], Request(marked.what, marked.type, marked.flags | NLM_F_ACK, marked.body)]
        first = self._send([begin, *members, end])
        last = first + len(requests)
        failure: NetlinkError | None = None
        answered = False
        while not answered:
            for message in self._receive(first):
                answer = acknowledgement(message)
                if answer is None:
                    continue
                if answer.errno:
                    index = min(max(message.sequence - first - 1, 0), len(requests) - 1)
                    failure = failure or NetlinkError(requests[index], answer.errno, answer.text)
                # an error of the begin message ends the batch before any member is looked at
                answered = answered or message.sequence >= last or message.sequence == first
        if failure is not None:
            raise failure

    def dump(self, request: Request) -> list[Message]:
        """All objects of a kind, from a dump that nothing interrupted."""
        for _ in range(_DUMP_ATTEMPTS):
            found = self._dump_once(request)
            if not any(message.is_interrupted for message in found):
                return [message for message in found if acknowledgement(message) is None]
        raise NetlinkError(request, errno.EINTR, "the objects changed in each attempt")

    def query(self, request: Request) -> Message:
        """The one object that a request names; NetlinkError ENODEV, ENOENT when there is none."""
        first = self._send([request])
        while True:
            for message in self._receive(first):
                answer = acknowledgement(message)
                if answer is None:
                    return message
                if answer.errno:
                    raise NetlinkError(request, answer.errno, answer.text)

    def _dump_once(self, request: Request) -> list[Message]:
        first = self._send([Request(request.what, request.type, request.flags | NLM_F_DUMP, request.body)])
        found: list[Message] = []
        while True:
            for message in self._receive(first):
                found.append(message)
                answer = acknowledgement(message)
                if answer is not None and answer.errno:
                    raise NetlinkError(request, answer.errno, answer.text)
                if message.is_done:
                    return found

    def _send(self, requests: Iterable[Request]) -> int:
        """Sequence number of the first; the others follow it."""
        encoded = [encode(request, self._sequence + index) for index, request in enumerate(requests, 1)]
        first = self._sequence + 1
        self._sequence += len(encoded)
        self._make_room(sum(map(len, encoded)))
        self._socket.send(b"".join(encoded))
        return first

    def _make_room(self, length: int) -> None:
        """One send call carries a whole batch, 0.5 MB for a thousand pods, and the kernel counts its own overhead."""
        if length * 2 > self._send_buffer:
            # beyond net.core.wmem_max, which CAP_NET_ADMIN may
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, length * 2)
            self._send_buffer = length * 2

    def _receive(self, first: int) -> list[Message]:
        """Messages of the next datagram; those of an earlier exchange that was abandoned are dropped."""
        try:
            datagram = self._socket.recv(_RECEIVE_BYTES)
        except TimeoutError:
            raise OSError(errno.ETIMEDOUT, f"netlink did not answer within {_DEADLINE_S} s") from None
        return [message for message in decode(datagram) if message.sequence >= first]
