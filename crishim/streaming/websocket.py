"""One WebSocket connection after its handshake, without a socket: bytes in, events out (RFC 6455).

The frames themselves are those of `websockets`. It holds a whole frame before it passes it on, and clients send a
message of any size as one frame: so a frame is cut into fragments before, and memory stays bounded.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import Protocol, Side, State

_FRAGMENT_BYTES = 64 << 10
_FIN = 0x80
_MASKED = 0x80
_CONTROL = 0x08


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a message; `last` is its end."""

    data: bytes
    last: bool


@dataclass(frozen=True, slots=True)
class Pinged:
    """A ping, answered already, or a pong."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The peer ended the connection, or broke the protocol when there is a problem; nothing follows."""

    problem: str | None


Event = Piece | Pinged | Closed


class FrameCutter:
    """Rewrites a stream of client frames so that none is longer than `_FRAGMENT_BYTES`; incremental to the byte.

    What is malformed is passed on as it is, for the parser behind to refuse it.
    """

    def __init__(self) -> None:
        self._head = bytearray()
        #: of the frame under way: bytes to come until the next head or cut, and after that
        self._piece_left = 0
        self._frame_left = 0
        self._fin = False
        self._rsv_bits = 0
        self._mask = b""

    def feed(self, data: bytes) -> bytes:
        """The same bytes, with the frames cut."""
        output: list[bytes | memoryview] = []
        view = memoryview(data)
        while view:
            if self._piece_left:
                piece = view[: self._piece_left]
                self._piece_left -= len(piece)
                output.append(piece)
                view = view[len(piece) :]
                if not self._piece_left and self._frame_left:
                    self._begin_piece(Opcode.CONT, output)
            else:
                missing = self._head_bytes() - len(self._head)
                self._head += view[:missing]
                view = view[missing:]
                if len(self._head) == self._head_bytes():
                    self._take_head(output)
        return b"".join(output)

    def _head_bytes(self) -> int:
        """Length of the head, as far as it can be told from what is there."""
        if len(self._head) < 2:
            return 2
        size, masked = self._head[1] & 0x7F, self._head[1] & _MASKED
        return 2 + {126: 2, 127: 8}.get(size, 0) + (4 if masked else 0)

    def _take_head(self, output: list[bytes | memoryview]) -> None:
        first, size = self._head[0], self._head[1] & 0x7F
        length = size
        if size == 126:
            (length,) = struct.unpack_from(">H", self._head, 2)
        elif size == 127:
            (length,) = struct.unpack_from(">Q", self._head, 2)
        cut = length > _FRAGMENT_BYTES and not first & _CONTROL and bool(self._head[1] & _MASKED)
        if cut:
            self._mask = bytes(self._head[-4:])
            self._fin = bool(first & _FIN)
            self._rsv_bits = first & 0x70
            self._frame_left = length
            self._begin_piece(first & 0x0F, output)
        else:
            output.append(bytes(self._head))
            self._piece_left = min(length, _FRAGMENT_BYTES)  # what is longer was refused by its head
        self._head.clear()

    def _begin_piece(self, opcode: int, output: list[bytes | memoryview]) -> None:
        self._piece_left = min(self._frame_left, _FRAGMENT_BYTES)  # a multiple of 4, so the mask stays in step
        self._frame_left -= self._piece_left
        fin = _FIN if self._fin and not self._frame_left else 0
        head = struct.pack(">BBQ", fin | self._rsv_bits | opcode, _MASKED | 127, self._piece_left)
        output.append(head + self._mask)
        self._rsv_bits = 0


class WebSocket:
    """The server's side of one connection."""

    def __init__(self) -> None:
        self._cutter = FrameCutter()
        self._protocol = Protocol(Side.SERVER, state=State.OPEN, max_size=None)  # frames are bounded by the cutter
        self._ended = False

    @property
    def closed(self) -> bool:
        """Whether nothing more can be sent."""
        return self._protocol.state is not State.OPEN

    def receive(self, data: bytes) -> list[Event]:
        """What these bytes complete."""
        if self._ended:
            return []
        self._protocol.receive_data(self._cutter.feed(data))
        events: list[Event] = []
        for frame in self._protocol.events_received():
            assert isinstance(frame, Frame), "the handshake was done before"
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                events.append(Piece(bytes(frame.data), frame.fin))
            elif frame.opcode is Opcode.CLOSE:
                self._ended = True
                events.append(Closed(None))
            else:
                events.append(Pinged())
        if self._protocol.parser_exc is not None:
            self._ended = True
            events.append(Closed(str(self._protocol.parser_exc) or "the peer broke the protocol"))
        return events

    def send(self, data: bytes, *, text: bool = False) -> None:
        """Send a message; dropped after the end."""
        if self.closed:
            return
        if text:
            self._protocol.send_text(data)
        else:
            self._protocol.send_binary(data)

    def close(self, code: CloseCode = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Say that it is over."""
        if not self.closed:
            self._protocol.send_close(code, reason[:120])

    def take_output(self) -> list[bytes]:
        """What is to be sent, in order."""
        return [data for data in self._protocol.data_to_send() if data]
