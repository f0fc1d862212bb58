"""The channels of exec, attach and port-forward as values: which protocol is spoken, and what its messages say.

Exec and attach have five channels: stdin, stdout, stderr, error (how it ended) and resize. On SPDY each is a stream, on
WebSocket a number before each message. Source: k8s.io/apimachinery remotecommand constants, KEP-4006.
"""

from __future__ import annotations

import base64
import binascii
import enum
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from crishim.model.session import Ending, Exited, Failed

CLOSE_SIGNAL = 255

SPDY_EXEC_PROTOCOLS = ("v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io")
SPDY_WITHOUT_RESIZE = ("v2.channel.k8s.io", "channel.k8s.io")
SPDY_FORWARD_PROTOCOLS = ("portforward.k8s.io",)
WEBSOCKET_EXEC_PROTOCOLS = (
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
)
TUNNEL_PROTOCOL = "SPDY/3.1+portforward.k8s.io"
WEBSOCKET_FORWARD_PROTOCOLS = (TUNNEL_PROTOCOL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io")


class Channel(enum.IntEnum):
    """Channels of exec and attach; the value is WebSocket's number."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    ERROR = 3
    RESIZE = 4


#: header `streamtype` of SPDY
STREAM_TYPES = {channel.name.lower(): channel for channel in Channel}


def choose(offered: Sequence[str], known: Sequence[str]) -> str | None:
    """The client's first protocol that we know, None without any."""
    return next((each for each in offered if each in known), None)


# -- how a session ended


def status_message(ending: Ending, protocol: str) -> bytes:
    """What the error channel says: a Status of the API as JSON from v4 on, before that a sentence or nothing."""
    if protocol.startswith(("v4.", "v5.")):
        return json.dumps(_status(ending), separators=(",", ":")).encode()
    return _sentence(ending).encode()


def _sentence(ending: Ending) -> str:
    if isinstance(ending, Failed):
        return f"Internal error occurred: {ending.message}"
    if ending.code:
        return f"command terminated with non-zero exit code: exit status {ending.code}"
    return ""


def _status(ending: Ending) -> dict[str, object]:
    if isinstance(ending, Exited) and not ending.code:
        return {"metadata": {}, "status": "Success"}
    status: dict[str, object] = {"metadata": {}, "status": "Failure", "message": _sentence(ending)}
    if isinstance(ending, Exited):
        causes = [{"reason": "ExitCode", "message": str(ending.code)}]
        return status | {"reason": "NonZeroExitCode", "details": {"causes": causes}}
    causes = [{"message": ending.message}]
    return status | {"reason": "InternalError", "details": {"causes": causes}, "code": 500}


# -- resize


@dataclass(frozen=True, slots=True)
class Resized:
    """The user's terminal has this size now."""

    rows: int
    columns: int


class ResizeDecoder:
    """Sizes out of a stream of JSON objects {"Width": 120, "Height": 40}; what is not one ends the decoding."""

    _MAX_BYTES = 4096
    _MAX_CELLS = 0xFFFF
    _SPACE = re.compile(r"\s*")

    def __init__(self) -> None:
        self._text = ""
        self._broken = False
        self._decoder = json.JSONDecoder()

    def feed(self, data: bytes) -> Iterator[Resized]:
        """The sizes that these bytes complete; sizes below 1 are left out."""
        if self._broken:
            return
        text = self._text + data.decode("latin-1")  # every byte is a character, so a cut one can wait for its rest
        at = self._after_space(text, 0)
        while at < len(text):
            try:
                value, end = self._decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                self._broken = len(text) - at > self._MAX_BYTES or text[at] != "{"
                break
            at = self._after_space(text, end)
            size = self._size(value)
            if size is not None:
                yield size
        self._text = "" if self._broken else text[at:]

    def _after_space(self, text: str, at: int) -> int:
        match = self._SPACE.match(text, at)
        return match.end() if match else at

    def _size(self, value: object) -> Resized | None:
        if not isinstance(value, dict):
            return None
        found = {str(key).lower(): cells for key, cells in value.items()}
        rows, columns = found.get("height"), found.get("width")
        if type(rows) is not int or type(columns) is not int:
            return None
        if not (1 <= rows <= self._MAX_CELLS and 1 <= columns <= self._MAX_CELLS):
            return None
        return Resized(rows, columns)


# -- messages of WebSocket


class BadMessage(Exception):
    """A message that the protocol does not have; the connection has to end."""


@dataclass(frozen=True, slots=True)
class ChannelData:
    """A piece of a channel."""

    channel: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    """The client ended a channel (v5)."""

    channel: int


class ChannelCodec:
    """Messages of one WebSocket connection; pieces of a message that came in fragments are passed on as they come."""

    def __init__(self, protocol: str) -> None:
        self.is_text = "base64" in protocol
        self._closes = protocol.startswith("v5.")
        self._channel: int | None = None
        #: of the message under way: base64 characters that do not make three bytes yet, or a close signal
        self._rest = b""

    def encode(self, channel: int, data: bytes) -> bytes:
        """A message of `data` on a channel."""
        if self.is_text:
            return bytes((ord("0") + channel,)) + base64.b64encode(data)
        return bytes((channel,)) + data

    def decode(self, data: bytes, *, last: bool) -> ChannelData | ChannelClosed | None:
        """A piece of a message, `last` with its final one; None for an empty message or piece.

        BadMessage when base64 or a close signal is malformed.
        """
        if self._channel is None and data:
            self._channel = data[0] - ord("0") if self.is_text else data[0]
            data = data[1:]
        channel = self._channel
        if last:
            self._channel = None
        if channel is None:
            return None
        if channel == CLOSE_SIGNAL and self._closes:
            return self._closed(data, last)
        if self.is_text:
            data = self._unbase64(data, last)
        return ChannelData(channel, data) if data else None

    def _closed(self, data: bytes, last: bool) -> ChannelClosed | None:
        self._rest += data
        if len(self._rest) > 1 or (last and not self._rest):
            raise BadMessage("a close signal names exactly one channel")
        if not last:
            return None
        signal, self._rest = self._rest, b""
        return ChannelClosed(signal[0])

    def _unbase64(self, data: bytes, last: bool) -> bytes:
        data = self._rest + data
        whole = len(data) if last else len(data) // 4 * 4
        self._rest = data[whole:]
        try:
            return base64.b64decode(data[:whole], validate=True)
        except binascii.Error:
            raise BadMessage("a message is not base64") from None
