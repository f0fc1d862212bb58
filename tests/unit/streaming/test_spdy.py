"""SPDY/3.1 frames and header blocks: both sides against each other, cut anywhere, and what a hostile peer may send."""

from __future__ import annotations

import hashlib
import itertools
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crishim.streaming import spdy_frames as frames
from crishim.streaming.spdy import Connection, Limits
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
from crishim.streaming.spdy_frames import FrameType, ResetStatus
from crishim.streaming.spdy_headers import DICTIONARY, BadHeaders, HeaderDeflater, HeaderInflater

NAMES = st.text(st.characters(codec="ascii", categories=("Ll", "Nd")), min_size=1, max_size=12)
HEADERS = st.dictionaries(NAMES, st.text(st.characters(codec="latin-1"), max_size=60), max_size=8)


def both_ways(client: Connection, server: Connection) -> tuple[list[Event], list[Event]]:
    """Events at the client and at the server after everything under way has arrived."""
    at_client: list[Event] = []
    at_server: list[Event] = []
    while True:
        up, down = b"".join(client.take_output()), b"".join(server.take_output())
        if not up and not down:
            return at_client, at_server
        at_server += server.receive(up)
        at_client += client.receive(down)


def opened(limits: Limits | None = None, **headers: str) -> tuple[Connection, Connection, int]:
    client, server = Connection(client=True), Connection(limits=limits)
    stream = client.open_stream(headers)
    both_ways(client, server)
    return client, server, stream


def test_the_dictionary_is_that_of_the_protocol() -> None:
    assert len(DICTIONARY) == 1423
    assert zlib.adler32(DICTIONARY) == 0xE3C6A7C2
    assert hashlib.sha256(DICTIONARY).hexdigest() == "51d27341373f923f3cd88e1eb7162aeaa3723d7585ff2399201dc06498407f02"


def test_empty_header_blocks_are_the_known_bytes() -> None:
    deflater = HeaderDeflater()
    assert deflater.deflate({}).hex() == "78f9e3c6a7c202a6230600000000ffff"
    assert deflater.deflate({}).hex() == "020100000000ffff"


@given(st.lists(HEADERS, max_size=6))
def test_header_blocks_come_out_as_they_went_in(blocks: list[dict[str, str]]) -> None:
    deflater, inflater = HeaderDeflater(), HeaderInflater(1 << 20, 100)
    for headers in blocks:
        assert inflater.inflate(deflater.deflate(headers)) == headers


def test_a_header_bomb_is_refused_before_it_is_inflated() -> None:
    bomb = HeaderDeflater().deflate({"a": "b" * (16 << 20)})
    assert len(bomb) < 64 << 10
    tracemalloc.start()
    with pytest.raises(BadHeaders, match="more than 32768 bytes"):
        HeaderInflater(32768, 100).inflate(bomb)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "plain",
    [
        b"\0\0",
        b"\0\0\0\1",
        b"\0\0\0\1\0\0\0\5abc",
        b"\0\0\0\1\xff\xff\xff\xffa",
        b"\0\0\0\1\0\0\0\0\0\0\0\0",
        b"\0\0\0\2" + b"\0\0\0\1a\0\0\0\1b" * 2,
        b"\0\0\0\0rest",
        b"\xff\xff\xff\xff",
    ],
)
def test_a_malformed_header_block_is_refused(plain: bytes) -> None:
    stream = zlib.compressobj(9, zlib.DEFLATED, 15, 8, 0, DICTIONARY)
    block = stream.compress(plain) + stream.flush(zlib.Z_SYNC_FLUSH)
    with pytest.raises(BadHeaders):
        HeaderInflater(1 << 20, 100).inflate(block)


def test_a_compression_that_ends_is_refused() -> None:
    stream = zlib.compressobj(9, zlib.DEFLATED, 15, 8, 0, DICTIONARY)
    block = stream.compress(b"\0\0\0\0") + stream.flush(zlib.Z_FINISH)
    with pytest.raises(BadHeaders, match="ended"):
        HeaderInflater(1 << 20, 100).inflate(block)


def conversation() -> bytes:
    """What a client sends in a session with everything in it."""
    client = Connection(client=True)
    client.open_stream({"streamtype": "error"}, fin=True)
    second = client.open_stream({"streamtype": "data", "port": "80"})
    client.send_data(second, b"x" * 3000)
    client.ping()
    client.send_data(second, b"", fin=True)
    rest = [
        frames.control(FrameType.WINDOW_UPDATE, struct.pack(">II", second, 65536)),
        frames.control(FrameType.SETTINGS, struct.pack(">III", 1, 4 << 24 | 7, 65536)),
        frames.rst_stream(second, ResetStatus.CANCEL),
        frames.goaway(0, 0),
    ]
    return b"".join(client.take_output() + rest)


