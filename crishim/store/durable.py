"""Reservations of sandboxes that outlive a power cut: who a pod was, and which network must be taken down for it.

One sqlite file under the root directory (WAL, synchronous=FULL) with one writer thread; what waits while a commit is
under way shares the next one. A pod costs two commits: its reservation, and the end of it. Everything that a crash of
ours alone must survive is in `records.py`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TypeVar

from crishim.errors import AlreadyExists, CrishimError, Exhausted, Unavailable, Unsupported

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SandboxReservation:
    """A sandbox whose effects outside our process have begun; it stays until all of them are undone."""

    id: str
    name: str
    namespace: str
    uid: str
    attempt: int
    #: bind-mounted network namespace, None with host network
    netns_path: str | None
    #: "cni", "bridge" or "host"
    network_mode: str
    #: what taking the network down needs, JSON
    network_config: bytes
    #: path of the monitor's socket
    monitor_socket: str
    runtime_handler: str
    #: boot of the machine in which it was made (`boot.current_boot_id`)
    boot_id: str
    #: the SandboxConfig, JSON of `codec.to_bytes`
    config: bytes


# Statements of each schema version, first version first; a published entry is never changed, only followed.
_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE sandbox (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL,
            namespace TEXT NOT NULL,
            uid TEXT NOT NULL,
            attempt INTEGER NOT NULL,
            netns_path TEXT,
            network_mode TEXT NOT NULL,
            network_config BLOB NOT NULL,
            monitor_socket TEXT NOT NULL,
            runtime_handler TEXT NOT NULL,
            boot_id TEXT NOT NULL,
            config BLOB NOT NULL,
            UNIQUE (name, namespace, uid, attempt)
        ) WITHOUT ROWID
        """,
    ),
)

SCHEMA_VERSION = len(_MIGRATIONS)

_COLUMNS = tuple(field.name for field in fields(SandboxReservation))
_INSERT = f"INSERT INTO sandbox ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM sandbox ORDER BY id"
# Commits are grouped up to this many; the bound keeps the first of a flood from waiting for all of it.
_GROUP = 256


@dataclass(frozen=True, slots=True)
class _Write:
    """One statement of the writer's queue and the future that hears of its commit."""

    run: Callable[[sqlite3.Connection], object]
    done: concurrent.futures.Future[object]


class DurableStore:
    """The database ROOT/crishim.db of one server, which holds the lock of its state directory."""

    def __init__(self, root: Path) -> None:
        """Opens or makes the database and brings its schema up to date.

        Raises Unsupported when a newer crishim made it, Unavailable when it cannot be opened or is damaged.
        """
        self.path = root / "crishim.db"
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._connection = _open(self.path)
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()
        self._closed = False

    async def reserve_sandbox(self, reservation: SandboxReservation) -> None:
        """On disk when it returns. AlreadyExists: the id or (name, namespace, uid, attempt) is taken."""
        values = tuple(_storable(value) for value in astuple(reservation))
        try:
            await self._write(lambda connection: connection.execute(_INSERT, values))
        except sqlite3.IntegrityError as error:
            raise AlreadyExists(
                f"sandbox {reservation.id} or its identity {reservation.namespace}/{reservation.name}/"
                f"{reservation.uid}/{reservation.attempt} is reserved already"
            ) from error

    async def release_sandbox(self, sandbox_id: str) -> None:
        """Forget a sandbox, everything of it being undone; an unknown id does nothing. On disk when it returns."""
        await self._write(lambda connection: connection.execute("DELETE FROM sandbox WHERE id = ?", (sandbox_id,)))

    async def sandbox_reservations(self) -> list[SandboxReservation]:
        """All reservations, by id."""
        return await self._write(
            lambda connection: [_reservation_of(row) for row in connection.execute(_SELECT).fetchall()]
        )

    async def close(self) -> None:
        """Finish what is queued, then close the database. Later calls raise Unavailable; closing twice is allowed."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    async def _write(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """Run a statement in the writer thread and wait for its commit."""
        if self._closed:
            raise Unavailable(f"{self.path} is closed")
        write = _Write(run, concurrent.futures.Future())
        self._queue.put(write)
        result: T = await asyncio.wrap_future(write.done)  # type: ignore[arg-type]
        return result

    def _run(self) -> None:
        """The writer thread: one transaction for all that waited."""
        stopping = False
        while not stopping:
            group, stopping = self._next_group()
            if group:
                self._commit(group)
        self._connection.close()

    def _next_group(self) -> tuple[list[_Write], bool]:
        """What waits in the queue, at least one entry; True when the last entry told to stop."""
        group: list[_Write] = []
        entry = self._queue.get()
        while entry is not None:
            # A caller that has gone before its turn wants no effect any more.
            if entry.done.set_running_or_notify_cancel():
                group.append(entry)
            if len(group) >= _GROUP:
                return group, False
            try:
                entry = self._queue.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _commit(self, group: list[_Write]) -> None:
        outcomes: list[tuple[_Write, object, Exception | None]] = []
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for write in group:
                try:
                    outcomes.append((write, write.run(self._connection), None))
                except sqlite3.IntegrityError as error:  # undoes its own statement only
                    outcomes.append((write, None, error))
            self._connection.execute("COMMIT")
        except Exception as error:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            problem = _translated(self.path, error)
            outcomes = [(write, None, problem) for write in group]
        for write, result, failure in outcomes:
            if failure is None:
                write.done.set_result(result)
            else:
                write.done.set_exception(failure)


def _open(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # sqlite gives its other files this mode
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
    except (OSError, sqlite3.Error) as error:
        raise Unavailable(f"{path} cannot be opened: {error}") from error
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        _migrate(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise Unavailable(f"{path} cannot be used: {error}") from error
    except CrishimError:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the schema from its version (PRAGMA user_version) to ours, each step in a transaction of its own."""
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found > SCHEMA_VERSION:
        raise Unsupported(
            f"{path} was written by a newer crishim (schema {found}, this one knows {SCHEMA_VERSION}): "
            "go back to the newer version, or give this one a root directory of its own"
        )
    for version in range(found, SCHEMA_VERSION):
        connection.execute("BEGIN IMMEDIATE")
        for statement in _MIGRATIONS[version]:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {version + 1}")
        connection.execute("COMMIT")


def _storable(value: object) -> object:
    """Text with bytes that are not UTF-8 cannot be bound as TEXT; such a value is stored as a BLOB of its bytes."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-8", "surrogateescape")
    return value


def _reservation_of(row: tuple[object, ...]) -> SandboxReservation:
    values = dict(zip(_COLUMNS, row, strict=True))
    for name, value in values.items():
        if isinstance(value, bytes) and name not in ("network_config", "config"):
            values[name] = value.decode("utf-8", "surrogateescape")
    return SandboxReservation(**values)  # type: ignore[arg-type]


def _translated(path: Path, error: Exception) -> Exception:
    if not isinstance(error, sqlite3.Error):
        return error
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return Exhausted(f"{path} cannot grow: the disk is full")
    return Unavailable(f"{path} cannot be written: {error}")
