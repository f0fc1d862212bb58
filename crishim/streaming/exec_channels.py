"""The channels of one exec or attach session on each protocol, without a socket: bytes in, session events out.

Whatever the protocol, the server sees what the client types, when it stops, how large its terminal is, and when it
leaves; and it sends output and, once, how the session ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from websockets.frames import CloseCode

from crishim.model.session import Ending
from crishim.streaming import spdy, spdy_events, websocket
from crishim.streaming.channels import (
    STREAM_TYPES,
    BadMessage,
    Channel,
    ChannelClosed,
    ChannelCodec,
    ChannelData,
    Resized,
    ResizeDecoder,
    status_message,
)
from crishim.streaming.spdy_frames import ResetStatus


@dataclass(frozen=True, slots=True)
class Ready:
    """All channels of the session are there."""


@dataclass(frozen=True, slots=True)
class Input:
    """Bytes for stdin."""

    data: bytes


@dataclass(frozen=True, slots=True)
class InputEnded:
    """No more bytes for stdin."""


@dataclass(frozen=True, slots=True)
class Left:
    """The client is gone, or broke the protocol when there is a problem; nothing follows."""

    problem: str | None = None


SessionEvent = Ready | Input | InputEnded | Resized | Left


class ExecChannels(Protocol):
    """One session on one protocol."""

    def start(self) -> list[SessionEvent]:
        """The upgrade was answered."""
        ...

    def receive(self, data: bytes) -> list[SessionEvent]:
        """What these bytes of the client complete."""
        ...

    def send_output(self, channel: Channel, data: bytes) -> None:
        """A piece of STDOUT or STDERR; dropped when the client does not want it."""
        ...

    def finish(self, ending: Ending) -> None:
        """How it ended; nothing can be sent after it."""
        ...

    def take_output(self) -> list[bytes]:
        """What is to be sent, in order."""
        ...


def wanted_channels(*, tty: bool, stdin: bool, stdout: bool, stderr: bool, resizes: bool) -> frozenset[Channel]:
    """The channels of a request; resizes: whether the client's protocol has the one for sizes."""
    wanted = {Channel.ERROR}
    if stdin:
        wanted.add(Channel.STDIN)
    if stdout:
        wanted.add(Channel.STDOUT)
    if stderr and not tty:
        wanted.add(Channel.STDERR)
    if tty and resizes:
        wanted.add(Channel.RESIZE)
    return frozenset(wanted)


