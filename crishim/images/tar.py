"""Tar entries out of a stream of blocks: ustar, PAX, GNU and v7, as tar(5) and pax(1) describe them. Pure parsing.

The applier reads layers with it inside a confined child, the archive loader reads `docker save` and OCI layout files
with it in the server. Input is hostile: every length is bounded before it is read, and what cannot be understood is
refused with a sentence. No dataclasses and no logging: the child is forked from a lean process.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from typing import Protocol

from crishim.errors import InvalidSpec

BLOCK = 512
#: bytes of the PAX headers and GNU long names of one entry; Go's archive/tar stops at the same size of one
MAX_EXTENSION = 1 << 20
MAX_SPARSE_SEGMENTS = 100_000
#: extended attributes of one entry
MAX_XATTRS = 512
MAX_ID = (1 << 32) - 2
_MAX_SIZE = 1 << 62
_MIN_SECONDS, _MAX_SECONDS = -(1 << 31), (1 << 34) - (1 << 31) - 1  # what ext4 can keep
_ZERO = bytes(BLOCK)
#: name, mode, uid, gid, size, mtime, type, link: what every format has at the same place
_FIELDS = struct.Struct("100s8s8s8s12s12s8x1s100s")

FILE, HARDLINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_PLAIN = frozenset({FILE, b"\0", b"7"})
_WITHOUT_CONTENT = frozenset({HARDLINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO})
#: PAX headers of one entry and of all, GNU long names of an entry and its link
_EXTENSIONS = frozenset({b"x", b"X", b"g", b"L", b"K"})
_XATTR = b"SCHILY.xattr."


class BlockSource(Protocol):
    """Where the bytes come from; `crishim.images.stream.LayerStream` is one."""

    def read(self, length: int) -> bytes:
        """Exactly `length` bytes; InvalidSpec when the stream ends before."""

    def read_block(self) -> bytes:
        """512 bytes, or nothing at the end of the stream."""

    def skip(self, length: int) -> None:
        """Drop `length` bytes."""


class Entry:
    """One member of an archive. The source stands at the first of its `stored` content bytes, then `padding` follow."""

    __slots__ = (
        "gid",
        "kind",
        "link",
        "major",
        "minor",
        "mode",
        "mtime_ns",
        "name",
        "padding",
        "segments",
        "size",
        "stored",
        "uid",
        "xattrs",
    )

    def __init__(self, name: bytes, kind: bytes) -> None:
        self.name = name
        self.kind = kind
        self.link = b""
        #: permission bits only, 0..0o7777
        self.mode = 0
        self.uid = 0
        self.gid = 0
        #: bytes of the file as a reader of it sees them
        self.size = 0
        #: bytes in the archive, less than `size` when the file is sparse
        self.stored = 0
        self.padding = 0
        self.mtime_ns = 0
        self.major = 0
        self.minor = 0
        self.xattrs: list[tuple[bytes, bytes]] = []
        #: (offset, length) of the stored parts of a sparse file, None when it is not sparse
        self.segments: list[tuple[int, int]] | None = None


def read_entries(source: BlockSource) -> Iterator[Entry]:
    """Members in archive order. The caller consumes `stored + padding` bytes before it asks for the next.

    Ends at the first zero block, or where the stream ends between two members. InvalidSpec for anything else.
    """
    pax: list[tuple[bytes, bytes]] = []
    long_name = long_link = None
    extended = 0
    while header := _read_header(source):
        kind = header[156:157]
        if kind in _EXTENSIONS:
            body = _read_extension(source, header, MAX_EXTENSION - extended)
            if kind == b"g":
                parse_pax(body)  # a global header changes nothing, as in the archivers that make layers
                continue
            extended += len(body)
            if kind == b"L":
                long_name = body.rstrip(b"\0")
            elif kind == b"K":
                long_link = body.rstrip(b"\0")
            else:
                pax += parse_pax(body)
        else:
            yield _entry(source, header, pax, long_name, long_link)
            pax, long_name, long_link, extended = [], None, None, 0


@functools.lru_cache(maxsize=4096)  # modes, owners and times repeat from entry to entry
def parse_number(field: bytes) -> int:
    """A numeric header field: octal text, or base-256 when the first bit is set (GNU). Blank is 0."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        return value - (1 << (8 * len(field) - 1)) if field[0] & 0x40 else value
    text = field.strip(b" \0").partition(b"\0")[0]
    if not text:
        return 0
    if not text.isdigit() or b"8" in text or b"9" in text:
        raise InvalidSpec(f"the layer has a numeric header field {text!r}")
    return int(text, 8)


