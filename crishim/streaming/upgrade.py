"""From the head of an HTTP request to the protocol that is spoken after it, without a socket.

Paths are /exec/TOKEN, /attach/TOKEN and /portforward/TOKEN. A client asks for an upgrade to SPDY/3.1, naming its
protocols in X-Stream-Protocol-Version, or to WebSocket, naming them in Sec-WebSocket-Protocol; the first that we know
is taken.
"""

from __future__ import annotations

import base64
import binascii
import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import h11
from websockets.utils import accept_key

from crishim.streaming.channels import (
    SPDY_EXEC_PROTOCOLS,
    SPDY_FORWARD_PROTOCOLS,
    WEBSOCKET_EXEC_PROTOCOLS,
    WEBSOCKET_FORWARD_PROTOCOLS,
    choose,
)

Headers = Sequence[tuple[bytes, bytes]]

MAX_HEAD_BYTES = 16 << 10


class Purpose(enum.Enum):
    """What a session is for; the value is the first part of its path."""

    EXEC = "exec"
    ATTACH = "attach"
    PORT_FORWARD = "portforward"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP answer that ends the connection."""

    status: int
    text: str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Upgrade:
    """The switch to another protocol; protocol is "" when a WebSocket client named none."""

    websocket: bool
    protocol: str
    headers: tuple[tuple[str, str], ...]


def target(path: bytes) -> tuple[Purpose, str] | None:
    """Purpose and token of a path, None when it has not this form."""
    parts = path.partition(b"?")[0].decode("latin-1").split("/")
    if len(parts) != 3 or parts[0] or not parts[2]:
        return None
    try:
        return Purpose(parts[1]), parts[2]
    except ValueError:
        return None


def upgrade(purpose: Purpose, headers: Headers) -> Upgrade | Refusal:
    """What to answer to a request with a valid token; header names are in lower case, as h11 has them."""
    if "upgrade" not in _tokens(headers, b"connection"):
        return Refusal(400, "the request does not ask for an upgrade of the connection")
    wanted = _tokens(headers, b"upgrade")
    if "websocket" in wanted:
        return _to_websocket(purpose, headers)
    if any("spdy/3.1" in each for each in wanted):
        return _to_spdy(purpose, headers)
    return Refusal(400, "the request asks for neither SPDY/3.1 nor WebSocket")


def _to_spdy(purpose: Purpose, headers: Headers) -> Upgrade | Refusal:
    offered = _values(headers, b"x-stream-protocol-version")
    known = SPDY_FORWARD_PROTOCOLS if purpose is Purpose.PORT_FORWARD else SPDY_EXEC_PROTOCOLS
    if not offered:
        return Refusal(400, "the request has no X-Stream-Protocol-Version")
    protocol = choose(offered, known)
    if protocol is None:
        accepted = tuple(("X-Accepted-Stream-Protocol-Versions", each) for each in known)
        return Refusal(403, "none of the offered stream protocols is known", accepted)
    head = (("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", protocol))
    return Upgrade(False, protocol, head)


def _to_websocket(purpose: Purpose, headers: Headers) -> Upgrade | Refusal:
    keys = _values(headers, b"sec-websocket-key")
    if _values(headers, b"sec-websocket-version") != ["13"]:
        return Refusal(400, "only version 13 of WebSocket is known", (("Sec-WebSocket-Version", "13"),))
    if len(keys) != 1 or not _is_key(keys[0]):
        return Refusal(400, "Sec-WebSocket-Key is missing or malformed")
    offered = _values(headers, b"sec-websocket-protocol")
    known = WEBSOCKET_FORWARD_PROTOCOLS if purpose is Purpose.PORT_FORWARD else WEBSOCKET_EXEC_PROTOCOLS
    protocol = choose(offered, known)
    if offered and protocol is None:
        return Refusal(403, "none of the offered WebSocket protocols is known")
    head = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Accept", accept_key(keys[0]))]
    if protocol:
        head.append(("Sec-WebSocket-Protocol", protocol))
    return Upgrade(True, protocol or "", tuple(head))


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False


def _values(headers: Headers, name: bytes) -> list[str]:
    """Values of a header that may stand in several lines and in lists with commas."""
    found = [part.strip() for key, value in headers if key == name for part in value.decode("latin-1").split(",")]
    return [each for each in found if each]


def _tokens(headers: Headers, name: bytes) -> list[str]:
    return [each.lower() for each in _values(headers, name)]


class Handshake:
    """One request and its answer: bytes in until there is a decision, then the bytes of the answer."""

    def __init__(self, decide: Callable[[h11.Request], Upgrade | Refusal]) -> None:
        """`decide` is called once, with the request."""
        self._decide = decide
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._request: h11.Request | None = None
        #: what was decided, None while the request is not complete
        self.decision: Upgrade | Refusal | None = None
        #: bytes of the client that followed the request
        self.rest = b""

    def receive(self, data: bytes) -> bytes:
        """Bytes of the client, b"" for its end; returns the answer once there is a decision."""
        try:
            self._http.receive_data(data)
            while True:
                event = self._http.next_event()
                if isinstance(event, h11.Request):
                    self._request = event
                elif isinstance(event, h11.EndOfMessage) and self._request is not None:
                    return self._answer(self._decide(self._request))
                elif isinstance(event, h11.Data):
                    return self._answer(Refusal(400, "the request has a body"))
                else:
                    return b""
        except h11.RemoteProtocolError as error:
            return self._answer(Refusal(error.error_status_hint, "the request is not HTTP/1.1"))

    def _answer(self, decision: Upgrade | Refusal) -> bytes:
        self.decision = decision
        if isinstance(decision, Upgrade):
            switch = self._http.send(h11.InformationalResponse(status_code=101, headers=list(decision.headers)))
            self.rest = self._http.trailing_data[0]
            return switch or b""
        body = decision.text.encode() + b"\n"
        headers = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            *decision.headers,
        ]
        head = self._http.send(h11.Response(status_code=decision.status, headers=headers))
        is_head = self._request is not None and self._request.method == b"HEAD"
        return (head or b"") + (b"" if is_head else body)