class SpdyChannels:
    """A stream per channel, opened by the client in any order."""

    def __init__(self, wanted: frozenset[Channel], protocol: str) -> None:
        self._spdy = spdy.Connection()
        self._wanted = wanted
        self._protocol = protocol
        self._streams: dict[Channel, int] = {}
        self._channels: dict[int, Channel] = {}
        self._sizes = ResizeDecoder()

    def start(self) -> list[SessionEvent]:
        """Nothing is said before the client opens its streams."""
        return []

    def receive(self, data: bytes) -> list[SessionEvent]:
        """What these bytes of the client complete."""
        events: list[SessionEvent] = []
        for event in self._spdy.receive(data):
            self._take(event, events)
        return events

    def _take(self, event: spdy_events.Event, events: list[SessionEvent]) -> None:
        if isinstance(event, spdy_events.DataReceived):
            channel = self._channels.get(event.stream_id)
            if channel is Channel.STDIN:
                if event.data:
                    events.append(Input(event.data))
                if event.fin:
                    events.append(InputEnded())
            elif channel is Channel.RESIZE:
                events += self._sizes.feed(event.data)
        elif isinstance(event, spdy_events.StreamOpened):
            self._open(event, events)
        elif isinstance(event, spdy_events.StreamReset):
            if self._channels.get(event.stream_id) is Channel.STDIN:
                events.append(InputEnded())
        elif isinstance(event, spdy_events.GoneAway):
            events.append(Left())
        elif isinstance(event, spdy_events.ProtocolError):
            events.append(Left(event.message))

    def _open(self, event: spdy_events.StreamOpened, events: list[SessionEvent]) -> None:
        channel = STREAM_TYPES.get(event.headers.get("streamtype", ""))
        if channel is None or channel not in self._wanted or channel in self._streams:
            self._spdy.reset(event.stream_id, ResetStatus.CANCEL)
            return
        self._streams[channel] = event.stream_id
        self._channels[event.stream_id] = channel
        self._spdy.reply(event.stream_id)
        if len(self._streams) == len(self._wanted):
            events.append(Ready())
        if event.fin and channel is Channel.STDIN:
            events.append(InputEnded())

    def send_output(self, channel: Channel, data: bytes) -> None:
        """A piece of STDOUT or STDERR."""
        if channel in self._streams:
            self._spdy.send_data(self._streams[channel], data)

    def finish(self, ending: Ending) -> None:
        """Ends of all streams, the status on the last but one; clients take the reset of none of them."""
        for channel in (Channel.STDOUT, Channel.STDERR, Channel.ERROR, Channel.STDIN, Channel.RESIZE):
            if channel in self._streams:
                text = status_message(ending, self._protocol) if channel is Channel.ERROR else b""
                self._spdy.send_data(self._streams[channel], text, fin=True)
        if not self._spdy.closed:
            self._spdy.go_away()

    def take_output(self) -> list[bytes]:
        """What is to be sent, in order."""
        return self._spdy.take_output()


class WebSocketChannels:
    """A number per channel, before each message."""

    def __init__(self, wanted: frozenset[Channel], protocol: str) -> None:
        """protocol: "" when the client named none, which is the oldest."""
        self._socket = websocket.WebSocket()
        self._wanted = wanted
        self._protocol = protocol or "channel.k8s.io"
        self._codec = ChannelCodec(self._protocol)
        self._sizes = ResizeDecoder()

    def start(self) -> list[SessionEvent]:
        """An empty message on the first channel that we write tells the client that we are here."""
        first = min(self._wanted & {Channel.STDOUT, Channel.STDERR, Channel.ERROR})
        self._send(first, b"")
        return [Ready()]

    def receive(self, data: bytes) -> list[SessionEvent]:
        """What these bytes of the client complete."""
        events: list[SessionEvent] = []
        for event in self._socket.receive(data):
            if isinstance(event, websocket.Closed):
                events.append(Left(event.problem))
            elif isinstance(event, websocket.Piece):
                try:
                    self._take(self._codec.decode(event.data, last=event.last), events)
                except BadMessage as error:
                    self._socket.close(CloseCode.PROTOCOL_ERROR, str(error))
                    events.append(Left(str(error)))
                    break
        return events

    def _take(self, message: ChannelData | ChannelClosed | None, events: list[SessionEvent]) -> None:
        if isinstance(message, ChannelClosed):
            if message.channel == Channel.STDIN:
                events.append(InputEnded())
        elif message is not None and message.channel in self._wanted:
            if message.channel == Channel.STDIN:
                events.append(Input(message.data))
            elif message.channel == Channel.RESIZE:
                events += self._sizes.feed(message.data)

    def send_output(self, channel: Channel, data: bytes) -> None:
        """A piece of STDOUT or STDERR."""
        if channel in self._wanted:
            self._send(channel, data)

    def finish(self, ending: Ending) -> None:
        """The status, when this protocol has one to say, and the closing handshake."""
        text = status_message(ending, self._protocol)
        if text:
            self._send(Channel.ERROR, text)
        self._socket.close()

    def take_output(self) -> list[bytes]:
        """What is to be sent, in order."""
        return self._socket.take_output()

    def _send(self, channel: Channel, data: bytes) -> None:
        self._socket.send(self._codec.encode(channel, data), text=self._codec.is_text)
