"""One SPDY/3.1 connection without a socket: bytes in, events out; what is to be sent is taken by `take_output`.

Incremental to the byte: only the head of a frame and a control frame, which is bounded, are ever held back; the
payload of a data frame is passed on as it comes. What the peer does wrong becomes a ProtocolError value, after which
the connection is closed and ignores everything.

Windows are not waited for: the clients of Kubernetes neither send nor mind WINDOW_UPDATE, and a peer that waits for
one would hang. Theirs are checked and passed on as events.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from crishim.streaming import spdy_frames as frames
from crishim.streaming.spdy_events import (
    DataReceived,
    Event,
    GoneAway,
    HeadersReceived,
    PingReceived,
    ProtocolError,
    SettingsReceived,
    StreamOpened,
    StreamReplied,
    StreamReset,
    WindowUpdated,
)
from crishim.streaming.spdy_frames import FrameType, GoAwayStatus, ResetStatus
from crishim.streaming.spdy_headers import BadHeaders, HeaderDeflater, HeaderInflater, Headers


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer may ask of us."""

    #: payload of one control frame
    control_bytes: int = 64 << 10
    #: one header block, inflated
    header_bytes: int = 32 << 10
    headers: int = 100
    #: open at once; one more is refused
    streams: int = 1024


class _Violation(Exception):
    """Ends the connection; becomes a ProtocolError."""


class _Stream:
    """Which directions of a stream have ended."""

    __slots__ = ("local_ended", "remote_ended")

    def __init__(self, *, local_ended: bool, remote_ended: bool) -> None:
        self.local_ended = local_ended
        self.remote_ended = remote_ended


