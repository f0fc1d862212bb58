from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.network.netlink import (
    Message,
    Request,
    acknowledgement,
    attribute,
    attribute_list,
    attributes,
    decode,
    encode,
    nested,
    text,
    u32,
)


def _message(kind: int, body: bytes, flags: int = 0, sequence: int = 1) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body + bytes(-len(body) % 4)


def test_a_request_is_a_header_with_the_request_flag_and_a_padded_body() -> None:
    assert encode(Request("x", 18, 0x300, b"abcde"), 7) == (
        struct.pack("=IHHII", 21, 18, 0x301, 7, 0) + b"abcde" + b"\0\0\0"
    )


def test_an_attribute_counts_its_header_and_not_its_padding() -> None:
    assert text(3, "eth0") == struct.pack("=HH", 9, 3) + b"eth0\0" + b"\0\0\0"


def test_nested_attributes_are_marked_and_found_without_the_mark() -> None:
    outer = nested(18, text(1, "veth"), u32(4, 1500))
    assert struct.unpack_from("=H", outer, 2)[0] == 18 | 0x8000
    assert attributes(attributes(outer)[18]) == {1: b"veth\0", 4: struct.pack("=I", 1500)}


def test_messages_of_one_datagram_are_told_apart() -> None:
    found = list(decode(_message(16, b"ab") + _message(3, b"\0\0\0\0", flags=2, sequence=9)))
    assert found == [Message(16, 0, 1, b"ab"), Message(3, 2, 9, b"\0\0\0\0")]


def test_an_acknowledgement_of_success_has_number_zero() -> None:
    (message,) = decode(_message(2, struct.pack("=i", 0) + _message(18, b"")))
    answer = acknowledgement(message)
    assert answer is not None and answer.errno == 0


@pytest.mark.parametrize(("capped", "echo"), [(0x100, b""), (0, b"request body")])
def test_the_kernels_own_words_follow_the_echoed_request(capped: int, echo: bytes) -> None:
    body = struct.pack("=i", -17) + _message(18, echo) + text(1, "already there")
    (message,) = decode(_message(2, body, flags=0x200 | capped))
    answer = acknowledgement(message)
    assert answer is not None and (answer.errno, answer.text) == (17, "already there")


def test_a_message_with_an_object_is_no_acknowledgement() -> None:
    assert acknowledgement(Message(16, 0, 1, bytes(32))) is None


@pytest.mark.parametrize("length", [0, 15, 17])
def test_a_message_that_claims_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="claims"):
        list(decode(struct.pack("=IHHII", length, 16, 0, 1, 0)))


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_or_an_error(data: bytes) -> None:
    try:
        messages = list(decode(data))
    except ValueError:
        return
    for message in messages:
        try:
            acknowledgement(message)
        except ValueError:
            continue


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40))))
def test_attributes_are_read_back_as_they_were_written(members: list[tuple[int, bytes]]) -> None:
    assert list(attribute_list(b"".join(attribute(kind, value) for kind, value in members))) == members
