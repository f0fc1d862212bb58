"""The head of a request: paths, protocols, and what is refused with which status."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.streaming.upgrade import Handshake, Purpose, Refusal, Upgrade, target, upgrade

SPDY = [(b"connection", b"Upgrade"), (b"upgrade", b"SPDY/3.1")]
WEBSOCKET = [
    (b"connection", b"keep-alive, Upgrade"),
    (b"upgrade", b"websocket"),
    (b"sec-websocket-version", b"13"),
    (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (b"/exec/abc", (Purpose.EXEC, "abc")),
        (b"/attach/abc?x=/y", (Purpose.ATTACH, "abc")),
        (b"/portforward/abc", (Purpose.PORT_FORWARD, "abc")),
        (b"/exec/", None),
        (b"/exec/a/b", None),
        (b"/other/abc", None),
        (b"exec/abc", None),
        (b"*", None),
    ],
)
def test_a_path_is_a_purpose_and_a_token(path: bytes, found: object) -> None:
    assert target(path) == found


def test_spdy_offers_in_several_lines_take_the_first_known() -> None:
    offers = [(b"x-stream-protocol-version", f"v{number}.channel.k8s.io".encode()) for number in (5, 4, 3, 2)]
    answer = upgrade(Purpose.EXEC, SPDY + offers)
    assert isinstance(answer, Upgrade)
    assert answer.protocol == "v4.channel.k8s.io"
    assert ("X-Stream-Protocol-Version", "v4.channel.k8s.io") in answer.headers


def test_spdy_without_a_protocol_is_a_bad_request() -> None:
    answer = upgrade(Purpose.EXEC, SPDY)
    assert isinstance(answer, Refusal)
    assert answer.status == 400


def test_unknown_spdy_protocols_are_forbidden_and_the_known_ones_listed() -> None:
    answer = upgrade(Purpose.PORT_FORWARD, [*SPDY, (b"x-stream-protocol-version", b"v4.channel.k8s.io")])
    assert answer == Refusal(
        403,
        "none of the offered stream protocols is known",
        (("X-Accepted-Stream-Protocol-Versions", "portforward.k8s.io"),),
    )


@pytest.mark.parametrize(
    ("purpose", "offer", "chosen"),
    [
        (Purpose.EXEC, b"v5.channel.k8s.io,v4.channel.k8s.io", "v5.channel.k8s.io"),
        (Purpose.ATTACH, b"base64.channel.k8s.io", "base64.channel.k8s.io"),
        (Purpose.PORT_FORWARD, b"v5.channel.k8s.io,v4.channel.k8s.io", "v4.channel.k8s.io"),
        (Purpose.PORT_FORWARD, b"SPDY/3.1+portforward.k8s.io", "SPDY/3.1+portforward.k8s.io"),
        (Purpose.EXEC, b"", ""),
    ],
)
def test_a_websocket_protocol_is_chosen(purpose: Purpose, offer: bytes, chosen: str) -> None:
    answer = upgrade(purpose, [*WEBSOCKET, (b"sec-websocket-protocol", offer)])
    assert isinstance(answer, Upgrade)
    assert answer.protocol == chosen
    assert ("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") in answer.headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([*WEBSOCKET, (b"sec-websocket-protocol", b"chat")], 403),
        (WEBSOCKET[:3], 400),
        ([*WEBSOCKET[:3], (b"sec-websocket-key", b"short")], 400),
        ([*WEBSOCKET[:2], (b"sec-websocket-version", b"8"), WEBSOCKET[3]], 400),
        (WEBSOCKET[1:], 400),
        ([(b"connection", b"upgrade"), (b"upgrade", b"h2c")], 400),
        ([], 400),
    ],
)
def test_what_cannot_be_upgraded_is_refused(headers: list[tuple[bytes, bytes]], status: int) -> None:
    answer = upgrade(Purpose.EXEC, headers)
    assert isinstance(answer, Refusal)
    assert answer.status == status


REQUEST = (
    b"POST /exec/abc HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
    b"X-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n\r\n"
)


def handshake() -> Handshake:
    return Handshake(lambda head: upgrade(Purpose.EXEC, list(head.headers)))


def test_a_request_byte_by_byte_is_answered_and_what_follows_belongs_to_the_protocol() -> None:
    shake = handshake()
    answers = [shake.receive(bytes((byte,))) for byte in REQUEST[:-1]]
    assert set(answers) == {b""}
    assert shake.receive(REQUEST[-1:] + b"\x80\x03").startswith(b"HTTP/1.1 101")
    assert shake.rest == b"\x80\x03"
    assert isinstance(shake.decision, Upgrade)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (REQUEST.replace(b"Content-Length: 0", b"Content-Length: 3") + b"abc", b"400"),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 20000, b"431"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
    ],
)
def test_a_bad_request_is_told_so(request_: bytes, status: bytes) -> None:
    shake = handshake()
    assert shake.receive(request_).split()[1] == status
    assert isinstance(shake.decision, Refusal)


@given(st.lists(st.binary(min_size=1, max_size=80), max_size=5))
def test_any_bytes_for_a_request_are_survived(chunks: list[bytes]) -> None:
    shake = handshake()
    for chunk in chunks:
        if shake.decision is None:
            shake.receive(chunk)
