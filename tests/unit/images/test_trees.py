from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from crishim.images.trees import remove_tree


def test_a_tree_deeper_than_any_path_is_removed(tmp_path: Path) -> None:
    """5,000 levels: longer than PATH_MAX, deeper than Python's recursion."""
    top = tmp_path / "top"
    top.mkdir()
    current = os.open(top, os.O_RDONLY)
    for _ in range(5000):
        os.mkdir("d", dir_fd=current)
        deeper = os.open("d", os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = deeper
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=current))
    os.close(current)
    remove_tree(top)
    assert not top.exists()


def test_symlinks_are_removed_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    top = tmp_path / "top"
    top.mkdir()
    (top / "link").symlink_to(outside)
    (top / "dangling").symlink_to("nowhere")
    os.mkfifo(top / "fifo")
    remove_tree(top)
    assert (outside / "kept").exists()
    assert not top.exists()


def test_what_is_not_there_is_removed_already(tmp_path: Path) -> None:
    remove_tree(tmp_path / "nothing")


def test_a_link_in_place_of_the_tree_is_refused_or_removed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "top").symlink_to(outside)
    remove_tree(tmp_path / "top")
    assert outside.exists()
    assert not (tmp_path / "top").is_symlink()


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=5), max_size=12))
def test_any_tree_is_removed(paths: list[list[str]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory) / "top"
        for parts in paths:
            top.joinpath(*parts).mkdir(parents=True, exist_ok=True)
            (top.joinpath(*parts) / "file").touch()
        remove_tree(top)
        assert not top.exists()
