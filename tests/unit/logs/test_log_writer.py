"""The log writer: chunking, rotation, a disk that refuses, hostile paths. Refusals of the disk are played."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.errors import InvalidSpec
from crishim.logs.format import LINE_LIMIT_BYTES
from crishim.logs.writer import STDERR, STDOUT, LogWriter


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[LogWriter]:
    made = LogWriter(os.fsencode(tmp_path), b"app/0.log")
    made.open()
    yield made
    made.close()


def entries(path: Path) -> list[tuple[bytes, bytes, bytes]]:
    """(stream, tag, content) of each line; a torn line fails the split."""
    data = path.read_bytes()
    assert data == b"" or data.endswith(b"\n")
    out = []
    for line in data.split(b"\n")[:-1]:
        time, stream, tag, content = line.split(b" ", 3)
        assert len(time) == 30 and time.endswith(b"Z")
        assert stream in (b"stdout", b"stderr") and tag in (b"P", b"F")
        out.append((stream, tag, content))
    return out


def text_of(path: Path, stream: bytes) -> bytes:
    return b"".join(content + (b"\n" if tag == b"F" else b"") for name, tag, content in entries(path) if name == stream)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([STDOUT, STDERR]),
            st.one_of(
                st.binary(max_size=60),
                st.integers(1, 70000).map(lambda n: b"z" * n),
                st.integers(600_000, 800_000).map(lambda n: b"z" * n),
                st.lists(st.binary(max_size=5), max_size=8).map(b"\n".join),
                st.integers(1, 40000).map(lambda n: b"z" * n + b"\n"),
            ),
        ),
        max_size=12,
    )
)
def test_what_was_fed_can_be_read_back_however_it_was_cut(tmp_path_factory, chunks) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("logs")
    writer = LogWriter(os.fsencode(folder), b"0.log")
    writer.open()
    for stream, data in chunks:
        writer.feed(stream, data)
    writer.close()
    fed = {s: b"".join(d for stream, d in chunks if stream == s) for s in (STDOUT, STDERR)}
    assert text_of(folder / "0.log", b"stdout") == fed[STDOUT]
    assert text_of(folder / "0.log", b"stderr") == fed[STDERR]
    found = entries(folder / "0.log")
    assert all(len(content) <= LINE_LIMIT_BYTES for _, _, content in found)
    assert all(len(content) == LINE_LIMIT_BYTES for _, tag, content in found[:-2] if tag == b"P")
    assert writer.lines_written == len(found)
    assert writer.bytes_written == sum(len(content) for _, _, content in found)
    assert (writer.bytes_lost, writer.lines_lost) == (0, 0)


def test_the_file_and_its_folders_get_their_modes(writer: LogWriter, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "app/0.log").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "app").stat().st_mode) == 0o755


def test_an_unfinished_line_ends_as_partial_and_only_once(writer: LogWriter, tmp_path: Path) -> None:
    writer.feed(STDOUT, b"no newline")
    assert entries(tmp_path / "app/0.log") == []
    writer.end(STDOUT)
    writer.end(STDOUT)
    assert entries(tmp_path / "app/0.log") == [(b"stdout", b"P", b"no newline")]


def test_streams_do_not_mix_their_unfinished_lines(writer: LogWriter, tmp_path: Path) -> None:
    writer.feed(STDOUT, b"out-")
    writer.feed(STDERR, b"err-")
    writer.feed(STDOUT, b"1\n")
    writer.feed(STDERR, b"2\n")
    assert entries(tmp_path / "app/0.log") == [(b"stdout", b"F", b"out-1"), (b"stderr", b"F", b"err-2")]


def test_a_line_half_read_at_the_rotation_goes_to_the_new_file(writer: LogWriter, tmp_path: Path) -> None:
    log = tmp_path / "app/0.log"
    writer.feed(STDOUT, b"first\nhalf")
    log.rename(tmp_path / "app/0.log.1")
    writer.feed(STDOUT, b"-still-half")
    writer.reopen()
    writer.feed(STDOUT, b"-done\n")
    assert entries(tmp_path / "app/0.log.1") == [(b"stdout", b"F", b"first")]
    assert entries(log) == [(b"stdout", b"F", b"half-still-half-done")]


def test_a_thousand_rotations_lose_and_tear_nothing(tmp_path: Path) -> None:
    writer = LogWriter(os.fsencode(tmp_path), b"0.log")
    writer.open()
    data = b"".join(b"line %d %s\n" % (n, b"x" * (n % 300)) for n in range(20000))
    step = len(data) // 1000 + 1
    for turn in range(1000):
        writer.feed(STDOUT, data[turn * step : (turn + 1) * step])
        (tmp_path / "0.log").rename(tmp_path / f"{turn:04d}.log")
        writer.reopen()
    writer.close()
    assert b"".join(text_of(path, b"stdout") for path in sorted(tmp_path.iterdir())) == data


def test_a_reopen_that_fails_keeps_the_old_file(writer: LogWriter, tmp_path: Path) -> None:
    log = tmp_path / "app/0.log"
    log.rename(tmp_path / "app/old")
    log.symlink_to("elsewhere")
    with pytest.raises(InvalidSpec, match="symbolic link"):
        writer.reopen()
    writer.feed(STDOUT, b"still here\n")
    assert entries(tmp_path / "app/old") == [(b"stdout", b"F", b"still here")]
    assert not (tmp_path / "app/elsewhere").exists()


@pytest.mark.parametrize("path", [b"", b".", b"/etc/0.log", b"../0.log", b"a/../../0.log", b"a\0b"])
def test_a_path_that_names_nothing_below_the_directory_is_refused(tmp_path: Path, path: bytes) -> None:
    with pytest.raises(InvalidSpec, match="does not name a file below"):
        LogWriter(os.fsencode(tmp_path / "logs"), path).open()
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_a_folder_on_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "logs/app").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidSpec, match="symbolic link"):
        LogWriter(os.fsencode(tmp_path / "logs"), b"app/0.log").open()
    assert list((tmp_path / "secret").iterdir()) == []


def test_a_link_inside_the_directory_is_not_followed_either(tmp_path: Path) -> None:
    (tmp_path / "real.log").write_bytes(b"untouched")
    (tmp_path / "0.log").symlink_to("real.log")
    with pytest.raises(InvalidSpec):
        LogWriter(os.fsencode(tmp_path), b"0.log").open()
    assert (tmp_path / "real.log").read_bytes() == b"untouched"


def test_a_second_name_of_a_file_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "passwd").write_bytes(b"untouched")
    (tmp_path / "logs").mkdir()
    os.link(tmp_path / "passwd", tmp_path / "logs/0.log")
    with pytest.raises(InvalidSpec):
        LogWriter(os.fsencode(tmp_path / "logs"), b"0.log").open()


def test_a_fifo_neither_blocks_nor_is_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.log")
    writer = LogWriter(os.fsencode(tmp_path), b"0.log")
    with pytest.raises(InvalidSpec):
        writer.open()
    reader = os.open(tmp_path / "0.log", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(InvalidSpec):
            writer.open()
    finally:
        os.close(reader)


def test_no_descriptor_is_left_by_refusals(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/0.log").symlink_to("x")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(InvalidSpec):
            LogWriter(os.fsencode(tmp_path), b"a/0.log").open()
    assert len(os.listdir("/proc/self/fd")) == before


class Disk:
    """Plays a disk with `room` bytes left behind os.write: a short write first, then ENOSPC, as ext4 does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room = room
        self._write = os.write
        monkeypatch.setattr("crishim.logs.writer.os.write", self.write)

    def write(self, fd: int, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "no space")
        done = self._write(fd, bytes(data[: self.room]))
        self.room -= done
        return done


