"""Netlink messages as bytes: headers, attributes, acknowledgements. What rtnetlink and nfnetlink have in common.

Pure: bytes in, values out. Numbers are in host order unless a name says otherwise. Beyond its scope: sockets
(`netlink_socket.py`) and what the messages mean (`rtnetlink.py`, `nftables.py`). Source: netlink(7).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLM_F_DUMP = 0x300

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_DUMP_INTR = 0x10
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1

_NLA_F_NESTED = 0x8000
_NLA_TYPE_MASK = 0x3FFF

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")


@dataclass(frozen=True, slots=True)
class Request:
    """A message before it has a sequence number. `what` names the operation in errors."""

    what: str
    type: int
    flags: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """A message as received; `body` is what follows the netlink header."""

    type: int
    flags: int
    sequence: int
    body: bytes

    @property
    def is_done(self) -> bool:
        """End of a dump."""
        return self.type == _NLMSG_DONE

    @property
    def is_interrupted(self) -> bool:
        """The dump may miss objects, because they changed while it was made."""
        return bool(self.flags & _NLM_F_DUMP_INTR)


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """Answer to one request: `errno` 0 is success; `text` is the kernel's own explanation, often empty."""

    errno: int
    text: str


def encode(request: Request, sequence: int) -> bytes:
    """The request with its header, padded to 4 bytes so that messages can be joined."""
    length = _HEADER.size + len(request.body)
    header = _HEADER.pack(length, request.type, request.flags | NLM_F_REQUEST, sequence, 0)
    return header + request.body + bytes(-length % 4)


def decode(datagram: bytes) -> Iterator[Message]:
    """Messages of one datagram. ValueError when a length does not fit, which the kernel never sends."""
    offset = 0
    while offset < len(datagram):
        if len(datagram) - offset < _HEADER.size:
            raise ValueError(f"{len(datagram) - offset} bytes are too few for a netlink header")
        length, kind, flags, sequence, _ = _HEADER.unpack_from(datagram, offset)
        if not _HEADER.size <= length <= len(datagram) - offset:
            raise ValueError(f"a netlink message claims {length} of {len(datagram) - offset} bytes")
        yield Message(kind, flags, sequence, datagram[offset + _HEADER.size : offset + length])
        offset += length + -length % 4


def acknowledgement(message: Message) -> Acknowledgement | None:
    """The verdict in a message of type NLMSG_ERROR or at the end of a dump; None for any other message.

    The error text is in attributes after the echoed request, which NETLINK_CAP_ACK cuts down to its header.
    """
    if message.type == _NLMSG_DONE:
        return Acknowledgement(-struct.unpack_from("=i", message.body)[0] if len(message.body) >= 4 else 0, "")
    if message.type != _NLMSG_ERROR:
        return None
    if len(message.body) < 4 + _HEADER.size:
        raise ValueError(f"an acknowledgement of {len(message.body)} bytes")
    (code,) = struct.unpack_from("=i", message.body)
    text = ""
    if message.flags & _NLM_F_ACK_TLVS:
        (echoed,) = struct.unpack_from("=I", message.body, 4)
        offset = 4 + (_HEADER.size if message.flags & _NLM_F_CAPPED else echoed + -echoed % 4)
        found = attributes(message.body[offset:]).get(_NLMSGERR_ATTR_MSG, b"")
        text = found.rstrip(b"\0").decode(errors="replace")
    return Acknowledgement(-code, text)


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to 4 bytes."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute whose value is further attributes."""
    return attribute(kind | _NLA_F_NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """A NUL-terminated string attribute."""
    return attribute(kind, value.encode() + b"\0")


def u8(kind: int, value: int) -> bytes:
    """An attribute of one byte."""
    return attribute(kind, struct.pack("=B", value))


def u32(kind: int, value: int) -> bytes:
    """An attribute of 32 bits in the machine's order."""
    return attribute(kind, struct.pack("=I", value))


def be32(kind: int, value: int) -> bytes:
    """A signed or unsigned 32-bit number in network order, as nf_tables wants every number."""
    return attribute(kind, struct.pack(">I", value & 0xFFFFFFFF))


def attributes(data: bytes) -> dict[int, bytes]:
    """Values by kind, flags removed; the last of a kind wins. ValueError when a length does not fit."""
    return dict(attribute_list(data))


def attribute_list(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(kind, value) in order, for lists whose members share one kind."""
    offset = 0
    while len(data) - offset >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if not _ATTRIBUTE.size <= length <= len(data) - offset:
            raise ValueError(f"a netlink attribute claims {length} of {len(data) - offset} bytes")
        yield kind & _NLA_TYPE_MASK, data[offset + _ATTRIBUTE.size : offset + length]
        offset += length + -length % 4