class Connection:
    """The state of one connection, on either side."""

    def __init__(self, *, client: bool = False, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._client = client
        self._deflater = HeaderDeflater()
        self._inflater = HeaderInflater(self._limits.header_bytes, self._limits.headers)
        self._streams: dict[int, _Stream] = {}
        #: highest stream ids opened by the peer and by us
        self._last_remote = 0
        self._last_local = -1 if client else 0
        self._last_ping = -1 if client else 0
        #: a head, or a control frame, that is not complete
        self._held = bytearray()
        self._needed = frames.HEAD.size
        #: of the data frame under way: bytes to come, its stream, whether it ends the stream, whether it is dropped
        self._data_left = 0
        self._data_stream = 0
        self._data_fin = False
        self._data_dropped = False
        self._output: list[bytes] = []
        #: after an error of the peer, or our GOAWAY
        self.closed = False

    # -- towards the peer

    def take_output(self) -> list[bytes]:
        """What is to be sent, in order."""
        output, self._output = self._output, []
        return output

    def is_over(self, stream_id: int) -> bool:
        """Whether both directions of a stream have ended."""
        return stream_id not in self._streams

    def open_stream(self, headers: Headers, *, fin: bool = False) -> int:
        """Open a stream and return its id."""
        self._last_local += 2
        self._streams[self._last_local] = _Stream(local_ended=fin, remote_ended=False)
        block = self._deflater.deflate(headers)
        self._output.append(frames.syn_stream(self._last_local, block, frames.FIN if fin else 0))
        return self._last_local

    def reply(self, stream_id: int, headers: Headers | None = None) -> None:
        """Accept a stream of the peer, before any data on it; one that it has reset since is left alone."""
        if stream_id not in self._streams:
            return
        block = self._deflater.deflate(headers or {})
        self._output.append(frames.with_headers(FrameType.SYN_REPLY, stream_id, block))

    def send_data(self, stream_id: int, data: bytes, *, fin: bool = False) -> None:
        """Send at most 2**24 - 1 bytes; with `fin` this direction ends. Dropped when it has ended, or the stream."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.local_ended:
            return
        self._output.append(frames.data_head(stream_id, len(data), fin))
        if data:
            self._output.append(data)
        if fin:
            stream.local_ended = True
            self._forget_if_over(stream_id, stream)

    def reset(self, stream_id: int, status: ResetStatus) -> None:
        """End both directions of a stream."""
        if self._streams.pop(stream_id, None) is not None:
            self._output.append(frames.rst_stream(stream_id, status))

    def ping(self) -> int:
        """Send a ping and return its id."""
        self._last_ping += 2
        self._output.append(frames.ping(self._last_ping))
        return self._last_ping

    def go_away(self, status: GoAwayStatus = GoAwayStatus.OK) -> None:
        """Say that it is over; must be sent last, as clients stop reading at it."""
        self._output.append(frames.goaway(self._last_remote, status))
        self.closed = True

    # -- from the peer

    def receive(self, data: bytes) -> list[Event]:
        """What these bytes complete; a ProtocolError is the last event there is."""
        events: list[Event] = []
        view = memoryview(data)
        try:
            while view and not self.closed:
                view = self._take_data(view, events) if self._data_left else self._take_frame(view, events)
        except (_Violation, BadHeaders) as error:
            events.append(ProtocolError(str(error)))
            self.go_away(GoAwayStatus.PROTOCOL_ERROR)
            self._held.clear()
        return events

    def _take_data(self, view: memoryview, events: list[Event]) -> memoryview:
        piece = view[: self._data_left]
        self._data_left -= len(piece)
        if not self._data_dropped and self._data_stream in self._streams:  # we may have reset it meanwhile
            ends = self._data_fin and not self._data_left
            events.append(DataReceived(self._data_stream, bytes(piece), ends))
            if ends:
                self._remote_ended(self._data_stream)
        return view[len(piece) :]

    def _take_frame(self, view: memoryview, events: list[Event]) -> memoryview:
        missing = self._needed - len(self._held)
        self._held += view[:missing]
        if len(self._held) == self._needed:
            self._advance(events)
        return view[missing:]

    def _advance(self, events: list[Event]) -> None:
        """A head is complete, or a control frame."""
        first, second = frames.HEAD.unpack_from(self._held)
        flags, length = second >> 24, second & frames.LENGTH_MASK
        if not first & frames.CONTROL_BIT:
            self._begin_data(first, flags, length, events)
        elif len(self._held) < frames.HEAD.size + length:
            self._check_control(first, length)
            self._needed = frames.HEAD.size + length
            return
        else:
            payload = bytes(self._held[frames.HEAD.size :])
            self._take_control(self._check_control(first, length), flags, payload, events)
        self._held.clear()
        self._needed = frames.HEAD.size

    def _begin_data(self, stream_id: int, flags: int, length: int, events: list[Event]) -> None:
        if stream_id == 0 or flags & ~frames.FIN:
            raise _Violation("a data frame has no stream, or unknown flags")
        stream = self._streams.get(stream_id)
        self._data_left, self._data_stream, self._data_fin = length, stream_id, bool(flags)
        self._data_dropped = stream is None or stream.remote_ended
        if stream is None:
            if not self._was_opened(stream_id):
                self._output.append(frames.rst_stream(stream_id, ResetStatus.INVALID_STREAM))
        elif stream.remote_ended:
            self.reset(stream_id, ResetStatus.STREAM_ALREADY_CLOSED)
            events.append(StreamReset(stream_id, ResetStatus.STREAM_ALREADY_CLOSED))
        elif not length and flags:
            events.append(DataReceived(stream_id, b"", True))
            self._remote_ended(stream_id)

    def _was_opened(self, stream_id: int) -> bool:
        """Whether it is one of the past: data may be under way when a stream is reset."""
        ours = bool(stream_id % 2) == self._client
        return stream_id <= (self._last_local if ours else self._last_remote)

    def _check_control(self, first: int, length: int) -> FrameType:
        if (first & ~frames.CONTROL_BIT) >> 16 != frames.VERSION:
            raise _Violation("a control frame is of another version than 3")
        try:
            kind = FrameType(first & 0xFFFF)
        except ValueError:
            raise _Violation(f"there is no control frame of type {first & 0xFFFF}") from None
        if length > self._limits.control_bytes:
            raise _Violation(f"a control frame has more than {self._limits.control_bytes} bytes")
        return kind

    def _take_control(self, kind: FrameType, flags: int, payload: bytes, events: list[Event]) -> None:
        if kind is FrameType.SYN_STREAM:
            self._take_syn_stream(flags, payload, events)
        elif kind is FrameType.SYN_REPLY or kind is FrameType.HEADERS:
            self._take_headers(kind, flags, payload, events)
        elif kind is FrameType.SETTINGS:
            events.append(SettingsReceived(_settings(payload)))
        elif kind is FrameType.PING:
            self._take_ping(flags, payload, events)
        else:
            self._take_two_words(kind, flags, payload, events)

    def _take_syn_stream(self, flags: int, payload: bytes, events: list[Event]) -> None:
        if len(payload) < frames.SYN_STREAM_HEAD.size or flags & ~(frames.FIN | frames.UNIDIRECTIONAL):
            raise _Violation("a SYN_STREAM is too short, or has unknown flags")
        stream_id = frames.SYN_STREAM_HEAD.unpack_from(payload)[0] & frames.STREAM_MASK
        headers = self._inflater.inflate(payload[frames.SYN_STREAM_HEAD.size :])
        if stream_id == 0:
            raise _Violation("a SYN_STREAM has no stream")
        if bool(stream_id % 2) == self._client or stream_id <= self._last_remote:
            self._streams.pop(stream_id, None)
            self._output.append(frames.rst_stream(stream_id, ResetStatus.PROTOCOL_ERROR))
            return
        self._last_remote = stream_id
        if len(self._streams) >= self._limits.streams:
            self._output.append(frames.rst_stream(stream_id, ResetStatus.REFUSED_STREAM))
            return
        fin = bool(flags & frames.FIN)
        self._streams[stream_id] = _Stream(local_ended=bool(flags & frames.UNIDIRECTIONAL), remote_ended=fin)
        events.append(StreamOpened(stream_id, headers, fin))

    def _take_headers(self, kind: FrameType, flags: int, payload: bytes, events: list[Event]) -> None:
        if len(payload) < frames.WORD.size or flags & ~frames.FIN:
            raise _Violation(f"a {kind.name} is too short, or has unknown flags")
        stream_id = frames.WORD.unpack_from(payload)[0] & frames.STREAM_MASK
        headers = self._inflater.inflate(payload[frames.WORD.size :])
        stream = self._streams.get(stream_id)
        if stream is None or stream.remote_ended:
            return
        event = StreamReplied if kind is FrameType.SYN_REPLY else HeadersReceived
        events.append(event(stream_id, headers, bool(flags)))
        if flags:
            self._remote_ended(stream_id)

    def _take_ping(self, flags: int, payload: bytes, events: list[Event]) -> None:
        if flags or len(payload) != frames.WORD.size:
            raise _Violation("a PING is malformed")
        (ping_id,) = frames.WORD.unpack(payload)
        ours = bool(ping_id % 2) == self._client
        if not ours:
            self._output.append(frames.ping(ping_id))
        events.append(PingReceived(ping_id, ours))

    def _take_two_words(self, kind: FrameType, flags: int, payload: bytes, events: list[Event]) -> None:
        if flags or len(payload) != frames.TWO_WORDS.size:
            raise _Violation(f"a {kind.name} is malformed")
        first, second = frames.TWO_WORDS.unpack(payload)
        stream_id = first & frames.STREAM_MASK
        if kind is FrameType.RST_STREAM:
            if stream_id == 0 or second == 0:
                raise _Violation("a RST_STREAM has no stream or no status")
            if self._streams.pop(stream_id, None) is not None:
                events.append(StreamReset(stream_id, second))
        elif kind is FrameType.WINDOW_UPDATE:
            if not second & frames.STREAM_MASK:
                raise _Violation("a WINDOW_UPDATE is of no bytes")
            events.append(WindowUpdated(stream_id, second & frames.STREAM_MASK))
        else:
            events.append(GoneAway(stream_id, second))

    def _remote_ended(self, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.remote_ended = True
            self._forget_if_over(stream_id, stream)

    def _forget_if_over(self, stream_id: int, stream: _Stream) -> None:
        if stream.local_ended and stream.remote_ended:
            del self._streams[stream_id]


def _settings(payload: bytes) -> Mapping[int, int]:
    """Numbers and values; each entry is flags(8)|id(24) value(32) after a count."""
    count = frames.WORD.unpack_from(payload)[0] if len(payload) >= frames.WORD.size else -1
    if len(payload) != frames.WORD.size + count * frames.TWO_WORDS.size:
        raise _Violation("a SETTINGS is malformed")
    entries = frames.TWO_WORDS.iter_unpack(payload[frames.WORD.size :])
    return {first & frames.LENGTH_MASK: value for first, value in entries}
