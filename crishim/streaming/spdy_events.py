"""What one SPDY/3.1 connection tells its owner, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from crishim.streaming.spdy_headers import Headers


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer opened a stream; with `fin` it will send nothing on it."""

    stream_id: int
    headers: Headers
    fin: bool


@dataclass(frozen=True, slots=True)
class StreamReplied:
    """The peer accepted a stream of ours."""

    stream_id: int
    headers: Headers
    fin: bool


@dataclass(frozen=True, slots=True)
class HeadersReceived:
    """Further headers of an open stream."""

    stream_id: int
    headers: Headers
    fin: bool


@dataclass(frozen=True, slots=True)
class DataReceived:
    """A piece of a stream, of any size; `fin` is its end."""

    stream_id: int
    data: bytes
    fin: bool


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The peer ended both directions of an open stream."""

    stream_id: int
    status: int


@dataclass(frozen=True, slots=True)
class PingReceived:
    """A ping of the peer, answered already, or the answer to ours."""

    ping_id: int
    ours: bool


@dataclass(frozen=True, slots=True)
class SettingsReceived:
    """Settings by their numbers."""

    settings: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class WindowUpdated:
    """The peer takes `delta` bytes more on a stream, or on the connection (stream 0)."""

    stream_id: int
    delta: int


@dataclass(frozen=True, slots=True)
class GoneAway:
    """The peer opens and takes no more streams."""

    last_stream_id: int
    status: int


@dataclass(frozen=True, slots=True)
class ProtocolError:
    """The peer broke the protocol; nothing follows."""

    message: str


Event = (
    StreamOpened
    | StreamReplied
    | HeadersReceived
    | DataReceived
    | StreamReset
    | PingReceived
    | SettingsReceived
    | WindowUpdated
    | GoneAway
    | ProtocolError
)
