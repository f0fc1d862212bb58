"""Port-forward on each protocol, without a socket: bytes in, events of forwards out.

A forward is one TCP connection into the pod, with a number of ours. On SPDY (plain, or tunnelled through WebSocket) a
client opens any number of them, each as a pair of streams: an error stream, which carries text when it failed, and a
data stream. On plain WebSocket there is one for each port of the request, from the beginning to the end.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from websockets.frames import CloseCode

from crishim.streaming import spdy, spdy_events, websocket
from crishim.streaming.channels import BadMessage, ChannelCodec, ChannelData
from crishim.streaming.exec_channels import Left
from crishim.streaming.spdy_frames import ResetStatus

MAX_WEBSOCKET_PORTS = 100
_ERROR_TEXT_BYTES = 4096
_REQUEST_ID_CHARS = 128


@dataclass(frozen=True, slots=True)
class ForwardOpened:
    """Connect to a port."""

    forward: int
    port: int


@dataclass(frozen=True, slots=True)
class ForwardInput:
    """Bytes for the pod."""

    forward: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ForwardInputEnded:
    """No more bytes for the pod."""

    forward: int


@dataclass(frozen=True, slots=True)
class ForwardReset:
    """The client wants no more of it."""

    forward: int


ForwardEvent = ForwardOpened | ForwardInput | ForwardInputEnded | ForwardReset | Left


class Forwards(Protocol):
    """All forwards of one connection."""

    @property
    def closed(self) -> bool:
        """Whether nothing more can be sent."""
        ...

    def start(self) -> list[ForwardEvent]:
        """The upgrade was answered."""
        ...

    def receive(self, data: bytes, now: float) -> list[ForwardEvent]:
        """What these bytes of the client complete; `now` is the time in seconds of any steady clock."""
        ...

    def send(self, forward: int, data: bytes) -> None:
        """Bytes of the pod; dropped when the client does not take them any more."""
        ...

    def end(self, forward: int) -> None:
        """The pod sends no more; the client may still."""
        ...

    def fail(self, forward: int, text: str) -> None:
        """This forward came to nothing; the text is for the user."""
        ...

    def reset(self, forward: int) -> None:
        """This forward is cut in both directions."""
        ...

    def expire(self, before: float) -> None:
        """Refuse what the client began before this time and did not complete."""
        ...

    def finish(self) -> None:
        """Nothing can be sent after it."""
        ...

    def take_output(self) -> list[bytes]:
        """What is to be sent, in order."""
        ...


@dataclass(slots=True)
class _Pair:
    """Streams of a forward that is being opened; 0 is not there yet."""

    began: float
    port: int
    error: int = 0
    data: int = 0


class SpdyForwards:
    """Pairs of streams; a forward's number is the id of its data stream."""

    def __init__(self) -> None:
        self._spdy = spdy.Connection()
        self._opening: dict[str, _Pair] = {}
        #: data stream to error stream, while either direction lasts
        self._errors: dict[int, int] = {}

    @property
    def closed(self) -> bool:
        """Whether nothing more can be sent."""
        return self._spdy.closed

    def start(self) -> list[ForwardEvent]:
        """Nothing is said before the client opens a stream."""
        return []

    def receive(self, data: bytes, now: float) -> list[ForwardEvent]:
        """What these bytes of the client complete."""
        events: list[ForwardEvent] = []
        for event in self._spdy.receive(data):
            self._take(event, now, events)
        return events

    def _take(self, event: spdy_events.Event, now: float, events: list[ForwardEvent]) -> None:
        if isinstance(event, spdy_events.DataReceived):
            if event.stream_id in self._errors:
                if event.data:
                    events.append(ForwardInput(event.stream_id, event.data))
                if event.fin:
                    events.append(ForwardInputEnded(event.stream_id))
                    self._forget_if_over(event.stream_id)
            elif event.data:
                # clients wait for our answer to both streams of a pair, so this is none
                self._refuse_stream(event.stream_id, "data came before both streams were open")
        elif isinstance(event, spdy_events.StreamOpened):
            self._open(event, now, events)
        elif isinstance(event, spdy_events.StreamReset):
            if self._errors.pop(event.stream_id, None) is not None:
                events.append(ForwardReset(event.stream_id))
            else:
                self._refuse_stream(event.stream_id, "a stream was reset before the other was opened")
        elif isinstance(event, spdy_events.GoneAway):
            events.append(Left())
        elif isinstance(event, spdy_events.ProtocolError):
            events.append(Left(event.message))

    def _open(self, event: spdy_events.StreamOpened, now: float, events: list[ForwardEvent]) -> None:
        kind, port = event.headers.get("streamtype"), _port(event.headers.get("port", ""))
        request = event.headers.get("requestid", "")
        if kind not in ("error", "data") or port is None or len(request) > _REQUEST_ID_CHARS:
            self._spdy.reset(event.stream_id, ResetStatus.CANCEL)
            return
        # a client of old opens the error stream, then the data stream, and names no request
        key = request or str(event.stream_id - (2 if kind == "data" else 0))
        pair = self._opening.setdefault(key, _Pair(now, port))
        if (pair.error if kind == "error" else pair.data) or pair.port != port:
            self._spdy.reset(event.stream_id, ResetStatus.CANCEL)
            self._refuse(key, f"request {key}: two streams of type {kind}, or two ports")
            return
        self._spdy.reply(event.stream_id)
        if kind == "error":
            pair.error = event.stream_id
        else:
            pair.data = event.stream_id
        if pair.error and pair.data:
            del self._opening[key]
            self._errors[pair.data] = pair.error
            events.append(ForwardOpened(pair.data, port))
            if event.fin and kind == "data":
                events.append(ForwardInputEnded(pair.data))

    def _refuse_stream(self, stream_id: int, why: str) -> None:
        """Refuse the pair that is being opened and has this stream, if there is one."""
        for key, pair in self._opening.items():
            if stream_id in (pair.data, pair.error):
                self._refuse(key, f"request {key}: {why}")
                return

    def _refuse(self, key: str, text: str) -> None:
        pair = self._opening.pop(key)
        if pair.error:
            self._spdy.send_data(pair.error, text.encode("utf-8", "replace")[:_ERROR_TEXT_BYTES], fin=True)
        if pair.data:
            self._spdy.reset(pair.data, ResetStatus.CANCEL)

    def send(self, forward: int, data: bytes) -> None:
        """Bytes of the pod."""
        self._spdy.send_data(forward, data)

    def end(self, forward: int) -> None:
        """The pod sends no more: the end of the data, and of the error stream without a text."""
        self._spdy.send_data(forward, b"", fin=True)
        self._spdy.send_data(self._errors.get(forward, 0), b"", fin=True)
        self._forget_if_over(forward)

    def _forget_if_over(self, forward: int) -> None:
        if self._spdy.is_over(forward):
            self._errors.pop(forward, None)

    def fail(self, forward: int, text: str) -> None:
        """A text on the error stream, and no data."""
        message = text.encode("utf-8", "replace")[:_ERROR_TEXT_BYTES]
        self._spdy.send_data(self._errors.pop(forward, 0), message, fin=True)
        self._spdy.send_data(forward, b"", fin=True)

    def reset(self, forward: int) -> None:
        """Both directions end, without a text: a text would make kubectl end every forward of the connection."""
        self._spdy.send_data(self._errors.pop(forward, 0), b"", fin=True)
        self._spdy.reset(forward, ResetStatus.INTERNAL_ERROR)

    def expire(self, before: float) -> None:
        """Refuse pairs that are not complete."""
        for key in [key for key, pair in self._opening.items() if pair.began < before]:
            self._refuse(key, f"request {key}: the second stream did not come in time")

    def finish(self) -> None:
        """Say that it is over."""
        if not self._spdy.closed:
            self._spdy.go_away()

    def take_output(self) -> list[bytes]:
        """What is to be sent, in order."""
        return self._spdy.take_output()