def merged(events: list[Event]) -> list[Event]:
    """Adjacent pieces of a stream as one."""
    result: list[Event] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, DataReceived) and isinstance(last, DataReceived) and not last.fin:
            result[-1] = DataReceived(event.stream_id, last.data + event.data, event.fin)
        else:
            result.append(event)
    return result


WHOLE = conversation()


def test_a_conversation_at_once() -> None:
    assert merged(Connection().receive(WHOLE)) == [
        StreamOpened(1, {"streamtype": "error"}, True),
        StreamOpened(3, {"streamtype": "data", "port": "80"}, False),
        DataReceived(3, b"x" * 3000, False),
        PingReceived(1, False),
        DataReceived(3, b"", True),
        WindowUpdated(3, 65536),
        SettingsReceived({7: 65536}),
        StreamReset(3, ResetStatus.CANCEL),
        GoneAway(0, 0),
    ]


def test_a_conversation_byte_by_byte_is_the_same() -> None:
    server = Connection()
    events = [event for byte in WHOLE for event in server.receive(bytes((byte,)))]
    assert merged(events) == merged(Connection().receive(WHOLE))


@given(st.lists(st.integers(0, len(WHOLE)), max_size=12))
def test_a_conversation_cut_anywhere_is_the_same(cuts: list[int]) -> None:
    server = Connection()
    borders = [0, *sorted(cuts), len(WHOLE)]
    events = [event for start, end in itertools.pairwise(borders) for event in server.receive(WHOLE[start:end])]
    assert merged(events) == merged(Connection().receive(WHOLE))


@given(st.binary(max_size=400))
def test_what_is_no_protocol_ends_in_an_error_value_and_nothing_after_it(junk: bytes) -> None:
    server = Connection()
    events = server.receive(junk)
    errors = [event for event in events if isinstance(event, ProtocolError)]
    assert errors == events[-1:] if server.closed else not errors
    if server.closed:
        assert server.take_output()[-1][:4] == struct.pack(">HH", 0x8003, FrameType.GOAWAY)
        assert server.receive(WHOLE) == []


@settings(max_examples=300)
@given(
    st.lists(
        st.one_of(
            st.builds(
                frames.control,
                st.sampled_from(FrameType),
                st.binary(max_size=40),
                st.integers(0, 255),
            ),
            st.builds(
                lambda stream, data, fin: frames.data_head(stream, len(data), fin) + data,
                st.integers(0, 9),
                st.binary(max_size=40),
                st.booleans(),
            ),
            st.builds(
                lambda stream, flags: frames.syn_stream(stream, HeaderDeflater().deflate({}), flags),
                st.integers(0, 9),
                st.integers(0, 3),
            ),
            st.builds(frames.rst_stream, st.integers(0, 9), st.integers(0, 9)),
        ),
        max_size=20,
    )
)
def test_hostile_frames_never_raise_and_leave_bounded_state(hostile: list[bytes]) -> None:
    server = Connection(limits=Limits(streams=3))
    for frame in hostile:
        for event in server.receive(frame):
            if isinstance(event, StreamOpened):
                server.reply(event.stream_id)
                server.send_data(event.stream_id, b"hello", fin=True)
    assert len(server._streams) <= 3
    assert len(server._held) <= frames.HEAD.size + Limits().control_bytes


@given(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=8))
@settings(max_examples=200)
def test_a_conversation_with_bytes_overwritten_never_raises(place: int, junk: bytes) -> None:
    place %= len(WHOLE)
    server = Connection()
    server.receive(WHOLE[:place] + junk + WHOLE[place + len(junk) :])
    assert not server.closed or server.take_output()


def test_a_large_data_frame_is_passed_on_as_it_comes() -> None:
    _, server, stream = opened()
    assert server.receive(frames.data_head(stream, 0xFFFFFF, True)) == []
    assert server.receive(b"abc") == [DataReceived(stream, b"abc", False)]
    assert len(server._held) == 0


def test_a_control_frame_beyond_the_bound_is_refused_by_its_head() -> None:
    server = Connection()
    head = frames.HEAD.pack(frames.CONTROL_BIT | 3 << 16 | FrameType.SYN_STREAM, 0xFFFFFF)
    (error,) = server.receive(head)
    assert error == ProtocolError("a control frame has more than 65536 bytes")


