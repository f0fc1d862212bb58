"""Header blocks of SPDY/3.1: names and values, deflated with one stream per direction and a preset dictionary.

A block shares its compression state with all before it, so each one must be inflated, also when its stream is refused.
Source: SPDY protocol draft 3.1, section 2.6.10.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Mapping

from crishim.errors import Internal

_LENGTH = struct.Struct(">I")

_NAMES = (
    "options, head, post, put, delete, trace, accept, accept-charset, accept-encoding, accept-language, "
    "accept-ranges, age, allow, authorization, cache-control, connection, content-base, content-encoding, "
    "content-language, content-length, content-location, content-md5, content-range, content-type, date, etag, "
    "expect, expires, from, host, if-match, if-modified-since, if-none-match, if-range, if-unmodified-since, "
    "last-modified, location, max-forwards, pragma, proxy-authenticate, proxy-authorization, range, referer, "
    "retry-after, server, te, trailer, transfer-encoding, upgrade, user-agent, vary, via, warning, www-authenticate, "
    "method, get, status, 200 OK, version, HTTP/1.1, url, public, set-cookie, keep-alive, origin"
)
_TAIL = (
    b"100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritativ"
    b"e Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 I"
    b"nternal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec"
    b" 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xm"
    b"l,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset="
    b"iso-8859-1,utf-,*,enq=0."
)
DICTIONARY = b"".join(_LENGTH.pack(len(name)) + name.encode() for name in _NAMES.split(", ")) + _TAIL
DICTIONARY_SHA256 = "51d27341373f923f3cd88e1eb7162aeaa3723d7585ff2399201dc06498407f02"
if hashlib.sha256(DICTIONARY).hexdigest() != DICTIONARY_SHA256:
    raise Internal("the dictionary of SPDY header compression was changed")

Headers = Mapping[str, str]
"""Lower-case names to values as latin-1; several values of a name stand in one, separated by NUL."""


class BadHeaders(Exception):
    """A header block that cannot be read; the compression state is lost with it, so the connection has to end."""


class HeaderDeflater:
    """Header blocks of one direction, in the order they are sent."""

    def __init__(self) -> None:
        self._stream = zlib.compressobj(9, zlib.DEFLATED, 15, 8, 0, DICTIONARY)

    def deflate(self, headers: Headers) -> bytes:
        """The block of these headers."""
        parts = [_LENGTH.pack(len(headers))]
        for name, value in headers.items():
            for text in (name.lower(), value):
                encoded = text.encode("latin-1")
                parts += (_LENGTH.pack(len(encoded)), encoded)
        return self._stream.compress(b"".join(parts)) + self._stream.flush(zlib.Z_SYNC_FLUSH)


class HeaderInflater:
    """Header blocks of one direction, in the order they come."""

    def __init__(self, max_bytes: int, max_count: int) -> None:
        """max_bytes: of one block when inflated; max_count: names in it."""
        self._stream = zlib.decompressobj(15, DICTIONARY)
        self._max_bytes = max_bytes
        self._max_count = max_count

    def inflate(self, block: bytes) -> Headers:
        """The headers of a block; BadHeaders when it is damaged or beyond the bounds."""
        try:
            plain = self._stream.decompress(block, self._max_bytes + 1)
        except zlib.error as error:
            raise BadHeaders("a header block cannot be inflated") from error
        if len(plain) > self._max_bytes:
            raise BadHeaders(f"a header block has more than {self._max_bytes} bytes")
        if self._stream.eof:
            raise BadHeaders("the compression of headers was ended")
        return _parsed(plain, self._max_count)


def _parsed(plain: bytes, max_count: int) -> Headers:
    if len(plain) < _LENGTH.size:
        raise BadHeaders("a header block is too short")
    (count,) = _LENGTH.unpack_from(plain)
    if count > max_count:
        raise BadHeaders(f"a header block has {count} names, more than {max_count}")
    headers: dict[str, str] = {}
    offset = _LENGTH.size
    for _ in range(count):
        name, offset = _text(plain, offset)
        value, offset = _text(plain, offset)
        if not name or name in headers:
            raise BadHeaders("a header block has an empty or a repeated name")
        headers[name] = value
    if offset != len(plain):
        raise BadHeaders("a header block goes on after its last value")
    return headers


def _text(plain: bytes, offset: int) -> tuple[str, int]:
    start = offset + _LENGTH.size
    if start > len(plain):
        raise BadHeaders("a header block ends inside a length")
    end = start + _LENGTH.unpack_from(plain, offset)[0]
    if end > len(plain):
        raise BadHeaders("a header block ends inside a text")
    return plain[start:end].decode("latin-1"), end
