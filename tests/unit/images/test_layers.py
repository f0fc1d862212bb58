from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crishim.errors import Unavailable
from crishim.images.layers import LayerLimits, LayerStore
from crishim.images.table import ImageTable, Layer

CHAIN = "sha256:" + "a" * 64
DIFF = "sha256:" + "d" * 64


class Unpacker:
    """Writes one file and says what it is told to say."""

    async def unpack(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, dir_fd=fds[1]))
        return {"diff_id": DIFF, "bytes": 1, "inodes": 1, "root_opaque": False, "root_given": False, "implied": 0}

    async def adopt_parents(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        raise AssertionError("nothing is implied")


class Table(ImageTable):
    """A table whose next layer waits for the test, and then fails when the test wants it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self.failure: Exception | None = None

    def put_layer(self, layer: Layer) -> None:
        self.reached.set()
        assert self.go_on.wait(10)
        if self.failure:
            raise self.failure
        super().put_layer(layer)


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    table = Table(tmp_path / "images.db")
    yield table
    table.close()


def store_of(tmp_path: Path, table: ImageTable) -> LayerStore:
    (tmp_path / "blob").touch()
    return LayerStore(tmp_path, table, Unpacker(), LayerLimits())


async def ensure(store: LayerStore, tmp_path: Path) -> None:
    async def fetch() -> Path:
        return tmp_path / "blob"

    async with store.leased([CHAIN]):
        await store.ensure(CHAIN, DIFF, (), fetch)


def test_a_layer_whose_pull_is_cancelled_at_its_commit_is_whole(tmp_path: Path, table: Table) -> None:
    store = store_of(tmp_path, table)

    async def cancelled_at_the_commit() -> None:
        pull = asyncio.ensure_future(ensure(store, tmp_path))
        await asyncio.to_thread(table.reached.wait, 10)
        for _ in range(2):  # a second cancellation hurries nothing
            pull.cancel()
            await asyncio.sleep(0)
        assert not pull.done()
        table.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await pull

    asyncio.run(cancelled_at_the_commit())
    (directory,) = store.paths([CHAIN])
    assert os.listdir(directory) == ["file"]
    assert [layer.chain_id for layer in table.layers()] == [CHAIN]


def test_a_layer_that_cannot_be_recorded_leaves_no_directory(tmp_path: Path, table: Table) -> None:
    store = store_of(tmp_path, table)
    table.go_on.set()
    table.failure = Unavailable("not now")
    with pytest.raises(Unavailable, match="not now"):
        asyncio.run(ensure(store, tmp_path))
    assert os.listdir(tmp_path / "layers") == []
    table.failure = None
    asyncio.run(ensure(store, tmp_path))
    assert os.listdir(store.paths([CHAIN])[0]) == ["file"]


def test_a_directory_that_is_being_filled_is_nobodys_leftover(tmp_path: Path, table: Table) -> None:
    store = store_of(tmp_path, table)

    async def looked_at_while_it_is_committed() -> None:
        pull = asyncio.ensure_future(ensure(store, tmp_path))
        await asyncio.to_thread(table.reached.wait, 10)
        assert {path.name for path in (tmp_path / "layers").iterdir()} == {"1"} < store.names()
        table.go_on.set()
        await pull

    asyncio.run(looked_at_while_it_is_committed())
    assert store.names() == {"1"}
    assert (tmp_path / "layers" / "1" / "file").exists()


def test_only_a_directory_without_a_row_or_unused_for_a_day_is_freed(
    tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(tmp_path, table)
    table.go_on.set()
    asyncio.run(ensure(store, tmp_path))
    (tmp_path / "layers" / "new-7" / "usr").mkdir(parents=True)
    store.free("new-7")
    store.free("1")
    assert [path.name for path in (tmp_path / "layers").iterdir()] == ["1"]
    assert store.unused_names() == frozenset()
    monkeypatch.setattr("crishim.images.layers.UNUSED_LIFE_NS", 0)
    assert store.unused_names() == {"1"}
    store.free("1")
    assert (list((tmp_path / "layers").iterdir()), store.names()) == ([], frozenset())
