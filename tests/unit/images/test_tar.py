from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.errors import InvalidSpec
from crishim.images import tar
from crishim.images.stream import LayerStream


def entries_of(content: bytes) -> list[tuple[tar.Entry, bytes]]:
    """Every entry with its stored content."""
    descriptor = os.memfd_create("layer")
    try:
        os.write(descriptor, content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        stream = LayerStream(descriptor, 1 << 30)
        found = []
        for entry in tar.read_entries(stream):
            found.append((entry, stream.read(entry.stored)))
            stream.skip(entry.padding)
        return found
    finally:
        os.close(descriptor)


def archive_of(*members: tarfile.TarInfo, content: bytes = b"", format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def header(name: bytes = b"file", kind: bytes = b"0", **fields: bytes) -> bytes:
    """One raw header block; fields: mode, uid, gid, size, mtime, link, major, minor, prefix."""
    places = {"mode": 100, "uid": 108, "gid": 116, "size": 124, "mtime": 136, "major": 329, "minor": 337, "prefix": 345}
    block = bytearray(512)
    block[: len(name)] = name
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    for field, value in fields.items():
        place = 157 if field == "link" else places[field]
        block[place : place + len(value)] = value
    return checked(block)


def checked(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def extended(body: bytes, kind: bytes = b"x") -> bytes:
    return header(b"pax", kind, size=b"%011o\0" % len(body)) + body + bytes(-len(body) % 512)


def record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body)
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


names = st.text(
    st.characters(blacklist_characters="\0/", blacklist_categories=("Cs",)), min_size=1, max_size=90
).filter(lambda name: name not in (".", ".."))
kinds = st.sampled_from(
    [
        tarfile.REGTYPE,
        tarfile.DIRTYPE,
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
    ]
)


@st.composite
def members(draw: st.DrawFn) -> tarfile.TarInfo:
    member = tarfile.TarInfo("/".join(draw(st.lists(names, min_size=1, max_size=4))))
    member.type = draw(kinds)
    member.mode = draw(st.integers(0, 0o7777))
    member.uid = draw(st.integers(0, tar.MAX_ID))
    member.gid = draw(st.integers(0, tar.MAX_ID))
    member.mtime = draw(st.integers(-(2**31), 2**33))
    if member.type in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        member.linkname = draw(names)
    if member.type in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        member.devmajor, member.devminor = draw(st.integers(0, 4095)), draw(st.integers(0, 1 << 20 - 1))
    return member


@given(
    st.lists(members(), max_size=4), st.binary(max_size=1500), st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
)
def test_what_tarfile_writes_is_read_back(written: list[tarfile.TarInfo], content: bytes, format: int) -> None:
    found = entries_of(archive_of(*written, content=content, format=format))
    assert len(found) == len(written)
    for (entry, stored), member in zip(found, written, strict=True):
        assert os.fsdecode(entry.name).rstrip("/") == member.name.rstrip("/")
        assert entry.kind == member.type
        assert (entry.mode, entry.uid, entry.gid) == (member.mode, member.uid, member.gid)
        assert entry.mtime_ns == int(member.mtime) * 10**9
        assert stored == (content if member.isreg() else b"")
        assert os.fsdecode(entry.link) == (member.linkname if member.issym() or member.islnk() else "")
        if member.isdev() and not member.isfifo():
            assert (entry.major, entry.minor) == (member.devmajor, member.devminor)


@given(st.binary(max_size=2048))
def test_any_bytes_are_entries_or_an_error(content: bytes) -> None:
    try:
        entries_of(content)
    except InvalidSpec:
        pass


@given(st.data())
def test_a_damaged_archive_is_entries_or_an_error(data: st.DataObject) -> None:
    member = tarfile.TarInfo("a/b")
    member.pax_headers = {"SCHILY.xattr.user.k": "v", "mtime": "1.5"}
    content = bytearray(archive_of(member, content=b"x" * 700))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    for at in (0, 1024):  # headers count only with their checksum
        if data.draw(st.booleans()):
            content[at : at + 512] = checked(content[at : at + 512])
    try:
        entries_of(bytes(content))
    except InvalidSpec:
        pass


def test_pax_records_override_the_header() -> None:
    body = b"".join(
        [
            record(b"path", b"long/" + b"n" * 300),
            record(b"uid", b"3000000000"),
            record(b"mtime", b"1700000000.123456789123"),
            record(b"SCHILY.xattr.security.capability", b"\1\0\0\2\n\0="),
            record(b"gid", b""),
            record(b"comment", b"of no interest"),
        ]
    )
    ((entry, _),) = entries_of(extended(body) + header(gid=b"0000007\0") + bytes(1024))
    assert entry.name == b"long/" + b"n" * 300
    assert (entry.uid, entry.gid) == (3000000000, 7)
    assert entry.mtime_ns == 1700000000_123456789
    assert entry.xattrs == [(b"security.capability", b"\1\0\0\2\n\0=")]


def test_a_global_header_changes_nothing() -> None:
    ((entry, _),) = entries_of(extended(record(b"path", b"elsewhere"), b"g") + header(b"here") + bytes(1024))
    assert entry.name == b"here"


def test_old_headers_are_read() -> None:
    block = bytearray(header(b"dir/", b"\0"))
    block[257:265] = bytes(8)
    ((entry, _),) = entries_of(checked(block) + bytes(1024))
    assert (entry.kind, entry.name) == (tar.DIRECTORY, b"dir/")


def test_prefix_and_base_256_numbers_are_read() -> None:
    content = header(b"name", prefix=b"some/prefix", uid=b"\x80\0\0\0\xf0\0\0\1", mtime=b"\xff" * 12)
    ((entry, _),) = entries_of(content + bytes(1024))
    assert entry.name == b"some/prefix/name"
    assert entry.uid == 0xF0000001
    assert entry.mtime_ns == -(10**9)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (header(size=b"77777777777\0"), "in the middle"),
        (header(size=b"\xff" * 12), "size"),
        (header(size=b"12x\0"), "numeric"),
        (header(uid=b"\xff" * 8), "uid"),
        (header(uid=b"\x80\0\0\1\0\0\0\0"), "uid"),
        (header(gid=b"\x80\0\0\0\xff\xff\xff\xff"), "gid"),
        (header(kind=b"1"), "without a target"),
        (header(kind=b"2"), "without a target"),
        (header(kind=b"3", major=b"7777777\0"), "device"),
        (header(kind=b"V"), "unknown type"),
        (header(kind=b"Z"), "unknown type"),
        (header(b"x", b"x", size=b"00004000001\0"), "extended header"),
        (header(b"x", b"L", size=b"\x80" + b"\0" * 5 + b"\1" + b"\0" * 5), "extended header"),
        (extended(record(b"comment", b"x" * 600_000)) * 2 + header(), "more than 1048576 bytes for one entry"),
        (extended(record(b"comment", b"x" * 600_000)) + extended(b"n" * 600_000, b"L") + header(), "for one entry"),
        (extended(b"nonsense"), "record length"),
        (extended(b"9999 a=b\n"), "record length"),
        (extended(b"1 a=b\n"), "record length"),
        (extended(b"5 a \n"), "record length|without a key"),
        (extended(record(b"uid", b"-1")) + header(), "pax number"),
        (extended(record(b"size", b"9" * 30)) + header(), "pax number"),
        (extended(record(b"mtime", b"1e9")) + header(), "pax time"),
        (extended(record(b"linkpath", b"a\0b")) + header(kind=b"2"), "to b'a.*zero byte"),
        (extended(b"a\0b", b"K") + header(kind=b"1"), "to b'a.*zero byte"),
        (extended(record(b"SCHILY.xattr.user.a\0b", b"v")) + header(), "attribute b'user.*zero byte"),
        (extended(b"".join(record(b"SCHILY.xattr.user.%d" % n, b"v") for n in range(513))) + header(), "more than 512"),
        (b"\1" * 512, "numeric|checksum"),
        (header()[:300], "in the middle"),
    ],
)
def test_a_hostile_header_is_refused_with_a_sentence(content: bytes, why: str) -> None:
    with pytest.raises(InvalidSpec, match=why):
        entries_of(content)


