"""Channel protocols as values: status, sizes, WebSocket messages, and sessions on SPDY and WebSocket."""

from __future__ import annotations

import itertools
import json
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side

from crishim.model.session import Exited, Failed
from crishim.streaming import spdy, spdy_events, spdy_frames
from crishim.streaming.channels import (
    BadMessage,
    Channel,
    ChannelClosed,
    ChannelCodec,
    ChannelData,
    Resized,
    ResizeDecoder,
    choose,
    status_message,
)
from crishim.streaming.exec_channels import (
    Input,
    InputEnded,
    Left,
    Ready,
    SpdyChannels,
    WebSocketChannels,
    wanted_channels,
)
from crishim.streaming.forward_channels import (
    ForwardInput,
    ForwardInputEnded,
    ForwardOpened,
    ForwardReset,
    SpdyForwards,
    TunnelledForwards,
    WebSocketForwards,
)
from crishim.streaming.websocket import Closed, FrameCutter, Piece, Pinged, WebSocket

V4 = "v4.channel.k8s.io"
V5 = "v5.channel.k8s.io"
EVERYTHING = wanted_channels(tty=False, stdin=True, stdout=True, stderr=True, resizes=True)
TERMINAL = wanted_channels(tty=True, stdin=True, stdout=True, stderr=False, resizes=True)


# -- values


def test_the_first_protocol_of_the_client_that_is_known_is_chosen() -> None:
    assert choose(["v5.channel.k8s.io", "v3.channel.k8s.io", "v4.channel.k8s.io"], (V4, "v3.channel.k8s.io")) == (
        "v3.channel.k8s.io"
    )
    assert choose(["x"], (V4,)) is None


def test_success_is_a_status_of_the_api() -> None:
    assert json.loads(status_message(Exited(0), V4)) == {"metadata": {}, "status": "Success"}


def test_an_exit_code_is_a_cause_of_the_status() -> None:
    status = json.loads(status_message(Exited(7), V5))
    assert status["status"] == "Failure"
    assert status["reason"] == "NonZeroExitCode"
    assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "7"}]


def test_a_failure_is_an_internal_error() -> None:
    status = json.loads(status_message(Failed("no such file"), V4))
    assert (status["reason"], status["code"]) == ("InternalError", 500)
    assert status["message"] == "Internal error occurred: no such file"


def test_old_protocols_say_nothing_on_success_and_text_otherwise() -> None:
    assert status_message(Exited(0), "v3.channel.k8s.io") == b""
    assert b"exit status 3" in status_message(Exited(3), "channel.k8s.io")


def test_channels_of_a_terminal_have_no_stderr_but_sizes() -> None:
    assert {Channel.ERROR, Channel.STDIN, Channel.STDOUT, Channel.RESIZE} == TERMINAL


def test_sizes_are_read_whatever_the_case_of_their_keys_and_where_they_are_cut() -> None:
    text = b'{"Width":120,"Height":40}\n{"height":2,"width":3}'
    decoder = ResizeDecoder()
    sizes = [size for byte in text for size in decoder.feed(bytes((byte,)))]
    assert sizes == [Resized(40, 120), Resized(2, 3)]


@pytest.mark.parametrize(
    "text",
    [
        '{"Width":0,"Height":4}',
        '{"Width":1}',
        '{"Width":true,"Height":1}',
        '{"Width":70000,"Height":1}',
        "[1]",
        "7",
    ],
)
def test_sizes_that_are_none_are_left_out(text: str) -> None:
    assert list(ResizeDecoder().feed(text.encode())) == []


def test_sizes_that_never_end_are_not_kept() -> None:
    decoder = ResizeDecoder()
    for _ in range(100):
        assert list(decoder.feed(b'{"a":"' + b"x" * 1000)) == []
    assert len(decoder._text) <= 8192


