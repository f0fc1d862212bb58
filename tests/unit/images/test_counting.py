from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from crishim.images.counting import count_layers
from crishim.images.trees import remove_tree


def count(top: Path) -> Any:
    """[bytes, inodes], or None."""
    request: dict[str, object] = {"paths": [os.fsencode(top)], "max_entries": 100_000, "milliseconds": 60_000}
    (found,) = cast("list[Any]", count_layers(request, [])["counts"])
    return found


def test_a_tree_deeper_than_any_recursion_hides_nothing(tmp_path: Path) -> None:
    """3,000 levels with a file beside each: what is below counts, and what is beside it."""
    top = tmp_path / "top"
    top.mkdir()
    current = os.open(top, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=current)
        os.mkdir("beside", dir_fd=current)
        deeper = os.open("d", os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = deeper
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=current))
    os.close(current)
    try:
        assert count(top)[1] == 6001
    finally:
        remove_tree(top)


def test_a_link_in_place_of_the_layer_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert count(tmp_path / "link") is None
    assert count(tmp_path)[1] == 1
