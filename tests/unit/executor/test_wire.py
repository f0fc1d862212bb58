"""Messages: values survive the way, everything else is a WireError, and no descriptor is left open."""

from __future__ import annotations

import array
import os
import struct
from collections.abc import Iterator
from socket import AF_UNIX, MSG_PEEK, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET, socket, socketpair

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crishim.executor import wire

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20) | st.binary(max_size=20).map(os.fsdecode)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=20) | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.binary(max_size=5) | texts, inner, max_size=4),
    max_leaves=20,
)


@pytest.fixture
def sockets() -> Iterator[tuple[socket, socket]]:
    """(sender, receiver); the receiver does not block. No descriptor may stay open."""
    before = len(os.listdir("/proc/self/fd"))
    here, there = socketpair(AF_UNIX, SOCK_SEQPACKET)
    there.setblocking(False)
    yield here, there
    here.close()
    there.close()
    assert len(os.listdir("/proc/self/fd")) == before


@given(values)
def test_values_survive_encoding(value: object) -> None:
    found = wire.decode(wire.encode(value))
    assert found == value
    assert type(found) is type(value)


def test_a_tuple_arrives_as_a_list_and_bool_stays_bool() -> None:
    assert wire.decode(wire.encode((1, (True, False)))) == [1, [True, False]]
    assert wire.decode(wire.encode(True)) is True


@given(values, st.data())
def test_a_value_that_is_cut_short_is_refused(value: object, data: st.DataObject) -> None:
    encoded = wire.encode(value)
    with pytest.raises(wire.WireError):
        wire.decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


@given(values, st.binary(min_size=1, max_size=4))
def test_bytes_behind_a_value_are_refused(value: object, rest: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(wire.encode(value) + rest)


@given(st.binary(max_size=60))
@example(b"l\xff\xff\xff\xff" + b"n" * 10)
@example(b"d\x01\x00\x00\x00l\x00\x00\x00\x00n")
@example(b"l\x01\x00\x00\x00" * 5000)
@example(b"b\xff\xff\xff\xff")
def test_garbage_is_a_value_or_a_wire_error(garbage: bytes) -> None:
    try:
        wire.decode(garbage)
    except wire.WireError:
        pass


def test_what_has_no_encoding_is_a_type_error() -> None:
    for value in (1.5, {1, 2}, object()):
        with pytest.raises(TypeError, match="has no encoding on the wire"):
            wire.encode({"x": value})


def test_a_message_arrives_with_its_descriptors(sockets: tuple[socket, socket]) -> None:
    here, there = sockets
    reading, writing = os.pipe()
    wire.send(here, wire.EXEC, 7, b"sandbox", {"a": [1, None], b"b": "c"}, [reading, writing])
    message = wire.receive(there)
    assert message is not None
    assert (message.kind, message.seq, message.sandbox_id, message.body) == (
        wire.EXEC,
        7,
        b"sandbox",
        {"a": [1, None], b"b": "c"},
    )
    assert [os.fstat(fd).st_ino for fd in message.fds] == [os.fstat(fd).st_ino for fd in (reading, writing)]
    assert not any(os.get_inheritable(fd) for fd in message.fds)
    message.close()
    assert message.fds == []
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("size", [wire.INLINE_LIMIT_BYTES - 100, wire.INLINE_LIMIT_BYTES + 1, 3 << 20])
def test_a_large_body_arrives_and_takes_no_descriptor_of_the_receiver(
    sockets: tuple[socket, socket], size: int
) -> None:
    here, there = sockets
    reading, writing = os.pipe()
    wire.send(here, wire.OK, 1, b"", {"data": b"x" * size}, [reading])
    message = wire.receive(there)
    assert message is not None and message.body == {"data": b"x" * size}
    assert len(message.fds) == 1
    message.close()
    os.close(reading)
    os.close(writing)


def test_a_large_body_is_sealed_so_that_the_sender_cannot_change_it_later(sockets: tuple[socket, socket]) -> None:
    here, there = sockets
    wire.send(here, wire.OK, 1, b"", {"data": b"x" * 100_000})
    _, ancillary, _, _ = there.recvmsg(1 << 17, 1000)
    fd = array.array("i", ancillary[0][2][:4])[0]
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"y", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)