def test_the_time_for_sizes_grows_with_their_number_alone() -> None:
    begin = time.thread_time()
    sizes = list(ResizeDecoder().feed(b'{"Width":3,"Height":2}\n' * 50_000))
    assert time.thread_time() - begin < 3
    assert sizes == [Resized(2, 3)] * 50_000


@given(st.lists(st.binary(max_size=50), max_size=6))
def test_any_bytes_for_sizes_are_survived(chunks: list[bytes]) -> None:
    decoder = ResizeDecoder()
    for chunk in chunks:
        list(decoder.feed(chunk))


# -- WebSocket messages


@pytest.mark.parametrize("protocol", [V4, V5, "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io"])
@given(data=st.binary(min_size=1, max_size=100), cut=st.integers(0, 140), channel=st.integers(0, 4))
def test_a_message_comes_out_as_it_went_in_in_one_piece_or_two(
    protocol: str, data: bytes, cut: int, channel: int
) -> None:
    message = ChannelCodec(protocol).encode(channel, data)
    codec = ChannelCodec(protocol)
    pieces = [codec.decode(message[:cut], last=False), codec.decode(message[cut:], last=True)]
    found = [piece for piece in pieces if isinstance(piece, ChannelData)]
    assert b"".join(piece.data for piece in found) == data
    assert {piece.channel for piece in found} == {channel}


def test_v5_closes_a_channel_and_v4_does_not() -> None:
    assert ChannelCodec(V5).decode(b"\xff\x00", last=True) == ChannelClosed(0)
    assert ChannelCodec(V4).decode(b"\xff\x00", last=True) == ChannelData(255, b"\0")


@pytest.mark.parametrize("message", [b"\xff", b"\xff\0\0"])
def test_a_malformed_close_signal_is_refused(message: bytes) -> None:
    with pytest.raises(BadMessage):
        ChannelCodec(V5).decode(message, last=True)


def test_what_is_no_base64_is_refused() -> None:
    with pytest.raises(BadMessage):
        ChannelCodec("base64.channel.k8s.io").decode(b"0!!!!", last=True)


def test_an_empty_message_is_nothing() -> None:
    assert ChannelCodec(V4).decode(b"", last=True) is None


# -- WebSocket frames


