"""Counting writable layers by batches that can be killed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from crishim.errors import TimedOut
from crishim.images.counting import count_layers
from crishim.runtime import layers
from crishim.runtime.layers import WritableLayers


def write(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)


def count(*paths: Path, entries: int = 1000, milliseconds: int = 60_000) -> list[Any]:
    request = {"paths": [os.fsencode(p) for p in paths], "max_entries": entries, "milliseconds": milliseconds}
    found = count_layers(request, [])["counts"]
    assert isinstance(found, list)
    return found


def test_bytes_on_disk_and_inodes_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "a" / "one", 10_000)
    write(tmp_path / "a" / "deep" / "two", 1)
    ((used, inodes),) = count(tmp_path / "a")
    assert inodes == 3
    assert used == sum(path.stat().st_blocks * 512 for path in (tmp_path / "a").rglob("*"))


def test_a_link_out_of_the_layer_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "outside" / "big", 100_000)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "link").symlink_to(tmp_path / "outside")
    ((used, inodes),) = count(tmp_path / "a")
    assert (inodes, used) == (1, (tmp_path / "a" / "link").lstat().st_blocks * 512)


def test_entries_beyond_the_bound_are_not_counted(tmp_path: Path) -> None:
    for number in range(20):
        write(tmp_path / "a" / str(number), 1)
    assert count(tmp_path / "a", entries=7)[0][1] == 7


def test_a_layer_that_is_gone_does_not_stop_the_others(tmp_path: Path) -> None:
    write(tmp_path / "b" / "one", 1)
    gone, there = count(tmp_path / "a", tmp_path / "b")
    assert there[1] == 1
    assert gone in (None, [0, 0])


def test_nothing_is_begun_after_the_time(tmp_path: Path) -> None:
    write(tmp_path / "b" / "one", 1)
    assert count(tmp_path / "b", milliseconds=0) == [None]


class FakeRoots:
    def path(self, container_id: str) -> Path:
        return Path("/roots") / container_id

    def volumes(self, container_id: str) -> Path:
        return self.path(container_id) / "volumes"


class FakeExecutor:
    """Answers the role; a batch with an id of `hangs` times out. Only ids of `volumes` have volumes, of 100 bytes."""

    def __init__(self, *hangs: str, volumes: Sequence[str] = ()) -> None:
        self.hangs = hangs
        self.volumes = volumes
        self.batches: list[list[str]] = []

    async def run_role(
        self, role: str, request: Mapping[str, Any], fds: Sequence[int] = (), timeout_s: float = 60.0
    ) -> dict[str, object]:
        assert role == "count_layers"
        parts = [os.fsdecode(path).split("/")[2:] for path in request["paths"]]
        ids = [each for each, kind in parts if kind == "upper"]
        self.batches.append(ids)
        if set(ids) & set(self.hangs):
            raise TimedOut("count_layers did not end")
        sizes = {
            "upper": lambda each: [len(each), 1],
            "volumes": lambda each: [100, 5] if each in self.volumes else None,
        }
        return {"counts": [sizes[kind](each) for each, kind in parts]}


def made(executor: FakeExecutor) -> WritableLayers:
    return WritableLayers(FakeRoots(), executor, "/roots")  # type: ignore[arg-type]


def test_all_are_counted_by_one_child_and_not_again_soon() -> None:
    async def scene() -> None:
        executor = FakeExecutor()
        found = made(executor)
        await found.refresh(["a", "bb"])
        await found.refresh(["a", "bb"])
        assert executor.batches == [["a", "bb"]]
        usage = found.usage("bb")
        assert usage is not None
        assert (usage.mountpoint, usage.used_bytes, usage.inodes_used) == ("/roots", 2, 1)

    asyncio.run(scene())


def test_volumes_of_a_container_count_with_its_layer() -> None:
    async def scene() -> None:
        found = made(FakeExecutor(volumes=["bb"]))
        await found.refresh(["a", "bb"])
        usages = [found.usage(each) for each in ("a", "bb")]
        assert [(usage.used_bytes, usage.inodes_used) for usage in usages if usage] == [(1, 1), (102, 6)]

    asyncio.run(scene())


def test_one_that_hangs_costs_the_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        executor = FakeExecutor("c3")
        found = made(executor)
        ids = [f"c{number}" for number in range(8)]
        for _ in range(8):
            await found.refresh(ids)
        assert [each for each in ids if found.usage(each) is None] == ["c3"]
        assert executor.batches.count(["c3"]) == 1
        before = len(executor.batches)
        await found.refresh(ids)
        assert len(executor.batches) == before

    monkeypatch.setattr(layers, "_KILL_S", 3600.0)
    asyncio.run(scene())


def test_a_container_that_is_gone_is_forgotten() -> None:
    async def scene() -> None:
        found = made(FakeExecutor())
        await found.refresh(["a"])
        found.forget("a")
        assert found.usage("a") is None

    asyncio.run(scene())