@pytest.mark.parametrize(
    "sparse",
    [
        [(b"size", b"100"), (b"offset", b"0"), (b"numbytes", b"200")],
        [(b"size", b"100"), (b"map", b"50,20,10,20")],
        [(b"size", b"100"), (b"map", b"0,10")],
        [(b"major", b"1"), (b"minor", b"0"), (b"realsize", b"100")],
    ],
)
def test_a_sparse_map_that_does_not_fit_is_refused(sparse: list[tuple[bytes, bytes]]) -> None:
    body = b"".join(record(b"GNU.sparse." + key, value) for key, value in sparse)
    with pytest.raises(InvalidSpec, match=r"sparse|pax number"):
        entries_of(extended(body) + header(size=b"00000000020\0") + b"x" * 512)


def test_names_are_cleaned_and_never_climb() -> None:
    assert tar.clean_name(b"/./a//b/./c/") == b"a/b/c"
    assert tar.clean_name(b"./") == tar.clean_name(b"/") == b""
    assert tar.clean_name(b"..a/b..") == b"..a/b.."
    for name in (b"..", b"a/../b", b"/..", b"a/.."):
        with pytest.raises(InvalidSpec, match="climbs out"):
            tar.clean_name(name)
    with pytest.raises(InvalidSpec, match="zero byte"):
        tar.clean_name(b"a\0b")


def test_a_file_of_the_python_library_is_read_as_tarfile_reads_it(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(os.path.dirname(tarfile.__file__) + "/json", "json")
    with tarfile.open(fileobj=io.BytesIO(buffer.getvalue())) as archive:
        expected = [(member.name, member.size, member.mode) for member in archive]
    assert [(os.fsdecode(e.name).rstrip("/"), e.size, e.mode) for e, _ in entries_of(buffer.getvalue())] == expected
