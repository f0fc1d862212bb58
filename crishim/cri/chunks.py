"""Answers in pieces: the Stream methods send what the List methods would, in messages of a bounded size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

#: well below the 4 MiB that a client of gRPC takes when it was not told otherwise
CHUNK_BYTES: Final = 1 << 20


def chunks(elements: Iterable[bytes], limit_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Messages made of whole elements, at most `limit_bytes` each; an element that is larger goes alone.

    No elements make no message: the stream is closed at once.
    """
    piece: list[bytes] = []
    size = 0
    for element in elements:
        if piece and size + len(element) > limit_bytes:
            yield b"".join(piece)
            piece, size = [], 0
        piece.append(element)
        size += len(element)
    if piece:
        yield b"".join(piece)
