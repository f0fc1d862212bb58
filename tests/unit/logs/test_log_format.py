"""The log format against a naive reference that walks line by line."""

from __future__ import annotations

import datetime

from hypothesis import given
from hypothesis import strategies as st

from crishim.logs.format import LINE_LIMIT_BYTES, format_lines, format_pieces, stamp

TIME = b"2026-11-24T10:00:00.123456789Z"


def reference_lines(data: bytes, stream: bytes, time: bytes) -> list[bytes]:
    lines = []
    for line in data.split(b"\n")[:-1]:
        while len(line) > LINE_LIMIT_BYTES:
            lines.append(b" ".join((time, stream, b"P", line[:LINE_LIMIT_BYTES])))
            line = line[LINE_LIMIT_BYTES:]
        lines.append(b" ".join((time, stream, b"F", line)))
    return lines


def lengths() -> st.SearchStrategy[int]:
    near_the_limit = st.sampled_from([k * LINE_LIMIT_BYTES + d for k in (1, 2, 3) for d in (-1, 0, 1)])
    return st.one_of(st.integers(0, 40), near_the_limit, st.integers(0, 50000))


@given(st.lists(lengths(), max_size=12), st.binary(min_size=1, max_size=8))
def test_a_batch_equals_the_reference_line_by_line(sizes: list[int], seed: bytes) -> None:
    pattern = seed.replace(b"\n", b"\r") * 9000
    data = b"".join((pattern * (size // len(pattern) + 1))[:size] + b"\n" for size in sizes)
    expected = b"".join(line + b"\n" for line in reference_lines(data, b"stderr", TIME))
    assert format_lines(data, b"stderr", TIME) == expected


@given(st.binary(max_size=300))
def test_any_bytes_survive(data: bytes) -> None:
    data += b"\n"
    expected = b"".join(line + b"\n" for line in reference_lines(data, b"stdout", TIME))
    assert format_lines(data, b"stdout", TIME) == expected


def test_a_line_of_exactly_the_limit_is_one_full_line() -> None:
    assert format_lines(b"x" * LINE_LIMIT_BYTES + b"\n", b"stdout", TIME).count(b" F ") == 1


def test_carriage_returns_of_a_terminal_are_kept() -> None:
    assert format_lines(b"a\r\n\r\n", b"stdout", TIME) == TIME + b" stdout F a\r\n" + TIME + b" stdout F \r\n"


def test_pieces_of_an_unfinished_line_are_all_partial() -> None:
    pieces = format_pieces(b"y" * (LINE_LIMIT_BYTES + 5), b"stdout", TIME).splitlines()
    assert [piece.split(b" ", 3)[2] for piece in pieces] == [b"P", b"P"]
    assert [len(piece.split(b" ", 3)[3]) for piece in pieces] == [LINE_LIMIT_BYTES, 5]


@given(st.integers(0, 4102444800 * 10**9))
def test_the_time_is_rfc3339_in_utc_with_nine_digits(now_ns: int) -> None:
    when = datetime.datetime.fromtimestamp(now_ns // 10**9, datetime.UTC)
    assert stamp(now_ns).decode() == f"{when:%Y-%m-%dT%H:%M:%S}.{now_ns % 10**9:09d}Z"


def test_the_cached_second_follows_a_clock_that_goes_back() -> None:
    assert stamp(1_700_000_001 * 10**9) == b"2023-11-14T22:13:21.000000000Z"
    assert stamp(1_700_000_000 * 10**9 + 7) == b"2023-11-14T22:13:20.000000007Z"