@pytest.mark.parametrize("room", range(0, 130, 3))
def test_a_full_disk_is_counted_and_no_line_stays_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    writer = LogWriter(os.fsencode(tmp_path), b"0.log")
    writer.open()
    disk = Disk(monkeypatch, room)
    writer.feed(STDOUT, b"one\ntwo\nthree\n")
    writer.feed(STDERR, b"four\n")
    disk.room = 10**6
    writer.feed(STDOUT, b"five\n")
    writer.close()
    found = entries(tmp_path / "0.log")
    assert found[-1] == (b"stdout", b"F", b"five")
    assert writer.lines_written == len(found) and writer.lines_lost == 5 - len(found)
    assert writer.bytes_written + writer.bytes_lost == len("onetwothreefourfive")
    assert writer.last_errno == errno.ENOSPC


def test_a_line_cut_by_a_full_disk_moves_whole_to_the_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = LogWriter(os.fsencode(tmp_path), b"0.log")
    writer.open()
    disk = Disk(monkeypatch, 60)
    writer.feed(STDOUT, b"first\nsecond\nthird\n")
    (tmp_path / "0.log").rename(tmp_path / "old")
    writer.reopen()
    disk.room = 10**6
    writer.feed(STDOUT, b"fourth\n")
    writer.close()
    assert entries(tmp_path / "old") == [(b"stdout", b"F", b"first")]
    assert entries(tmp_path / "0.log") == [(b"stdout", b"F", b"second"), (b"stdout", b"F", b"fourth")]
    assert (writer.lines_written, writer.lines_lost) == (3, 1)


def test_a_line_still_cut_at_the_close_is_taken_back_and_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = LogWriter(os.fsencode(tmp_path), b"0.log")
    writer.open()
    Disk(monkeypatch, 60)
    writer.feed(STDOUT, b"first\nsecond\n")
    writer.close()
    assert entries(tmp_path / "0.log") == [(b"stdout", b"F", b"first")]
    assert (writer.lines_lost, writer.bytes_lost) == (1, len("second"))


def test_output_for_a_log_that_was_never_opened_is_counted(tmp_path: Path) -> None:
    writer = LogWriter(os.fsencode(tmp_path), b"0.log")
    writer.feed(STDOUT, b"nowhere\n")
    assert (writer.lines_lost, writer.last_errno) == (1, errno.EBADF)
