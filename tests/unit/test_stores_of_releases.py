"""Databases and records as each schema version wrote them are opened by the present code, and nothing in them is lost.

`tests/data/stores/vN` holds what version N left on a disk, databases as SQL. A published directory is never changed.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from crishim.images.table import ImageTable
from crishim.model.sandbox import SandboxConfig, SandboxState
from crishim.network.pool import AddressPool
from crishim.store import codec
from crishim.store.durable import SCHEMA_VERSION, DurableStore, SandboxReservation
from crishim.store.records import Records

STORES = Path(__file__).parents[1] / "data/stores"
VERSIONS = sorted(path.name for path in STORES.iterdir())
SANDBOX_ID, CONTAINER_ID = "5a" * 32, "c0" * 32
BOOT = "boot-1"


def _restore(version: str, name: str, directory: Path) -> Path:
    path = directory / f"{name}.db"
    connection = sqlite3.connect(path)
    connection.executescript((STORES / version / f"{name}.sql").read_text())
    connection.close()
    return path


def _schema(path: Path) -> tuple[int, set[tuple[str, str]]]:
    """Version and statements of a database, white space aside."""
    connection = sqlite3.connect(path)
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        return version, {(name, " ".join(sql.split())) for name, sql in rows}
    finally:
        connection.close()


def _reservations(root: Path) -> list[SandboxReservation]:
    async def read() -> list[SandboxReservation]:
        store = DurableStore(root)
        try:
            return await store.sandbox_reservations()
        finally:
            await store.close()

    return asyncio.run(read())


@pytest.mark.parametrize("version", VERSIONS)
def test_reservations_are_brought_forward(version: str, tmp_path: Path) -> None:
    _restore(version, "crishim", tmp_path)
    (reservation,) = _reservations(tmp_path)
    assert (reservation.id, reservation.netns_path, reservation.boot_id) == (
        SANDBOX_ID,
        "/run/netns/crishim-5a",
        BOOT,
    )
    config = codec.from_bytes(SandboxConfig, reservation.config)
    assert (config.name, config.namespace, config.uid, config.attempt) == ("web", "shop", "u-1", 2)
    assert _schema(tmp_path / "crishim.db")[0] == SCHEMA_VERSION


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("crishim", lambda path: _reservations(path.parent)),
        ("images", lambda path: ImageTable(path).close()),
        ("network", lambda path: AddressPool(path).close()),
    ],
)
def test_a_database_that_was_brought_forward_is_like_a_new_one(
    version: str, name: str, make: Callable[[Path], object], tmp_path: Path
) -> None:
    (tmp_path / "fresh").mkdir()
    old, fresh = _restore(version, name, tmp_path), tmp_path / "fresh" / f"{name}.db"
    make(old)
    make(fresh)
    assert _schema(old) == _schema(fresh)


@pytest.mark.parametrize("version", VERSIONS)
def test_images_and_addresses_are_brought_forward(version: str, tmp_path: Path) -> None:
    table = ImageTable(_restore(version, "images", tmp_path))
    (image,) = table.images()
    assert (image.id, image.repo_tags, image.config.cmd) == ("sha256:aa", ("registry.example/a:1",), ("sh",))
    assert (len(table.layers()), table.rootfs_ids()) == (1, {"c1": "sha256:aa"})
    table.close()
    pool = AddressPool(_restore(version, "network", tmp_path))
    (held,) = pool.list()
    assert (held.sandbox_id, [str(ip) for ip in held.ips]) == (SANDBOX_ID, ["10.88.0.2"])
    assert [(port.container_port, port.host_port) for port in held.ports] == [(80, 8080)]
    pool.close()


@pytest.mark.parametrize("version", VERSIONS)
def test_statuses_are_read(version: str, tmp_path: Path) -> None:
    folder = tmp_path / "sandboxes" / SANDBOX_ID
    (folder / "containers").mkdir(parents=True)
    (folder / "sandbox.json").write_bytes((STORES / version / "sandbox.json").read_bytes())
    (folder / f"containers/{CONTAINER_ID}.json").write_bytes((STORES / version / "container.json").read_bytes())
    found = Records(tmp_path, BOOT).read_all()
    assert found.damaged == ()
    (sandbox,), (container,) = found.sandboxes, found.containers
    assert (sandbox.id, sandbox.state, sandbox.config.name) == (SANDBOX_ID, SandboxState.READY, "web")
    assert (container.id, container.sandbox_id, container.config.name) == (CONTAINER_ID, SANDBOX_ID, "app")
