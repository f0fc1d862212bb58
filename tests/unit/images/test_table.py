from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from crishim.errors import Unavailable, Unsupported
from crishim.images.table import ImageTable, Layer

LAYER = Layer("sha256:" + "a" * 64, 1, 1, 1, False, False)


def test_a_file_of_a_newer_version_is_refused_and_let_go(tmp_path: Path) -> None:
    path = tmp_path / "images.db"
    ImageTable(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(Unsupported, match="version 99") as refused:
        ImageTable(path)
    assert os.listdir(tmp_path) == ["images.db"], f"{refused} keeps the log of an open connection"


@pytest.mark.parametrize("content", [b"no database" * 1000, None])
def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "images.db"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(Unavailable, match=r"images\.db cannot be used"):
        ImageTable(path)


def test_a_table_that_is_closed_is_unavailable(tmp_path: Path) -> None:
    table = ImageTable(tmp_path / "images.db")
    table.close()
    for use in (table.images, table.layers, table.rootfs_ids, lambda: table.put_layer(LAYER)):
        with pytest.raises(Unavailable, match="cannot be used"):
            use()


def test_a_write_that_is_refused_leaves_the_table_usable(tmp_path: Path) -> None:
    table = ImageTable(tmp_path / "images.db")
    try:
        table.put_layer(LAYER)
        with pytest.raises(Unavailable):
            table.put_layer(LAYER)
        assert table.layers() == [LAYER]
        table.drop_layer(LAYER.chain_id)
        assert table.layers() == []
    finally:
        table.close()