def test_a_reply_and_data_of_both_sides_arrive() -> None:
    client, server, stream = opened(streamtype="data")
    server.reply(stream, {"a": "b"})
    server.send_data(stream, b"down")
    client.send_data(stream, b"up", fin=True)
    at_client, at_server = both_ways(client, server)
    assert at_client == [StreamReplied(stream, {"a": "b"}, False), DataReceived(stream, b"down", False)]
    assert at_server == [DataReceived(stream, b"up", True)]


def test_a_stream_is_over_when_both_sides_ended() -> None:
    client, server, stream = opened()
    server.send_data(stream, b"", fin=True)
    both_ways(client, server)
    assert not server.is_over(stream)
    client.send_data(stream, b"", fin=True)
    both_ways(client, server)
    assert server.is_over(stream)
    assert client.is_over(stream)


def test_data_after_the_end_resets_the_stream() -> None:
    client, server, stream = opened()
    client.send_data(stream, b"", fin=True)
    both_ways(client, server)
    events = server.receive(frames.data_head(stream, 1, False) + b"x")
    assert events == [StreamReset(stream, ResetStatus.STREAM_ALREADY_CLOSED)]


def test_data_of_a_stream_that_never_was_is_reset_and_that_of_a_past_one_dropped() -> None:
    _, server, stream = opened()
    server.reset(stream, ResetStatus.CANCEL)
    server.take_output()
    assert server.receive(frames.data_head(stream, 1, False) + b"x") == []
    assert server.take_output() == []
    assert server.receive(frames.data_head(99, 1, False) + b"x") == []
    assert server.take_output() == [frames.rst_stream(99, ResetStatus.INVALID_STREAM)]


def test_a_reused_stream_id_is_reset_and_its_headers_are_inflated_all_the_same() -> None:
    client, server, stream = opened()
    deflater = client._deflater
    block = deflater.deflate({"again": "1"})
    assert server.receive(frames.syn_stream(stream, block)) == []
    assert server.take_output() == [frames.rst_stream(stream, ResetStatus.PROTOCOL_ERROR)]
    client.open_stream({"after": "1"})
    assert both_ways(client, server)[1] == [StreamOpened(3, {"after": "1"}, False)]


def test_one_stream_too_many_is_refused() -> None:
    client, server, _ = opened(Limits(streams=1))
    client.open_stream({})
    assert both_ways(client, server)[0] == [StreamReset(3, ResetStatus.REFUSED_STREAM)]


def test_pings_are_echoed_and_the_echo_of_ours_is_told_apart() -> None:
    client, server = Connection(client=True), Connection()
    ping = client.ping()
    at_client, at_server = both_ways(client, server)
    assert at_server == [PingReceived(ping, False)]
    assert at_client == [PingReceived(ping, True)]


def test_further_headers_arrive_and_may_end_the_stream() -> None:
    client, server, stream = opened()
    block = client._deflater.deflate({"x": "y"})
    events = server.receive(frames.with_headers(FrameType.HEADERS, stream, block, frames.FIN))
    assert events == [HeadersReceived(stream, {"x": "y"}, True)]


def test_nothing_is_sent_on_a_stream_that_the_peer_reset() -> None:
    client, server, stream = opened()
    client.reset(stream, ResetStatus.CANCEL)
    both_ways(client, server)
    server.send_data(stream, b"late")
    server.reply(stream)
    assert server.take_output() == []


@pytest.mark.parametrize(
    "frame",
    [
        frames.control(FrameType.PING, b"\0\0\0\1", flags=1),
        frames.control(FrameType.PING, b"\0\0\1"),
        frames.control(FrameType.GOAWAY, b"\0" * 8, flags=1),
        frames.control(FrameType.GOAWAY, b"\0" * 4),
        frames.control(FrameType.WINDOW_UPDATE, b"\0" * 8),
        frames.control(FrameType.SETTINGS, b"\0\0\0\2" + b"\0" * 8),
        frames.control(FrameType.SETTINGS, b""),
        frames.rst_stream(1, 0),
        frames.rst_stream(0, 1),
        frames.control(FrameType.SYN_STREAM, b"\0" * 9),
        frames.syn_stream(0, HeaderDeflater().deflate({})),
        frames.syn_stream(1, b"not deflated"),
        frames.data_head(0, 0, True),
        frames.HEAD.pack(1, 0x80 << 24),
        frames.HEAD.pack(frames.CONTROL_BIT | 2 << 16 | FrameType.PING, 4),
        frames.HEAD.pack(frames.CONTROL_BIT | 3 << 16 | 5, 0),
    ],
)
def test_a_malformed_frame_is_a_protocol_error(frame: bytes) -> None:
    (event,) = Connection().receive(frame)
    assert isinstance(event, ProtocolError)
