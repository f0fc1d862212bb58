"""Durable reservations: what survives a reopening, grouped commits, schema versions."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from crishim.errors import AlreadyExists, Exhausted, Unavailable, Unsupported
from crishim.store import durable
from crishim.store.durable import DurableStore, SandboxReservation

ONE = SandboxReservation(
    id="5a",
    name="web",
    namespace="shop",
    uid="u-1",
    attempt=0,
    netns_path="/run/netns/crishim-5a",
    network_mode="bridge",
    network_config=b'{"bridge":"crishim0"}',
    monitor_socket="/run/crishim/sandboxes/5a/monitor.sock",
    runtime_handler="",
    boot_id="boot",
    config=b"{}",
)


def with_store(root: Path, use: Callable[[DurableStore], Awaitable[object]]) -> object:
    async def main() -> object:
        store = DurableStore(root)
        try:
            return await use(store)
        finally:
            await store.close()

    return asyncio.run(main())


def test_a_reservation_survives_until_it_is_released(tmp_path: Path) -> None:
    odd = replace(ONE, id="6b", name="na\udc80me", netns_path=None, config=b"\0\xff")
    with_store(tmp_path, lambda store: store.reserve_sandbox(ONE))
    with_store(tmp_path, lambda store: store.reserve_sandbox(odd))
    assert with_store(tmp_path, lambda store: store.sandbox_reservations()) == [ONE, odd]
    with_store(tmp_path, lambda store: store.release_sandbox("5a"))
    with_store(tmp_path, lambda store: store.release_sandbox("unknown"))
    assert with_store(tmp_path, lambda store: store.sandbox_reservations()) == [odd]


def test_many_at_once_share_their_commits(tmp_path: Path) -> None:
    commits: list[str] = []

    async def use(store: DurableStore) -> None:
        store._connection.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
        await asyncio.gather(*(store.reserve_sandbox(replace(ONE, id=str(n), attempt=n)) for n in range(100)))
        assert len(await store.sandbox_reservations()) == 100

    with_store(tmp_path, use)
    assert 0 < len(commits) < 30


def test_a_refused_one_does_not_spoil_its_group(tmp_path: Path) -> None:
    async def use(store: DurableStore) -> list[object]:
        wanted = [ONE, replace(ONE, id="same-identity"), replace(ONE, attempt=1), replace(ONE, id="ok", attempt=2)]
        results = await asyncio.gather(*map(store.reserve_sandbox, wanted), return_exceptions=True)
        assert [each.id for each in await store.sandbox_reservations()] == ["5a", "ok"]
        return list(results)

    first, second, third, fourth = with_store(tmp_path, use)  # type: ignore[misc]
    assert first is None and fourth is None
    assert isinstance(second, AlreadyExists) and "shop/web/u-1/0" in str(second)
    assert isinstance(third, AlreadyExists)


def test_a_full_disk_reserves_nothing_and_says_so(tmp_path: Path) -> None:
    async def use(store: DurableStore) -> None:
        store._connection.execute("PRAGMA max_page_count = 4")
        with pytest.raises(Exhausted, match="disk is full"):
            await store.reserve_sandbox(replace(ONE, config=b"x" * 100_000))
        assert await store.sandbox_reservations() == []
        await store.reserve_sandbox(ONE)

    with_store(tmp_path, use)


def test_a_caller_that_left_before_its_turn_has_no_effect(tmp_path: Path) -> None:
    async def use(store: DurableStore) -> None:
        task = asyncio.ensure_future(store.reserve_sandbox(ONE))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await store.sandbox_reservations() == []

    with_store(tmp_path, use)


def test_the_files_are_for_root_alone(tmp_path: Path) -> None:
    async def use(store: DurableStore) -> None:
        await store.reserve_sandbox(ONE)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        assert modes == dict.fromkeys(("crishim.db", "crishim.db-wal", "crishim.db-shm"), 0o600)

    with_store(tmp_path, use)


def test_every_commit_is_synced(tmp_path: Path) -> None:
    async def use(store: DurableStore) -> tuple[object, object]:
        ask = store._connection.execute
        return ask("PRAGMA journal_mode").fetchone()[0], ask("PRAGMA synchronous").fetchone()[0]

    assert with_store(tmp_path, use) == ("wal", 2)


def test_a_newer_schema_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "crishim.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(Unsupported, match="newer crishim"):
        DurableStore(tmp_path)


def test_an_older_schema_is_brought_forward_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_store(tmp_path, lambda store: store.reserve_sandbox(ONE))
    steps = (*durable._MIGRATIONS, ("CREATE TABLE later (id TEXT)", "INSERT INTO later VALUES ('x')"))
    monkeypatch.setattr(durable, "_MIGRATIONS", steps)
    monkeypatch.setattr(durable, "SCHEMA_VERSION", len(steps))
    assert with_store(tmp_path, lambda store: store.sandbox_reservations()) == [ONE]
    connection = sqlite3.connect(tmp_path / "crishim.db")
    assert connection.execute("SELECT id FROM later").fetchall() == [("x",)]
    assert connection.execute("PRAGMA user_version").fetchone() == (len(steps),)
    connection.close()


def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "crishim.db").write_bytes(b"not a database at all" * 1000)
    with pytest.raises(Unavailable, match=r"crishim\.db"):
        DurableStore(tmp_path)


def test_a_closed_store_refuses(tmp_path: Path) -> None:
    async def main() -> None:
        store = DurableStore(tmp_path)
        await store.close()
        await store.close()
        with pytest.raises(Unavailable, match="closed"):
            await store.reserve_sandbox(ONE)

    asyncio.run(main())
