"""Network devices over rtnetlink(7), as far as one is moved between namespaces: find, rename, move, addresses, up.

A `RouteSocket` acts in the network namespace in which it was made, whoever has it later. The kernel answers within the
send, so a receive waits only when something is broken: then for a few seconds.
"""

from __future__ import annotations

import errno
import os
import struct
from _socket import AF_INET6, AF_NETLINK, SOCK_CLOEXEC, SOCK_RAW, socket

IFF_UP = 0x1
IFF_LOOPBACK = 0x8

_NETLINK_ROUTE = 0
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP, _NLM_F_CREATE, _NLM_F_REPLACE = 0x1, 0x4, 0x300, 0x400, 0x100
_RTM_NEWLINK, _RTM_GETLINK, _RTM_NEWADDR, _RTM_GETADDR = 16, 18, 20, 22
_IFLA_IFNAME, _IFLA_NET_NS_FD = 3, 28
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_IFA_F_NODAD, _IFA_F_PERMANENT, _IFA_F_NOPREFIXROUTE = 0x02, 0x80, 0x200
_KIND_MASK = 0x3FFF

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")

_DEADLINE_S = 5
_RECEIVE_BYTES = 1 << 18
_DUMP_TRIES = 8
_NLM_F_DUMP_INTR = 0x10

#: family, length of the prefix, flags, local address, peer's or again the local one, broadcast address or b""
Address = list[object]


class RouteSocket:
    """A socket of the network namespace in which it was made. Owns its descriptor."""

    __slots__ = ("_sequence", "sock")

    def __init__(self, fd: int = -1) -> None:
        """Of the caller's namespace, or over a descriptor that becomes ours."""
        self.sock = socket(fileno=fd) if fd >= 0 else socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, _NETLINK_ROUTE)
        self.sock.settimeout(_DEADLINE_S)
        self._sequence = 0

    def link(self, name: bytes) -> tuple[int, int] | None:
        """(index, flags) of a device, None when there is none of that name."""
        body = _LINK.pack(0, 0, 0, 0, 0) + _attribute(_IFLA_IFNAME, name + b"\0")
        try:
            found = self._exchange(_RTM_GETLINK, 0, body)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        _, _, index, flags, _ = _LINK.unpack_from(found[0])
        return index, flags

    def change(self, index: int, *, name: bytes = b"", netns: int = -1, up: bool = False) -> None:
        """Rename a device, move it to the namespace of a descriptor, bring it up: what is given."""
        flags = IFF_UP if up else 0
        body = _LINK.pack(0, 0, index, flags, flags)
        if netns >= 0:
            body += _attribute(_IFLA_NET_NS_FD, struct.pack("=I", netns))
        if name:
            body += _attribute(_IFLA_IFNAME, name + b"\0")
        self._exchange(_RTM_NEWLINK, _NLM_F_ACK, body)

    def global_addresses(self, index: int) -> list[Address]:
        """The addresses of a device that somebody gave it and that mean something elsewhere."""
        for _ in range(_DUMP_TRIES):
            try:
                found = self._exchange(_RTM_GETADDR, _NLM_F_DUMP, _ADDRESS.pack(0, 0, 0, 0, 0))
                break
            except InterruptedError:
                continue
        else:
            raise OSError(errno.EBUSY, "the addresses changed in each attempt")
        addresses: list[Address] = []
        for body in found:
            family, prefix, flags, scope, of = _ADDRESS.unpack_from(body)
            attributes = _attributes(body[_ADDRESS.size :])
            if len(attributes.get(_IFA_FLAGS, b"")) == 4:
                flags = struct.unpack("=I", attributes[_IFA_FLAGS])[0]
            if of == index and scope == 0 and flags & _IFA_F_PERMANENT:
                far = attributes.get(_IFA_ADDRESS, b"")
                local = attributes.get(_IFA_LOCAL, far)
                addresses.append(
                    [family, prefix, flags & _IFA_F_NOPREFIXROUTE, local, far, attributes.get(_IFA_BROADCAST, b"")]
                )
        return addresses

    def add_address(self, index: int, address: Address) -> None:
        """Of `global_addresses`; one that is there already is fine."""
        family, prefix, flags, local, far, broadcast = address
        assert isinstance(flags, int) and isinstance(local, bytes) and isinstance(far, bytes)
        assert isinstance(broadcast, bytes)
        flags |= _IFA_F_NODAD if family == AF_INET6 else 0  # it was somebody's, and nobody else's, a moment ago
        body = _ADDRESS.pack(family, prefix, flags & 0xFF, 0, index)
        body += _attribute(_IFA_LOCAL, local) + _attribute(_IFA_ADDRESS, far)
        body += _attribute(_IFA_FLAGS, struct.pack("=I", flags))
        if broadcast:
            body += _attribute(_IFA_BROADCAST, broadcast)
        self._exchange(_RTM_NEWADDR, _NLM_F_ACK | _NLM_F_CREATE | _NLM_F_REPLACE, body)

    def _exchange(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        """Bodies of the answers; OSError is the kernel's verdict, InterruptedError of a dump that changed meanwhile."""
        self._sequence += 1
        length = _HEADER.size + len(body)
        self.sock.send(_HEADER.pack(length, kind, flags | _NLM_F_REQUEST, self._sequence, 0) + body)
        found: list[bytes] = []
        changed = False
        while True:
            data = self.sock.recv(_RECEIVE_BYTES)
            while len(data) >= _HEADER.size:
                length, answer, marks, sequence, _ = _HEADER.unpack_from(data)
                content, data = data[_HEADER.size : length], data[length + -length % 4 :]
                if sequence != self._sequence:
                    continue
                changed = changed or bool(marks & _NLM_F_DUMP_INTR)
                if answer in (_NLMSG_ERROR, _NLMSG_DONE):
                    code = -struct.unpack_from("=i", content)[0] if len(content) >= 4 else 0
                    if code:
                        raise OSError(code, os.strerror(code))
                    if changed:
                        raise InterruptedError(errno.EINTR, "a dump was interrupted")
                    return found
                found.append(content)
                if not flags & (_NLM_F_DUMP | _NLM_F_ACK):
                    return found


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _KIND_MASK] = data[_ATTRIBUTE.size : length]
        data = data[length + -length % 4 :]
    return found