class TunnelledForwards(SpdyForwards):
    """The bytes of SPDY as binary messages of WebSocket, whose borders mean nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._socket = websocket.WebSocket()

    def receive(self, data: bytes, now: float) -> list[ForwardEvent]:
        """What these bytes of the client complete."""
        events: list[ForwardEvent] = []
        for event in self._socket.receive(data):
            if isinstance(event, websocket.Piece):
                events += super().receive(event.data, now)
            elif isinstance(event, websocket.Closed):
                events.append(Left(event.problem))
        return events

    def take_output(self) -> list[bytes]:
        """What is to be sent, in order."""
        inner = b"".join(super().take_output())
        if inner:
            self._socket.send(inner)
        if self.closed:
            self._socket.close()
        return self._socket.take_output()


class WebSocketForwards:
    """Channels 2i (data) and 2i + 1 (error) for the i-th port; a forward's number is i."""

    def __init__(self, ports: Sequence[int], protocol: str) -> None:
        """ports: at most MAX_WEBSOCKET_PORTS; protocol: "" when the client named none, which is binary."""
        self._socket = websocket.WebSocket()
        self._codec = ChannelCodec(protocol)
        self._ports = ports
        self._open = set(range(len(ports)))

    @property
    def closed(self) -> bool:
        """Whether nothing more can be sent."""
        return self._socket.closed

    def start(self) -> list[ForwardEvent]:
        """Each channel begins with its port, so that the client knows which is which."""
        for number, port in enumerate(self._ports):
            for channel in (2 * number, 2 * number + 1):
                self._send(channel, struct.pack("<H", port))
        return [ForwardOpened(number, port) for number, port in enumerate(self._ports)]

    def receive(self, data: bytes, now: float) -> list[ForwardEvent]:
        """What these bytes of the client complete."""
        events: list[ForwardEvent] = []
        for event in self._socket.receive(data):
            if isinstance(event, websocket.Closed):
                events.append(Left(event.problem))
            elif isinstance(event, websocket.Piece):
                try:
                    message = self._codec.decode(event.data, last=event.last)
                except BadMessage as error:
                    self._socket.close(CloseCode.PROTOCOL_ERROR, str(error))
                    events.append(Left(str(error)))
                    break
                if isinstance(message, ChannelData) and not message.channel % 2 and message.channel // 2 in self._open:
                    events.append(ForwardInput(message.channel // 2, message.data))
        return events

    def send(self, forward: int, data: bytes) -> None:
        """Bytes of the pod."""
        if forward in self._open:
            self._send(2 * forward, data)

    def end(self, forward: int) -> None:
        """The pod sends no more. The protocol cannot say so of one channel: the last one ends the connection."""
        self._open.discard(forward)
        if not self._open:
            self._socket.close()

    def fail(self, forward: int, text: str) -> None:
        """A text on the error channel."""
        if forward in self._open:
            self._send(2 * forward + 1, text.encode("utf-8", "replace")[:_ERROR_TEXT_BYTES])
        self.end(forward)

    def reset(self, forward: int) -> None:
        """As the end: there is no other way to say it."""
        self.end(forward)

    def expire(self, before: float) -> None:
        """Nothing is opened late here."""

    def finish(self) -> None:
        """Say that it is over."""
        self._socket.close()

    def take_output(self) -> list[bytes]:
        """What is to be sent, in order."""
        return self._socket.take_output()

    def _send(self, channel: int, data: bytes) -> None:
        self._socket.send(self._codec.encode(channel, data), text=self._codec.is_text)


def _port(text: str) -> int | None:
    """A decimal port number; None for what is none."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        return None
    port = int(text)
    return port if 1 <= port <= 65535 else None
