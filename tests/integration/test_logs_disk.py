"""Container logs on a real file system that runs full, and under a flood through a pipe."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from crishim.logs.writer import STDOUT, LogWriter


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 256 KiB."""
    point = tmp_path / "disk"
    point.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", point], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"cannot mount a tmpfs: {made.stderr.decode().strip()}")
    yield point
    subprocess.run(["umount", "-l", point], check=True)


def contents(path: Path) -> list[bytes]:
    data = path.read_bytes()
    assert data.endswith(b"\n")
    lines = [line.split(b" ", 3) for line in data.split(b"\n")[:-1]]
    assert all(len(line) == 4 and len(line[0]) == 30 and line[1:3] == [b"stdout", b"F"] for line in lines)
    return [line[3] for line in lines]


def test_a_full_disk_loses_only_what_it_counts_and_recovers(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * 100_000)
    writer = LogWriter(os.fsencode(small_disk), b"0.log")
    writer.open()
    fed = [b"line %06d" % number for number in range(5000)]
    for start in range(0, 4000, 100):
        writer.feed(STDOUT, b"\n".join(fed[start : start + 100]) + b"\n")
    assert writer.last_errno == errno.ENOSPC and writer.lines_lost > 0
    ballast.unlink()
    writer.feed(STDOUT, b"\n".join(fed[4000:4500]) + b"\n")
    lost = writer.lines_lost
    writer.close()
    found = contents(small_disk / "0.log")
    assert found == sorted(set(found)) and set(fed[4000:4500]) <= set(found)
    assert len(found) + writer.lines_lost == 4500 and writer.lines_lost == lost
    assert writer.bytes_written + writer.bytes_lost == sum(map(len, fed[:4500]))


def test_a_rotation_on_a_full_disk_leaves_no_torn_line_in_either_file(small_disk: Path) -> None:
    writer = LogWriter(os.fsencode(small_disk), b"0.log")
    writer.open()
    for number in range(40):
        writer.feed(STDOUT, b"%03d %s\n" % (number, b"x" * 9000))
    assert writer.lines_lost > 0
    (small_disk / "0.log").rename(small_disk / "old")
    writer.reopen()
    before = contents(small_disk / "old")
    os.truncate(small_disk / "old", 0)
    writer.feed(STDOUT, b"after\n")
    writer.close()
    after = contents(small_disk / "0.log")
    assert after[-1] == b"after"
    assert [int(line[:3]) for line in before + after[:-1]] == list(range(writer.lines_written - 1))
    assert writer.lines_written + writer.lines_lost == 41


def test_a_flood_through_a_pipe_with_rotations_arrives_whole(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    block = b"".join(b"%05d %s\n" % (n, b"y" * (n % 120)) for n in range(3000))

    def flood() -> None:
        with os.fdopen(write_end, "wb", buffering=0) as pipe:
            for _ in range(100):
                pipe.write(block)

    thread = threading.Thread(target=flood)
    thread.start()
    writer = LogWriter(os.fsencode(tmp_path), b"0.log")
    writer.open()
    reads = 0
    with os.fdopen(read_end, "rb", buffering=0) as pipe:
        while data := pipe.read(262144):
            writer.feed(STDOUT, data)
            reads += 1
            if reads % 25 == 0:
                (tmp_path / "0.log").rename(tmp_path / f"0.{reads:09d}")
                writer.reopen()
    thread.join()
    writer.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) > 1
    assert b"".join(line + b"\n" for path in files if path.stat().st_size for line in contents(path)) == block * 100
