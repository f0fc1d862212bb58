from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable, Iterator

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from crishim.errors import InvalidSpec
from crishim.images.stream import LayerStream

CONTENT = os.urandom(1000) * 3000


def stream_of(content: bytes, max_bytes: int = 1 << 30) -> Iterator[LayerStream]:
    descriptor = os.memfd_create("layer")
    try:
        os.write(descriptor, content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield LayerStream(descriptor, max_bytes)
    finally:
        os.close(descriptor)


def digest_of(content: bytes, max_bytes: int = 1 << 30) -> str:
    for stream in stream_of(content, max_bytes):
        return stream.drain()
    raise AssertionError


def zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


SKIPPABLE = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"


@pytest.mark.parametrize(
    "compress",
    [
        bytes,
        gzip.compress,
        lambda content: gzip.compress(content[:100]) + gzip.compress(b"") + gzip.compress(content[100:]),
        lambda content: gzip.compress(content) + bytes(1000),
        zstd,
        lambda content: zstd(content[:100]) + zstd(content[100:]),
        lambda content: SKIPPABLE + zstd(content) + SKIPPABLE,
    ],
    ids=["plain", "gzip", "members", "padded", "zstd", "frames", "skippable"],
)
def test_every_compression_gives_the_same_bytes(compress: Callable[[bytes], bytes]) -> None:
    assert digest_of(compress(CONTENT)) == "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(CONTENT)[:-5],
        gzip.compress(CONTENT) + b"garbage",
        b"\x1f\x8b\xff\xff",
        b"\x28\xb5\x2f\xfd\xff\xff" + bytes(100),
    ],
)
def test_broken_compression_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidSpec):
        digest_of(content)


def test_a_bomb_is_stopped_at_the_limit() -> None:
    with pytest.raises(InvalidSpec, match="larger than 1000000 bytes"):
        digest_of(gzip.compress(bytes(50_000_000)), max_bytes=1_000_000)
    with pytest.raises(InvalidSpec, match="larger than 1000000 bytes"):
        digest_of(zstd(bytes(50_000_000)), max_bytes=1_000_000)


@given(st.binary(max_size=5000), st.lists(st.integers(0, 600), max_size=12))
def test_reads_of_any_length_give_the_bytes_in_order(content: bytes, lengths: list[int]) -> None:
    for stream in stream_of(gzip.compress(content)):
        at = 0
        for length in lengths:
            if at + length > len(content):
                with pytest.raises(InvalidSpec, match="in the middle"):
                    stream.read(length)
                return
            assert stream.read(length) == content[at : at + length]
            at += length
