"""Directories made inside a root: what exists is followed, what is missing is made, and nothing leaves it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from crishim.linux import fs


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "root").mkdir()
    fd = os.open(tmp_path / "root", os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def make(root: int, path: bytes) -> str:
    """Where the directory is, seen from beside the root."""
    made = fs.make_directories_in_root(root, path)
    try:
        here = os.readlink(f"/proc/self/fd/{root}")
        return os.path.relpath(os.readlink(f"/proc/self/fd/{made}"), here)
    finally:
        os.close(made)


@pytest.mark.parametrize("path", [b"/a/b/c", b"a/b/c", b"//a/./b//c/"])
def test_what_is_missing_is_made(root: int, path: bytes) -> None:
    assert make(root, path) == "a/b/c"
    assert make(root, path) == "a/b/c"


@pytest.mark.parametrize("path", [b"", b"/", b"."])
def test_the_root_itself_is_there(root: int, path: bytes) -> None:
    assert make(root, path) == "."


def test_links_end_inside(root: int, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    os.symlink(tmp_path / "outside", "absolute", dir_fd=root)
    os.symlink("../../outside", "relative", dir_fd=root)
    inside = f"{tmp_path}/outside".lstrip("/")
    assert make(root, b"/absolute/new") == f"{inside}/new"
    assert make(root, b"/relative/new") == "outside/new"
    assert not list((tmp_path / "outside").iterdir())


def test_what_a_dangling_link_names_is_made_in_each_directory_on_the_way(root: int) -> None:
    os.mkdir("d", dir_fd=root)
    os.symlink("x/y", "d/link", dir_fd=root)
    assert make(root, b"/d/link/z") == "d/x/y/z"


def test_a_path_of_any_length_is_made(root: int, tmp_path: Path) -> None:
    try:
        assert make(root, b"/a" * 2000) == "/".join("a" * 2000)
    finally:  # too deep for what removes temporary directories later
        subprocess.run(["rm", "-rf", tmp_path / "root/a"], check=True)


def test_a_file_on_the_way_is_refused_and_nothing_stays_open(root: int, tmp_path: Path) -> None:
    (tmp_path / "root/file").touch()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(NotADirectoryError):
        make(root, b"/file/below")
    with pytest.raises(OSError, match=r"\.\. component"):
        make(root, b"/new/../../up")
    assert os.listdir("/proc/self/fd") == before
    assert not (tmp_path / "root/new").exists()


def test_a_directory_that_somebody_else_makes_meanwhile_is_taken(root: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = os.mkdir

    def overtaken(name: bytes, mode: int, *, dir_fd: int) -> None:
        mkdir(name, mode, dir_fd=dir_fd)
        raise FileExistsError

    monkeypatch.setattr(os, "mkdir", overtaken)
    assert make(root, b"/a/b") == "a/b"
