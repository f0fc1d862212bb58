"""What the store remembers: images, their names, layers, and which container's root uses which layers. sqlite, durable.

One connection behind a lock, called from threads; each method is one transaction. WAL with synchronous=FULL: what was
answered survives a power cut. Rows are JSON where the value is a document and columns where it is looked up.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crishim.errors import Exhausted, NotFound, Unavailable, Unsupported
from crishim.model.image import Image, ImageConfig

_VERSION = 1
_SCHEMA = """
CREATE TABLE image (
    id TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, config TEXT NOT NULL, chain_ids TEXT NOT NULL,
    manifest BLOB NOT NULL, configuration BLOB NOT NULL, created_at_ns INTEGER NOT NULL);
CREATE TABLE name (reference TEXT PRIMARY KEY, image_id TEXT NOT NULL REFERENCES image (id) ON DELETE CASCADE);
CREATE TABLE layer (
    chain_id TEXT PRIMARY KEY, directory INTEGER NOT NULL UNIQUE, bytes INTEGER NOT NULL, inodes INTEGER NOT NULL,
    opaque INTEGER NOT NULL, root_given INTEGER NOT NULL, created_at_ns INTEGER NOT NULL);
CREATE TABLE image_layer (
    image_id TEXT NOT NULL REFERENCES image (id) ON DELETE CASCADE, chain_id TEXT NOT NULL,
    PRIMARY KEY (image_id, chain_id)) WITHOUT ROWID;
CREATE INDEX image_layer_chain ON image_layer (chain_id);
CREATE TABLE rootfs (container_id TEXT PRIMARY KEY, image_id TEXT NOT NULL);
CREATE TABLE rootfs_layer (
    container_id TEXT NOT NULL REFERENCES rootfs (container_id) ON DELETE CASCADE, chain_id TEXT NOT NULL,
    PRIMARY KEY (container_id, chain_id)) WITHOUT ROWID;
