"""Small files of the state directory: specs, filters, notes."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from crishim.errors import Exhausted, Internal, NotFound, Unavailable
from crishim.model.process import CgroupSpec, ContainerSpec, MountSpec, Namespace, NamespaceKind, ProcessSpec, RootFs
from crishim.runtime.places import Places, StopNote

SPEC = ContainerSpec(
    id="c1",
    process=ProcessSpec(args=("sh", "\udcff"), env=("A=b",), seccomp=b"\x06\x00filter"),
    rootfs=RootFs(("/l",), "/u", "/w"),
    cgroup=CgroupSpec("/pods/p/c1"),
    namespaces=(Namespace(NamespaceKind.PID),),
    mounts=(MountSpec("/proc", "proc", "proc"),),
)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    places = Places(tmp_path)
    places.make_sandbox("s1")
    return places


def test_a_spec_comes_back_as_it_was_by_another_server_too(places: Places, tmp_path: Path) -> None:
    assert places.write_spec("s1", SPEC) == SPEC
    assert places.read_spec("s1", "c1") == SPEC
    assert Places(tmp_path).read_spec("s1", "c1") == SPEC


def test_equal_filters_are_kept_once_on_disk_and_in_memory(places: Places, tmp_path: Path) -> None:
    first = places.write_spec("s1", SPEC)
    copy = bytes(bytearray(SPEC.process.seccomp or b""))
    second = places.write_spec("s1", replace(SPEC, id="c2", process=replace(SPEC.process, seccomp=copy)))
    assert first.process.seccomp is second.process.seccomp
    assert len(list((tmp_path / "filters").iterdir())) == 1
    assert places.read_spec("s1", "c2").process.seccomp is first.process.seccomp


def test_a_filter_that_was_changed_is_not_loaded(places: Places, tmp_path: Path) -> None:
    places.write_spec("s1", SPEC)
    (path,) = (tmp_path / "filters").iterdir()
    path.write_bytes(b"allow everything")
    with pytest.raises(Internal, match="was changed"):
        Places(tmp_path).read_spec("s1", "c1")


def test_a_missing_spec_and_a_broken_one_are_told_apart(places: Places, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="c9"):
        places.read_spec("s1", "c9")
    (tmp_path / "sandboxes/s1/specs/c1").write_text("{")
    with pytest.raises(Internal, match="specs/c1"):
        places.read_spec("s1", "c1")


def test_the_last_note_counts_and_a_broken_one_is_none(places: Places, tmp_path: Path) -> None:
    assert places.read_stop("s1", "c1") is None
    places.write_stop("s1", "c1", StopNote(15, "stop", 1))
    places.write_stop("s1", "c1", StopNote(9, "stop", 2))
    assert places.read_stop("s1", "c1") == StopNote(9, "stop", 2)
    (tmp_path / "sandboxes/s1/stops/c1").write_text("junk")
    assert places.read_stop("s1", "c1") is None


def test_directories_are_closed_and_files_of_the_pod_can_be_read(places: Places, tmp_path: Path) -> None:
    places.write_file("s1", "hosts", "127.0.0.1\tlocalhost\n")
    assert stat.S_IMODE((tmp_path / "sandboxes/s1").stat().st_mode) == 0o700
    assert stat.S_IMODE(places.file("s1", "hosts").stat().st_mode) == 0o644
    assert places.has_file("s1", "hosts") and places.has_file("s1", "hostname") is None


def test_removal_is_complete_and_can_be_repeated(places: Places, tmp_path: Path) -> None:
    places.write_spec("s1", SPEC)
    places.write_stop("s1", "c1", StopNote(9, "stop", 2))
    for _ in range(2):
        places.remove_container("s1", "c1")
    assert [path.name for path in (tmp_path / "sandboxes/s1").glob("*/*")] == []
    for _ in range(2):
        places.remove_sandbox("s1")
    assert not (tmp_path / "sandboxes/s1").exists()


def test_a_full_directory_is_said_and_leaves_no_temporary_file(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("crishim.runtime.places.os.replace", full)
    for write in (
        lambda: places.write_spec("s1", SPEC),
        lambda: places.write_stop("s1", "c1", StopNote(9, "stop", 2)),
        lambda: places.write_file("s1", "hosts", "x"),
        lambda: places.own_cgroup("s1"),
    ):
        with pytest.raises(Exhausted, match="No space left"):
            write()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_directories_that_cannot_be_made_or_removed_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sandboxes").write_text("in the way")
    with pytest.raises(Exhausted, match="sandboxes/s1 cannot be made"):
        Places(tmp_path).make_sandbox("s1")
    with pytest.raises(Unavailable, match="sandboxes/s1 cannot be removed"):
        Places(tmp_path).remove_sandbox("s1")


def test_a_filter_goes_only_when_no_spec_has_it(places: Places, tmp_path: Path) -> None:
    places.write_spec("s1", SPEC)
    (digest,) = places.filters_in_use()
    places.remove_filter(digest)
    assert (tmp_path / "filters" / digest).exists()
    places.remove_container("s1", "c1")
    assert places.filters_in_use() == frozenset()
    places.remove_filter(digest)
    assert not (tmp_path / "filters" / digest).exists()
    places.write_spec("s1", SPEC)
    assert Places(tmp_path).read_spec("s1", "c1") == SPEC, "it is written again"


def test_a_filter_is_in_use_from_the_first_reading_of_its_spec_to_the_end_of_its_sandbox(
    places: Places, tmp_path: Path
) -> None:
    places.write_spec("s1", SPEC)
    another = Places(tmp_path)
    assert another.filters_in_use() == frozenset()
    another.read_spec("s1", "c1")
    assert another.filters_in_use() == places.filters_in_use() != frozenset()
    another.remove_sandbox("s1")
    assert another.filters_in_use() == frozenset()
