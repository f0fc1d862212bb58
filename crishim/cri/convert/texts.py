"""Text on its way out: what came from a container or an image may hold what UTF-8 cannot."""

from __future__ import annotations


def to_wire(text: str) -> str:
    """`text` with lone surrogates (bytes that were not UTF-8) written as escapes; protobuf and gRPC refuse them."""
    return text.encode("utf-8", "backslashreplace").decode()
