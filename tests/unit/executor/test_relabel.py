"""Which directories are refused a new SELinux context, and what a walk touches."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from crishim.executor.relabel import is_refused, relabel

EXACT = [b"/home", b"/var", b"/var/lib"]
TREES = [b"/etc", b"/usr", b"/var/lib/crishim"]
LABEL = "system_u:object_r:container_file_t:s0:c1,c2"


@pytest.mark.parametrize(
    ("path", "refused"),
    [
        ("/", True),
        ("/etc", True),
        ("/etc/passwd", True),
        ("/usr/share/x", True),
        ("/var", True),
        ("/var/lib", True),
        ("/var/lib/crishim/layers", True),
        ("/home", True),
        ("/home/user", False),
        ("/etcetera", False),
        ("/var/lib/kubelet/pods/u/volumes/v", False),
        ("/srv/data", False),
    ],
)
def test_directories_of_the_host_and_what_contains_them_are_refused(path: str, refused: bool) -> None:
    assert is_refused(os.fsencode(path), EXACT, TREES) is refused


@pytest.fixture
def labels(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int], str]:
    """Labels by (device, inode), in the place of extended attributes."""
    found: dict[tuple[int, int], str] = {}

    def key(path: bytes) -> tuple[int, int]:
        status = os.stat(path) if not stat_of_link(path) else os.lstat(os.readlink(path))
        return status.st_dev, status.st_ino

    def stat_of_link(path: bytes) -> bool:
        return os.path.islink(os.readlink(path))

    def get(path: bytes, name: str) -> bytes:
        if key(path) not in found:
            raise OSError(errno.ENODATA, "none")
        return found[key(path)].encode() + b"\0"

    def put(path: bytes, name: str, value: bytes) -> None:
        found[key(path)] = value.decode()

    monkeypatch.setattr(os, "getxattr", get)
    monkeypatch.setattr(os, "setxattr", put)
    return found


def run(*paths: Path, **changes: object) -> dict[str, object]:
    request: dict[str, object] = {
        "paths": [os.fsencode(path) for path in paths],
        "ours": [False] * len(paths),
        "label": LABEL.encode(),
        "exact": [],
        "trees": [],
        "make": True,
    }
    return relabel({**request, **changes}, [])


def label_of(labels: dict[tuple[int, int], str], path: Path) -> str | None:
    status = path.lstat()
    return labels.get((status.st_dev, status.st_ino))


def test_everything_in_a_volume_is_labelled_and_nothing_that_its_links_name(
    tmp_path: Path, labels: dict[tuple[int, int], str]
) -> None:
    volume, outside = tmp_path / "volume", tmp_path / "outside"
    for place in (volume / "a/b", outside):
        place.mkdir(parents=True)
        (place / "file").touch()
    (volume / "to-file").symlink_to(outside / "file")
    (volume / "a/to-directory").symlink_to(outside)
    os.mkfifo(volume / "fifo")
    answer = run(volume)
    assert answer == {"labelled": 7}
    for name in (".", "a", "a/b", "a/b/file", "to-file", "a/to-directory", "fifo"):
        assert label_of(labels, volume / name) == LABEL, name
    assert label_of(labels, outside) is None and label_of(labels, outside / "file") is None
    assert run(volume) == {"labelled": 0}, "what has the label is not written to"


def test_a_single_file_is_a_volume_too(tmp_path: Path, labels: dict[tuple[int, int], str]) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "other").touch()
    assert run(tmp_path / "file") == {"labelled": 1}
    assert label_of(labels, tmp_path / "other") is None


def test_a_link_to_a_directory_of_the_host_is_refused_by_where_it_leads(
    tmp_path: Path, labels: dict[tuple[int, int], str]
) -> None:
    (tmp_path / "host/inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "host/inner")
    trees = [os.fsencode(tmp_path / "host")]
    answer = run(tmp_path / "link", trees=trees)
    assert answer == {"index": 0, "refused": os.fsencode(tmp_path / "host/inner")}
    assert labels == {}
    assert run(tmp_path / "link", trees=trees, ours=[True]) == {"labelled": 1}


def test_a_missing_path_is_made_or_named(tmp_path: Path, labels: dict[tuple[int, int], str]) -> None:
    assert run(tmp_path / "made/deep") == {"labelled": 1}
    assert (tmp_path / "made/deep").is_dir()
    missing = tmp_path / "missing"
    assert run(missing, make=False) == {"index": 0, "errno": errno.ENOENT, "path": os.fsencode(missing)}
    (tmp_path / "dangling").symlink_to(missing)
    assert run(tmp_path / "dangling")["errno"] == errno.ENOENT
    assert not missing.exists()


def failing(code: int) -> Callable[..., bytes]:
    def fail(*arguments: object) -> bytes:
        raise OSError(code, os.strerror(code))

    return fail


def test_a_file_system_without_labels_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "getxattr", failing(errno.EOPNOTSUPP))
    assert run(tmp_path) == {"labelled": 0}


def test_what_cannot_be_labelled_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getxattr", failing(errno.ENODATA))
    monkeypatch.setattr(os, "setxattr", failing(errno.EROFS))
    assert run(tmp_path) == {"index": 0, "errno": errno.EROFS, "path": os.fsencode(tmp_path)}
