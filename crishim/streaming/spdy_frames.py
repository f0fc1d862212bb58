"""Frames of SPDY/3.1 as bytes: their heads, their numbers, and how each is packed.

A control frame is 1|version(15) type(16) flags(8)|length(24) payload, a data frame 0|stream(31) flags(8)|length(24)
payload; all integers are big-endian. Source: SPDY protocol draft 3.1, section 2.2.
"""

from __future__ import annotations

import enum
import struct

VERSION = 3
CONTROL_BIT = 0x80000000
STREAM_MASK = 0x7FFFFFFF
LENGTH_MASK = 0xFFFFFF

HEAD = struct.Struct(">II")
#: SYN_STREAM before its header block: stream, associated stream, priority in the top 3 bits, slot
SYN_STREAM_HEAD = struct.Struct(">IIBB")
WORD = struct.Struct(">I")
TWO_WORDS = struct.Struct(">II")

FIN = 0x01
UNIDIRECTIONAL = 0x02


class FrameType(enum.IntEnum):
    """Types of control frames."""

    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


class ResetStatus(enum.IntEnum):
    """Why a stream is reset (RST_STREAM)."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    UNSUPPORTED_VERSION = 4
    CANCEL = 5
    INTERNAL_ERROR = 6
    FLOW_CONTROL_ERROR = 7
    STREAM_IN_USE = 8
    STREAM_ALREADY_CLOSED = 9


class GoAwayStatus(enum.IntEnum):
    """Why a connection ends (GOAWAY)."""

    OK = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


def control(kind: FrameType, payload: bytes, flags: int = 0) -> bytes:
    """A control frame."""
    return HEAD.pack(CONTROL_BIT | VERSION << 16 | kind, flags << 24 | len(payload)) + payload


def data_head(stream_id: int, length: int, fin: bool) -> bytes:
    """The head of a data frame; at most 2**24 - 1 bytes follow it."""
    return HEAD.pack(stream_id, (FIN if fin else 0) << 24 | length)


def syn_stream(stream_id: int, block: bytes, flags: int = 0) -> bytes:
    """Open a stream; `block` is a deflated header block."""
    return control(FrameType.SYN_STREAM, SYN_STREAM_HEAD.pack(stream_id, 0, 0, 0) + block, flags)


def with_headers(kind: FrameType, stream_id: int, block: bytes, flags: int = 0) -> bytes:
    """SYN_REPLY or HEADERS."""
    return control(kind, WORD.pack(stream_id) + block, flags)


def rst_stream(stream_id: int, status: int) -> bytes:
    """Both directions of a stream end."""
    return control(FrameType.RST_STREAM, TWO_WORDS.pack(stream_id, status))


def ping(ping_id: int) -> bytes:
    """A ping, or the answer to one."""
    return control(FrameType.PING, WORD.pack(ping_id))


def goaway(last_stream_id: int, status: int) -> bytes:
    """No more streams are taken after this one."""
    return control(FrameType.GOAWAY, TWO_WORDS.pack(last_stream_id, status))