def parse_pax(body: bytes) -> list[tuple[bytes, bytes]]:
    """Records "LENGTH KEY=VALUE\\n" in order; keys may repeat (GNU sparse 0.0)."""
    records = []
    at = 0
    while at < len(body) and body[at] != 0:
        space = body.find(b" ", at, at + 20)
        digits = body[at:space] if space > 0 else b""
        end = at + int(digits) if digits.isdigit() else 0
        if not space < end <= len(body) or body[end - 1 : end] != b"\n":
            raise InvalidSpec("the layer has a pax header with a wrong record length")
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise InvalidSpec(f"the layer has a pax record without a key or value: {key[:64]!r}")
        records.append((key, value))
        at = end
    return records


def clean_name(name: bytes) -> bytes:
    """`name` relative to the root of the archive, without empty and "." parts; b"" is the root itself.

    InvalidSpec for "..": inside a layer it is never needed, and it is what an attack looks like.
    """
    if b"\0" in name:
        raise InvalidSpec(f"the layer names {name[:256]!r}, which holds a zero byte")
    parts = name.split(b"/")
    if b"" in parts or b"." in parts:
        parts = [part for part in parts if part not in (b"", b".")]
    if b".." in parts:
        raise InvalidSpec(f"the layer names {name[:256]!r}, which climbs out of its directory")
    return b"/".join(parts)


def _read_header(source: BlockSource) -> bytes:
    header = source.read_block()
    if not header or header == _ZERO:
        return b""
    stated = parse_number(header[148:156])
    # the checksum field itself counts as eight blanks
    total = sum(header) - sum(header[148:156]) + 256
    if total == stated:
        return header
    # historic archivers summed signed characters: each byte over 127 counts 256 less
    high = sum(byte > 127 for byte in header) - sum(byte > 127 for byte in header[148:156])
    if total - 256 * high != stated:
        raise InvalidSpec("the layer is not a tar archive: a header has a wrong checksum")
    return header


def _read_extension(source: BlockSource, header: bytes, room: int) -> bytes:
    size = parse_number(header[124:136])
    if not 0 <= size <= MAX_EXTENSION:
        raise InvalidSpec(f"the layer has an extended header of {size} bytes, more than {MAX_EXTENSION}")
    if size > room:  # one after the other, without an entry between them, would fill the memory
        raise InvalidSpec(f"the layer has extended headers of more than {MAX_EXTENSION} bytes for one entry")
    body = source.read(size)
    source.skip(-size % BLOCK)
    return body


def _entry(
    source: BlockSource, header: bytes, pax: list[tuple[bytes, bytes]], long_name: bytes | None, long_link: bytes | None
) -> Entry:
    name, mode, uid, gid, size, mtime, kind, link = _FIELDS.unpack_from(header)
    entry = Entry(name.partition(b"\0")[0], kind)
    if header[257:263] == b"ustar\0":
        # star(1) keeps times in the last part of the prefix and signs with "tar\0"
        prefix = header[345 : 476 if header[508:512] == b"tar\0" else 500].partition(b"\0")[0]
        if prefix:
            entry.name = prefix + b"/" + entry.name
    entry.mode = parse_number(mode) & 0o7777
    entry.uid = parse_number(uid)
    entry.gid = parse_number(gid)
    entry.size = parse_number(size)
    entry.mtime_ns = _nanoseconds(parse_number(mtime), 0)
    entry.link = link.partition(b"\0")[0]
    if entry.kind in (CHARACTER, BLOCK_DEVICE):
        entry.major = parse_number(header[329:337])
        entry.minor = parse_number(header[337:345])
    sparse = _apply_pax(entry, pax) if pax else {}
    if long_name is not None:
        entry.name = long_name
    if long_link is not None:
        entry.link = long_link
    if entry.kind in _PLAIN:
        entry.kind = DIRECTORY if entry.kind == b"\0" and entry.name.endswith(b"/") else FILE
    _settle_sizes(source, header, entry, sparse)
    _check(entry)
    return entry


