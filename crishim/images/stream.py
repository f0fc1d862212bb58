"""The uncompressed bytes of a layer blob, counted, bounded and hashed while they are read.

Compression is told by the first bytes, never by a media type that anybody can write. Used in the confined child (no
logging, no dataclasses) and by the archive loader.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from crishim.errors import InvalidSpec, Unsupported

_CHUNK = 1 << 20
_INPUT = 1 << 18
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
#: zstd's own default limit: a frame that wants a larger window is refused
_ZSTD_WINDOW = 1 << 27


class LayerStream:
    """A buffered reader of uncompressed bytes (`tar.BlockSource`); `digest` is the sha256 of all that was read from it.

    The descriptor stays the caller's. Every uncompressed byte passes the hash, in order, the padding at the end too,
    once `drain` was called.
    """

    def __init__(self, descriptor: int, max_bytes: int) -> None:
        self._next = open_stream(descriptor)
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self._chunk = b""
        self._at = 0
        self.total = 0

    def read(self, length: int) -> bytes:
        """Exactly `length` bytes; InvalidSpec when the stream ends before."""
        end = self._at + length
        if end <= len(self._chunk):
            piece = self._chunk[self._at : end]
            self._at = end
            return piece
        return b"".join(bytes(piece) for piece in self.pieces(length))

    def read_block(self) -> bytes:
        """512 bytes, or nothing at the end of the stream."""
        if self._at == len(self._chunk) and not self._refill():
            return b""
        return self.read(512)

    def skip(self, length: int) -> None:
        """Drop `length` bytes."""
        for _ in self.pieces(length):
            pass

    def pieces(self, length: int) -> Iterator[memoryview]:
        """`length` bytes in views that are good until the next one is asked for."""
        while length:
            if self._at == len(self._chunk) and not self._refill():
                raise InvalidSpec("the layer ends in the middle of an entry")
            view = memoryview(self._chunk)[self._at : self._at + length]
            self._at += len(view)
            length -= len(view)
            yield view

    def drain(self) -> str:
        """Read to the end and return the digest ("sha256:...") of the whole uncompressed stream, the diff id."""
        while self._refill():
            pass
        return "sha256:" + self._hash.hexdigest()

    def _refill(self) -> bool:
        self._chunk = self._next()
        self._at = 0
        self.total += len(self._chunk)
        if self.total > self._max_bytes:
            raise InvalidSpec(f"the layer is larger than {self._max_bytes} bytes when it is unpacked")
        self._hash.update(self._chunk)
        return bool(self._chunk)


def open_stream(descriptor: int) -> Callable[[], bytes]:
    """A function that returns the next uncompressed bytes of the file, and nothing at its end."""
    magic = os.pread(descriptor, 4, 0)
    if magic[:2] == _GZIP:
        return _Gzip(descriptor).read
    if magic == _ZSTD or (magic[1:] == b"\x2a\x4d\x18" and magic[0] & 0xF0 == 0x50):
        return _open_zstd(descriptor)
    return lambda: os.read(descriptor, _CHUNK)


class _Gzip:
    """Members of a gzip file one after another (pigz and estargz write many); zero bytes may follow the last.

    The decompressor is looked up here, once: in the confined child nothing may be imported later, when "/" is hostile.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._zlib = _fastest_zlib()
        self._decompressor = self._zlib.decompressobj(wbits=31)
        self._rest = b""

    def read(self) -> bytes:
        try:
            return self._read()
        except (zlib.error, self._zlib.error) as error:
            raise InvalidSpec(f"the layer is not valid gzip: {error}") from None

    def _read(self) -> bytes:
        while True:
            if self._decompressor.eof and not self._next_member():
                return b""
            if not self._rest:
                self._rest = os.read(self._descriptor, _INPUT)
                if not self._rest:
                    raise InvalidSpec("the layer is cut: its gzip stream has no end")
            piece = self._decompressor.decompress(self._rest, _CHUNK)
            self._rest = (
                self._decompressor.unused_data if self._decompressor.eof else self._decompressor.unconsumed_tail
            )
            if piece:
                return bytes(piece)

    def _next_member(self) -> bool:
        while not self._rest.lstrip(b"\0"):
            # zeros pad the end; they never stand between members
            self._rest = os.read(self._descriptor, _INPUT)
            if not self._rest:
                return False
        self._decompressor = self._zlib.decompressobj(wbits=31)
        return True


def _fastest_zlib() -> Any:
    try:
        from isal import isal_zlib
    except ImportError:  # an interpreter without the wheel: twice the time, the same bytes
        return zlib
    return isal_zlib


class _File:
    """The two methods of a file that zstandard needs, without io's buffers."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, length: int) -> bytes:
        return os.read(self._descriptor, length)


def _open_zstd(descriptor: int) -> Callable[[], bytes]:
    try:
        import zstandard
    except ImportError:
        raise Unsupported("the layer is compressed with zstd, which this interpreter cannot read") from None
    source: Any = _File(descriptor)
    reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(
        source, read_size=_INPUT, read_across_frames=True, closefd=False
    )

    def read() -> bytes:
        try:
            return reader.read(_CHUNK)
        except zstandard.ZstdError as error:
            raise InvalidSpec(f"the layer is not valid zstd: {error}") from None

    return read