def test_the_end_of_the_stream_and_an_empty_queue(sockets: tuple[socket, socket]) -> None:
    here, there = sockets
    with pytest.raises(BlockingIOError):
        wire.receive(there)
    here.close()
    assert wire.receive(there) is None


def _frame(
    *,
    magic: bytes = wire.MAGIC,
    version: int = wire.VERSION,
    flags: int = 0,
    body: bytes = b"d\0\0\0\0",
    length: int = -1,
) -> bytes:
    size = len(body) if length < 0 else length
    return struct.pack("=4sHHHHII", magic, version, 1, flags, 2, 1, size) + b"sb" + body


BAD = {
    "empty header": b"x",
    "magic": _frame(magic=b"EVIL"),
    "old version": _frame(version=0),
    "new version": _frame(version=999),
    "length": _frame(length=77),
    "body": _frame(body=b"?"),
    "not a mapping": _frame(body=b"n"),
    "memfd missing": _frame(flags=1, body=b""),
    "too long": _frame(body=b"b" + struct.pack("=I", 1 << 17) + bytes(1 << 17)),
    "id longer than the message": struct.pack("=4sHHHHII", wire.MAGIC, wire.VERSION, 1, 0, 500, 1, 0),
}


@pytest.mark.parametrize("frame", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("descriptors", [0, 2])
def test_a_bad_message_is_refused_and_its_descriptors_are_closed(
    sockets: tuple[socket, socket], frame: bytes, descriptors: int
) -> None:
    here, there = sockets
    fds = list(os.pipe())
    sent = array.array("i", fds[:descriptors])
    here.sendmsg([frame], [(SOL_SOCKET, SCM_RIGHTS, sent)] if descriptors else [])
    with pytest.raises(wire.WireError):
        wire.receive(there)
    for fd in fds:
        os.close(fd)  # the fixture counts what is left


def test_a_body_descriptor_that_is_no_body_is_refused(sockets: tuple[socket, socket]) -> None:
    here, there = sockets
    with open("/proc/self/status", "rb") as file:
        here.sendmsg([_frame(flags=1, body=b"")], [(SOL_SOCKET, SCM_RIGHTS, array.array("i", [file.fileno()]))])
        with pytest.raises(wire.WireError):
            wire.receive(there)
    with open(__file__, "rb") as file:
        here.sendmsg([_frame(flags=1, body=b"")], [(SOL_SOCKET, SCM_RIGHTS, array.array("i", [file.fileno()]))])
        with pytest.raises(wire.WireError):
            wire.receive(there)


def test_a_body_beyond_the_limit_is_refused_unread(sockets: tuple[socket, socket]) -> None:
    here, there = sockets
    fd = os.memfd_create("sparse")
    os.ftruncate(fd, 1 << 40)
    here.sendmsg([_frame(flags=1, body=b"")], [(SOL_SOCKET, SCM_RIGHTS, array.array("i", [fd]))])
    os.close(fd)
    with pytest.raises(wire.WireError, match=f"body of {1 << 40} bytes"):
        wire.receive(there)


def test_descriptors_beyond_the_kernels_limit_are_refused_before_sending(sockets: tuple[socket, socket]) -> None:
    here, there = sockets
    fd = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(wire.WireError, match="251 descriptors in one message"):
        wire.send(here, wire.OK, 1, b"", {}, [fd] * 251)
    wire.send(here, wire.OK, 1, b"", {"data": b"x" * 100_000}, [fd] * 249)
    message = wire.receive(there)
    assert message is not None and len(message.fds) == 249
    message.close()
    os.close(fd)
    with pytest.raises(BlockingIOError):
        there.recv(1, MSG_PEEK)


def test_more_descriptors_than_fit_are_refused_and_closed(sockets: tuple[socket, socket]) -> None:
    """The room for descriptors is enough for all that the kernel passes, so a truncation means a foreign peer."""
    here, there = sockets
    fd = os.open("/dev/null", os.O_RDONLY)
    here.sendmsg([_frame()], [(SOL_SOCKET, SCM_RIGHTS, array.array("i", [fd] * 253))])
    os.close(fd)
    message = wire.receive(there)
    assert message is not None and len(message.fds) == 253
    message.close()