def _apply_pax(entry: Entry, pax: list[tuple[bytes, bytes]]) -> dict[bytes, list[bytes]]:
    """Put what the records say into `entry`; the GNU.sparse ones are returned, values in order."""
    sparse: dict[bytes, list[bytes]] = {}
    for key, value in pax:
        if key.startswith(b"GNU.sparse."):
            sparse.setdefault(key[11:], []).append(value)
        elif key.startswith(_XATTR):
            entry.xattrs.append((key[len(_XATTR) :], value))
        elif not value:
            continue  # an empty value takes the record back: the header's own field counts
        elif key == b"path":
            entry.name = value
        elif key == b"linkpath":
            entry.link = value
        elif key == b"size":
            entry.size = _decimal(value)
        elif key == b"uid":
            entry.uid = _decimal(value)
        elif key == b"gid":
            entry.gid = _decimal(value)
        elif key == b"mtime":
            entry.mtime_ns = _pax_time(value)
    return sparse


def _settle_sizes(source: BlockSource, header: bytes, entry: Entry, sparse: dict[bytes, list[bytes]]) -> None:
    """Set stored, padding, size and segments; the maps that stand in front of the content are read here."""
    if entry.kind in _WITHOUT_CONTENT:
        entry.size = 0
        return
    if not 0 <= entry.size <= _MAX_SIZE:
        raise InvalidSpec(f"the layer gives {entry.name[:256]!r} a size of {entry.size}")
    entry.stored = entry.size
    entry.padding = -entry.size % BLOCK
    if entry.kind == b"S":
        entry.kind = FILE
        entry.size = parse_number(header[483:495])
        entry.segments = _old_gnu_map(source, header)
    elif sparse and entry.kind == FILE:
        _pax_sparse(source, entry, sparse)
    if entry.segments is not None:
        entry.segments = _checked_map(entry)


def _old_gnu_map(source: BlockSource, header: bytes) -> list[tuple[int, int]]:
    segments = _old_gnu_pairs(header[386:482])
    extended = header[482]
    while extended:
        block = source.read(BLOCK)
        segments += _old_gnu_pairs(block[:504])
        extended = block[504]
        if len(segments) > MAX_SPARSE_SEGMENTS:
            raise InvalidSpec(f"the layer has a sparse file of more than {MAX_SPARSE_SEGMENTS} parts")
    return segments


def _old_gnu_pairs(table: bytes) -> list[tuple[int, int]]:
    pairs = []
    for at in range(0, len(table), 24):
        if table[at + 12] == 0:
            break
        pairs.append((parse_number(table[at : at + 12]), parse_number(table[at + 12 : at + 24])))
    return pairs


def _pax_sparse(source: BlockSource, entry: Entry, sparse: dict[bytes, list[bytes]]) -> None:
    if b"name" in sparse:
        entry.name = sparse[b"name"][-1]
    size = sparse.get(b"realsize") or sparse.get(b"size")
    if size:
        entry.size = _decimal(size[-1])
    if sparse.get(b"major", [b"0"])[-1] == b"1":
        entry.segments = _stored_map(source, entry)
    elif b"map" in sparse:
        numbers = [_decimal(text) for text in sparse[b"map"][-1].split(b",") if text]
        entry.segments = list(zip(numbers[::2], numbers[1::2], strict=False))
    elif b"offset" in sparse:
        lengths = sparse.get(b"numbytes", [])
        entry.segments = [(_decimal(at), _decimal(n)) for at, n in zip(sparse[b"offset"], lengths, strict=False)]
    elif b"numblocks" in sparse:
        entry.segments = []