CREATE INDEX rootfs_layer_chain ON rootfs_layer (chain_id);
"""
_UNUSED = (
    "SELECT chain_id, directory, bytes, inodes, opaque, root_given FROM layer WHERE created_at_ns <= ?"
    " AND NOT EXISTS (SELECT 1 FROM image_layer WHERE image_layer.chain_id = layer.chain_id)"
    " AND NOT EXISTS (SELECT 1 FROM rootfs_layer WHERE rootfs_layer.chain_id = layer.chain_id)"
)


@dataclass(frozen=True, slots=True)
class Layer:
    """An unpacked layer: directory number below ROOT/layers, its size, and whether it hides all layers below it."""

    chain_id: str
    directory: int
    bytes: int
    inodes: int
    opaque: bool
    #: it states mode and owner of "/"
    root_given: bool


class ImageTable:
    """The database file. Opening it creates it; Unsupported for a file of a newer version.

    Every method: Exhausted when the disk is full, Unavailable when the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with _translated(path):
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        with self._locked() as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise Unsupported(f"{self._path} has version {version}, this program knows {_VERSION}")
            if version == 0:
                connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()

    def images(self) -> list[Image]:
        """Every image with its names, sorted."""
        with self._locked() as connection:
            names: dict[str, list[str]] = {}
            for reference, image_id in connection.execute("SELECT reference, image_id FROM name ORDER BY reference"):
                names.setdefault(image_id, []).append(reference)
            rows = connection.execute("SELECT id, size_bytes, config, chain_ids, created_at_ns FROM image")
            return [_image(row, names.get(row[0], [])) for row in rows]

    def layers(self) -> list[Layer]:
        """Every unpacked layer."""
        with self._locked() as connection:
            rows = connection.execute(
                "SELECT chain_id, directory, bytes, inodes, opaque, root_given FROM layer"
            ).fetchall()
        return [_layer(row) for row in rows]

    def rootfs_ids(self) -> dict[str, str]:
        """Container id to image id of every root that is prepared."""
        with self._locked() as connection:
            return dict(connection.execute("SELECT container_id, image_id FROM rootfs").fetchall())

    def put_image(self, image: Image, names: list[str], manifest: bytes, configuration: bytes) -> None:
        """Add the image, or names to it; a name that belonged to another image moves."""
        config = json.dumps(dataclasses.asdict(image.config))
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO image VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
                " size_bytes = excluded.size_bytes, manifest = excluded.manifest",
                (
                    image.id,
                    image.size_bytes,
                    config,
                    " ".join(image.chain_ids),
                    manifest,
                    configuration,
                    image.created_at_ns,
                ),
            )
            connection.executemany(
                "INSERT OR REPLACE INTO name VALUES (?, ?)", [(reference, image.id) for reference in names]
            )
            connection.executemany(
                "INSERT OR IGNORE INTO image_layer VALUES (?, ?)", [(image.id, chain) for chain in image.chain_ids]
            )

    def drop_image(self, image_id: str) -> None:
        """Remove an image and its names; nothing when it is gone."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM image WHERE id = ?", (image_id,))

    def put_layer(self, layer: Layer) -> None:
        """Add an unpacked layer."""
        with self._transaction() as connection:
            row = (layer.chain_id, layer.directory, layer.bytes, layer.inodes, layer.opaque, layer.root_given)
            connection.execute("INSERT INTO layer VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, time.time_ns()))

    def drop_layer(self, chain_id: str) -> None:
        """Forget one layer, whose directory is not there."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM layer WHERE chain_id = ?", (chain_id,))

    def drop_unused_layers(self, keep: frozenset[str], older_than_ns: int) -> list[Layer]:
        """Forget the layers that no image and no rootfs uses, but those in `keep` or younger; returns them."""
        with self._transaction() as connection:
            rows = connection.execute(_UNUSED, (older_than_ns,)).fetchall()
            unused = [_layer(row) for row in rows if row[0] not in keep]
            connection.executemany("DELETE FROM layer WHERE chain_id = ?", [(layer.chain_id,) for layer in unused])
        return unused

    def unused_layers(self, older_than_ns: int) -> list[Layer]:
        """Those that `drop_unused_layers` would take."""
        with self._locked() as connection:
            return [_layer(row) for row in connection.execute(_UNUSED, (older_than_ns,))]

    def put_rootfs(self, container_id: str, image: Image, volumes: Sequence[Image] = ()) -> None:
        """Hold the layers of an image, and of those it has as volumes, for a container.

        NotFound when a layer was freed meanwhile.
        """
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO rootfs VALUES (?, ?)", (container_id, image.id))
            for held, chain in ((each, chain) for each in (image, *volumes) for chain in each.chain_ids):
                if connection.execute("SELECT 1 FROM layer WHERE chain_id = ?", (chain,)).fetchone() is None:
                    raise NotFound(f"image {held.id} is not in the store: its layer {chain} was removed")
                connection.execute("INSERT OR IGNORE INTO rootfs_layer VALUES (?, ?)", (container_id, chain))

    def drop_rootfs(self, container_id: str) -> bool:
        """Let go of a container's layers; False when it held none."""
        with self._transaction() as connection:
            return connection.execute("DELETE FROM rootfs WHERE container_id = ?", (container_id,)).rowcount > 0

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._locked() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # sqlite itself takes back what it could not write
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _locked(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _translated(self._path):
            yield self._connection


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise Exhausted(f"{path} cannot grow: the disk is full") from error
        raise Unavailable(f"{path} cannot be used: {error}") from error


def _image(row: tuple[str, int, str, str, int], names: list[str]) -> Image:
    image_id, size_bytes, config, chain_ids, created_at_ns = row
    return Image(
        id=image_id,
        repo_tags=tuple(name for name in names if "@" not in name),
        repo_digests=tuple(name for name in names if "@" in name),
        size_bytes=size_bytes,
        config=_config(config),
        chain_ids=tuple(chain_ids.split()),
        created_at_ns=created_at_ns,
    )


def _layer(row: tuple[str, int, int, int, int, int]) -> Layer:
    return Layer(row[0], row[1], row[2], row[3], bool(row[4]), bool(row[5]))


def _config(text: str) -> ImageConfig:
    values: dict[str, Any] = json.loads(text)
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    config: ImageConfig = dataclasses.replace(ImageConfig(), **{**values, **lists})
    return config