def client_frame(data: bytes, opcode: Opcode = Opcode.BINARY, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


@given(size=st.integers(0, 300_000), cuts=st.lists(st.integers(0, 300_014), max_size=5), fin=st.booleans())
def test_a_frame_is_cut_into_bounded_ones_with_the_same_content(size: int, cuts: list[int], fin: bool) -> None:
    data = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    wire = (
        client_frame(data, fin=fin) + (b"" if fin else client_frame(b"!", Opcode.CONT)) + client_frame(b"", Opcode.PING)
    )
    cutter, server = FrameCutter(), Protocol(Side.SERVER, max_size=None)
    borders = [0, *sorted(cuts), len(wire)]
    for start, end in itertools.pairwise(borders):
        server.receive_data(cutter.feed(wire[start:end]))
    received = server.events_received()
    assert received[-1].opcode is Opcode.PING
    assert b"".join(bytes(frame.data) for frame in received) == data + (b"" if fin else b"!")
    assert max(len(frame.data) for frame in received) <= 64 << 10
    assert [frame.fin for frame in received[:-1]] == [False] * (len(received) - 2) + [True]


def test_a_websocket_passes_pieces_answers_pings_and_closes() -> None:
    socket = WebSocket()
    events = socket.receive(
        client_frame(b"a") + client_frame(b"p", Opcode.PING) + client_frame(b"\x03\xe8", Opcode.CLOSE)
    )
    assert events == [Piece(b"a", True), Pinged(), Closed(None)]
    assert socket.take_output() == [b"\x8a\x01p", b"\x88\x02\x03\xe8"]
    assert socket.receive(b"anything") == []


@given(st.binary(max_size=200))
def test_any_bytes_for_a_websocket_are_survived(junk: bytes) -> None:
    socket = WebSocket()
    events = socket.receive(junk)
    closed = [event for event in events if isinstance(event, Closed)]
    assert closed in ([], events[-1:])


def test_an_unmasked_frame_is_refused() -> None:
    (event,) = WebSocket().receive(Frame(Opcode.BINARY, b"x").serialize(mask=False))
    assert isinstance(event, Closed)
    assert event.problem


# -- exec on SPDY


class SpdyClient:
    """The other side of SpdyChannels or SpdyForwards."""

    def __init__(self) -> None:
        self.spdy = spdy.Connection(client=True)

    def take(self) -> bytes:
        return b"".join(self.spdy.take_output())

    def hear(self, parts: list[bytes]) -> list[spdy_events.Event]:
        return self.spdy.receive(b"".join(parts))


def spdy_session(types: list[str], channels: SpdyChannels) -> tuple[SpdyClient, dict[str, int], list[object]]:
    client = SpdyClient()
    streams = {kind: client.spdy.open_stream({"streamtype": kind}) for kind in types}
    return client, streams, list(channels.receive(client.take()))


def test_a_spdy_session_is_ready_with_its_last_stream() -> None:
    channels = SpdyChannels(EVERYTHING, V4)
    client, _, events = spdy_session(["error", "stdin", "stdout"], channels)
    assert events == []
    client.spdy.open_stream({"streamtype": "stderr"})
    assert channels.receive(client.take()) == [Ready()]


def test_streams_that_were_not_asked_for_or_come_twice_are_cancelled() -> None:
    channels = SpdyChannels(wanted_channels(tty=False, stdin=False, stdout=True, stderr=False, resizes=True), V4)
    client, streams, _ = spdy_session(["stdin", "bogus", "stdout", "error"], channels)
    second = client.spdy.open_stream({"streamtype": "stdout"})
    channels.receive(client.take())
    resets = {
        event.stream_id for event in client.hear(channels.take_output()) if isinstance(event, spdy_events.StreamReset)
    }
    assert resets == {streams["stdin"], streams["bogus"], second}


def test_input_and_its_end_and_sizes_arrive_on_spdy() -> None:
    channels = SpdyChannels(TERMINAL, V4)
    client, streams, _ = spdy_session(["error", "stdin", "stdout", "resize"], channels)
    client.spdy.send_data(streams["stdin"], b"typed")
    client.spdy.send_data(streams["resize"], b'{"Width":80,"Height":25}\n')
    client.spdy.send_data(streams["stdin"], b"", fin=True)
    assert channels.receive(client.take()) == [Input(b"typed"), Resized(25, 80), InputEnded()]


def test_a_spdy_session_ends_with_ends_the_status_and_goaway_last() -> None:
    channels = SpdyChannels(EVERYTHING, V4)
    client, streams, _ = spdy_session(["error", "stdin", "stdout", "stderr"], channels)
    channels.send_output(Channel.STDOUT, b"out")
    channels.finish(Exited(3))
    events = [
        event for event in client.hear(channels.take_output()) if not isinstance(event, spdy_events.StreamReplied)
    ]
    pieces = [event for event in events if isinstance(event, spdy_events.DataReceived)]
    ends = [piece.stream_id for piece in pieces if piece.fin]
    assert ends[:3] == [streams["stdout"], streams["stderr"], streams["error"]]
    status = [piece.data for piece in pieces if piece.stream_id == streams["error"]]
    assert json.loads(status[0])["reason"] == "NonZeroExitCode"
    assert isinstance(events[-1], spdy_events.GoneAway)


def test_a_goaway_and_a_violation_both_mean_that_the_client_left() -> None:
    client = SpdyClient()
    client.spdy.go_away()
    assert SpdyChannels(EVERYTHING, V4).receive(client.take()) == [Left()]
    (left,) = SpdyChannels(EVERYTHING, V4).receive(b"GET / HTTP/1.1\r\n")
    assert isinstance(left, Left)
    assert left.problem


# -- exec on WebSocket


def heard(parts: list[bytes]) -> list[bytes]:
    """Payloads of a server's frames."""
    client = Protocol(Side.CLIENT, max_size=None)
    client.receive_data(b"".join(parts))
    return [bytes(frame.data) for frame in client.events_received()]


def test_a_websocket_session_begins_with_an_empty_message() -> None:
    channels = WebSocketChannels(EVERYTHING, V4)
    assert channels.start() == [Ready()]
    assert heard(channels.take_output()) == [b"\x01"]


def test_a_base64_session_speaks_text() -> None:
    channels = WebSocketChannels(EVERYTHING, "v4.base64.channel.k8s.io")
    channels.send_output(Channel.STDOUT, b"hi")
    assert heard(channels.take_output()) == [b"1aGk="]
    assert channels.receive(client_frame(b"0aGk=", Opcode.TEXT)) == [Input(b"hi")]


def test_a_v5_session_half_closes_stdin() -> None:
    channels = WebSocketChannels(EVERYTHING, V5)
    assert channels.receive(client_frame(b"\0abc") + client_frame(b"\xff\0")) == [Input(b"abc"), InputEnded()]


def test_channels_that_do_not_exist_are_ignored() -> None:
    channels = WebSocketChannels(EVERYTHING, V4)
    assert channels.receive(client_frame(b"\x09abc") + client_frame(b"\x01abc") + client_frame(b"")) == []


def test_a_websocket_session_ends_with_the_status_and_close_1000() -> None:
    channels = WebSocketChannels(EVERYTHING, V4)
    channels.finish(Exited(0))
    status, close = heard(channels.take_output())
    assert json.loads(status[1:]) == {"metadata": {}, "status": "Success"}
    assert close[:2] == struct.pack(">H", 1000)


def test_a_bad_close_signal_ends_the_session() -> None:
    (left,) = WebSocketChannels(EVERYTHING, V5).receive(client_frame(b"\xff"))
    assert isinstance(left, Left)
    assert left.problem


# -- port-forward


def pair(client: SpdyClient, port: str = "80", request: str = "0") -> tuple[int, int]:
    error = client.spdy.open_stream({"streamtype": "error", "port": port, "requestid": request}, fin=True)
    data = client.spdy.open_stream({"streamtype": "data", "port": port, "requestid": request})
    return error, data


def test_a_pair_of_streams_is_a_forward() -> None:
    client, forwards = SpdyClient(), SpdyForwards()
    _, data = pair(client)
    client.spdy.send_data(data, b"GET", fin=True)
    assert forwards.receive(client.take(), 0.0) == [
        ForwardOpened(data, 80),
        ForwardInput(data, b"GET"),
        ForwardInputEnded(data),
    ]


def test_a_pair_without_a_request_id_is_paired_by_its_stream_ids() -> None:
    client, forwards = SpdyClient(), SpdyForwards()
    client.spdy.open_stream({"streamtype": "error", "port": "80"})
    data = client.spdy.open_stream({"streamtype": "data", "port": "80"})
    assert forwards.receive(client.take(), 0.0) == [ForwardOpened(data, 80)]


@pytest.mark.parametrize("port", ["", "0", "65536", "80x", "-1", "+1", "٣"])
def test_a_port_that_is_none_is_reset(port: str) -> None:
    client, forwards = SpdyClient(), SpdyForwards()
    client.spdy.open_stream({"streamtype": "error", "port": port.encode("utf-8").decode("latin-1")})
    assert forwards.receive(client.take(), 0.0) == []
    (reset,) = client.hear(forwards.take_output())
    assert isinstance(reset, spdy_events.StreamReset)


def test_the_end_of_a_forward_is_the_end_of_both_streams_and_leaves_no_state() -> None:
    client, forwards = SpdyClient(), SpdyForwards()
    error, data = pair(client)
    forwards.receive(client.take(), 0.0)
    forwards.send(data, b"200")
    forwards.end(data)
    events = [event for event in client.hear(forwards.take_output()) if isinstance(event, spdy_events.DataReceived)]
    assert events == [
        spdy_events.DataReceived(data, b"200", False),
        spdy_events.DataReceived(data, b"", True),
        spdy_events.DataReceived(error, b"", True),
    ]
    client.spdy.send_data(data, b"", fin=True)
    assert forwards.receive(client.take(), 0.0) == [ForwardInputEnded(data)]
    assert not forwards._errors


def test_a_failure_is_text_on_the_error_stream() -> None:
    client, forwards = SpdyClient(), SpdyForwards()
    error, data = pair(client)
    forwards.receive(client.take(), 0.0)
    forwards.fail(data, "refused")
    events = [event for event in client.hear(forwards.take_output()) if isinstance(event, spdy_events.DataReceived)]
    assert events[0] == spdy_events.DataReceived(error, b"refused", True)


def test_a_second_stream_that_does_not_come_is_not_waited_for() -> None:
    client, forwards = SpdyClient(), SpdyForwards()
    error = client.spdy.open_stream({"streamtype": "error", "port": "80", "requestid": "0"})
    forwards.receive(client.take(), 10.0)
    forwards.expire(10.0)
    assert forwards._opening
    forwards.expire(10.1)
    texts = [event.data for event in client.hear(forwards.take_output()) if isinstance(event, spdy_events.DataReceived)]
    assert b"did not come in time" in texts[0]
    assert not forwards._opening
    assert error == 1


def test_streams_that_are_opened_and_reset_for_ever_leave_no_state() -> None:
    client, forwards = SpdyClient(), SpdyForwards()
    for number in range(2000):
        stream = client.spdy.open_stream({"streamtype": "error", "port": "80", "requestid": str(number)})
        client.spdy.reset(stream, spdy_frames.ResetStatus.CANCEL)
        forwards.receive(client.take(), 0.0)
        forwards.take_output()
    assert not forwards._opening
    assert not forwards._spdy._streams


def test_a_stream_type_that_comes_twice_fails_the_pair() -> None:
    client, forwards = SpdyClient(), SpdyForwards()
    for _ in range(2):
        client.spdy.open_stream({"streamtype": "error", "port": "80", "requestid": "0"})
    forwards.receive(client.take(), 0.0)
    texts = [event.data for event in client.hear(forwards.take_output()) if isinstance(event, spdy_events.DataReceived)]
    assert b"two streams of type error" in b"".join(texts)


def test_a_reset_of_the_data_stream_ends_the_forward() -> None:
    client, forwards = SpdyClient(), SpdyForwards()
    _, data = pair(client)
    client.spdy.reset(data, spdy_frames.ResetStatus.CANCEL)
    assert forwards.receive(client.take(), 0.0)[-1] == ForwardReset(data)


def test_the_tunnel_carries_spdy_whatever_its_messages_are_cut_into() -> None:
    client, forwards = SpdyClient(), TunnelledForwards()
    _, data = pair(client)
    wire = client.take()
    events = []
    for start in range(0, len(wire), 7):
        events += forwards.receive(client_frame(wire[start : start + 7]) + client_frame(b""), 0.0)
    assert events == [ForwardOpened(data, 80)]
    forwards.send(data, b"200")
    replies = client.hear(heard(forwards.take_output()))
    assert spdy_events.DataReceived(data, b"200", False) in replies


def test_plain_websocket_forwards_begin_with_their_ports() -> None:
    forwards = WebSocketForwards((80, 443), V4)
    assert forwards.start() == [ForwardOpened(0, 80), ForwardOpened(1, 443)]
    assert heard(forwards.take_output()) == [b"\0\x50\0", b"\1\x50\0", b"\2\xbb\1", b"\3\xbb\1"]
    assert forwards.receive(client_frame(b"\2hello"), 0.0) == [ForwardInput(1, b"hello")]
    forwards.fail(0, "refused")
    forwards.end(1)
    assert heard(forwards.take_output()) == [b"\1refused", struct.pack(">H", 1000)]
    assert forwards.closed