def _stored_map(source: BlockSource, entry: Entry) -> list[tuple[int, int]]:
    """The map of GNU sparse 1.0: decimal numbers, one a line, in blocks in front of the content."""
    wanted = None
    numbers: list[int] = []
    rest = b""
    while wanted is None or len(numbers) < wanted:
        if entry.stored < BLOCK:
            raise InvalidSpec(f"the layer has a sparse file {entry.name[:256]!r} with a cut map")
        entry.stored -= BLOCK
        *lines, rest = (rest + source.read(BLOCK)).split(b"\n")
        for line in lines:
            if wanted is None:
                wanted = 2 * _decimal(line)
                if wanted > 2 * MAX_SPARSE_SEGMENTS:
                    raise InvalidSpec(f"the layer has a sparse file of more than {MAX_SPARSE_SEGMENTS} parts")
            elif len(numbers) < wanted:
                numbers.append(_decimal(line))
        if len(rest) > 32 and len(numbers) < (wanted or 1):
            raise InvalidSpec(f"the layer has a sparse file {entry.name[:256]!r} with a wrong map")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _checked_map(entry: Entry) -> list[tuple[int, int]]:
    end = total = 0
    for offset, length in entry.segments or ():
        if offset < end or length < 0 or offset + length > entry.size:
            raise InvalidSpec(f"the layer has a sparse file {entry.name[:256]!r} whose parts overlap or leave it")
        end = offset + length
        total += length
    if total != entry.stored or entry.size > _MAX_SIZE:
        raise InvalidSpec(f"the layer has a sparse file {entry.name[:256]!r} whose map does not fit its content")
    return [segment for segment in entry.segments or () if segment[1]]


def _check(entry: Entry) -> None:
    if entry.kind != FILE and entry.kind not in _WITHOUT_CONTENT:
        raise InvalidSpec(f"the layer has an entry {entry.name[:256]!r} of the unknown type {entry.kind!r}")
    for what, number in (("uid", entry.uid), ("gid", entry.gid)):
        if not 0 <= number <= MAX_ID:
            raise InvalidSpec(f"the layer gives {entry.name[:256]!r} the {what} {number}")
    if entry.kind in (HARDLINK, SYMLINK) and not entry.link:
        raise InvalidSpec(f"the layer has a link {entry.name[:256]!r} without a target")
    if entry.kind in (HARDLINK, SYMLINK) and b"\0" in entry.link:
        raise InvalidSpec(f"the layer links {entry.name[:256]!r} to {entry.link[:256]!r}, which holds a zero byte")
    if len(entry.xattrs) > MAX_XATTRS:
        raise InvalidSpec(f"the layer gives {entry.name[:256]!r} more than {MAX_XATTRS} attributes")
    for key, _ in entry.xattrs:
        if b"\0" in key:
            raise InvalidSpec(
                f"the layer gives {entry.name[:256]!r} the attribute {key[:256]!r}, which holds a zero byte"
            )
    if not (0 <= entry.major < 1 << 12 and 0 <= entry.minor < 1 << 20):
        raise InvalidSpec(f"the layer has a device {entry.name[:256]!r} numbered {entry.major}:{entry.minor}")


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise InvalidSpec(f"the layer has a pax number {text[:32]!r}")
    return int(text)


def _pax_time(text: bytes) -> int:
    seconds, _, fraction = text.lstrip(b"-").partition(b".")
    if len(seconds) > 19 or not (seconds + b"0").isdigit() or not (fraction + b"0").isdigit():
        raise InvalidSpec(f"the layer has a pax time {text[:32]!r}")
    nanoseconds = int(fraction[:9].ljust(9, b"0"))
    sign = -1 if text.startswith(b"-") else 1
    return _nanoseconds(sign * int(seconds or b"0"), sign * nanoseconds)


def _nanoseconds(seconds: int, nanoseconds: int) -> int:
    return min(max(seconds, _MIN_SECONDS), _MAX_SECONDS) * 1_000_000_000 + nanoseconds
