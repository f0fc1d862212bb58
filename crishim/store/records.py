"""One small file per status, under the state directory (a tmpfs on real nodes): they survive our crash, not the node's.

    STATE/sandboxes/<id>/sandbox.json                      Sandbox
    STATE/sandboxes/<id>/containers/<id>.json              Container
    STATE/sandboxes/<id>/containers/<id>.reservation.json  ContainerReservation, until the Container is written

A file is written under a temporary name and renamed, without fsync: a crash leaves the old or the new one. Other files
in a sandbox's directory (its monitor's socket, exit records) belong to the executor and are left alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from crishim.errors import Exhausted, InvalidSpec
from crishim.model.container import Container, ContainerConfig
from crishim.model.sandbox import Sandbox
from crishim.store import codec

VERSION = 1

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_RESERVATION = ".reservation.json"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ContainerReservation:
    """A container whose creation began: what recovery needs to undo it when no Container follows."""

    id: str
    sandbox_id: str
    config: ContainerConfig


@dataclass(frozen=True, slots=True)
class DamagedRecord:
    """A file that was not understood; it is left where it is."""

    path: str
    sandbox_id: str
    problem: str
    #: nothing is wrong with it, but a newer crishim wrote it
    newer: bool = False


@dataclass(frozen=True, slots=True)
class RecordSet:
    """All that lay under the state directory."""

    sandboxes: tuple[Sandbox, ...] = ()
    containers: tuple[Container, ...] = ()
    reservations: tuple[ContainerReservation, ...] = ()
    damaged: tuple[DamagedRecord, ...] = ()
    #: ids of sandboxes written in another boot of the machine
    other_boot: frozenset[str] = frozenset()


class Records:
    """Reads and writes the record files; every write is a few microseconds on a tmpfs, so it is done at once."""

    def __init__(self, state: Path, boot_id: str) -> None:
        self._sandboxes = state / "sandboxes"
        self._boot_id = boot_id

    # Paths are plain text below: pathlib would take longer than the file system.

    def write_sandbox(self, sandbox: Sandbox) -> None:
        """Raises Exhausted when the state directory is full."""
        self._write(self._folder(sandbox.id), "sandbox.json", "sandbox", sandbox)

    def write_container(self, container: Container) -> None:
        """Also ends the container's reservation. Raises Exhausted when the state directory is full."""
        folder = f"{self._folder(container.sandbox_id)}/containers"
        self._write(folder, f"{_checked(container.id)}.json", "container", container)
        _unlink(f"{folder}/{container.id}{_RESERVATION}")

    def write_reservation(self, reservation: ContainerReservation) -> None:
        """Raises Exhausted when the state directory is full."""
        folder = f"{self._folder(reservation.sandbox_id)}/containers"
        self._write(folder, f"{_checked(reservation.id)}{_RESERVATION}", "reservation", reservation)

    def remove_container(self, sandbox_id: str, container_id: str) -> None:
        """Remove the record and the reservation of a container; neither need exist."""
        base = f"{self._folder(sandbox_id)}/containers/{_checked(container_id)}"
        _unlink(f"{base}.json")
        _unlink(f"{base}{_RESERVATION}")

    def remove_sandbox(self, sandbox_id: str) -> None:
        """Remove the record of a sandbox, then its directories when nothing else is in them."""
        folder = self._folder(sandbox_id)
        _unlink(f"{folder}/sandbox.json")
        with contextlib.suppress(OSError):  # not empty, or gone: the executor still has files there
            os.rmdir(f"{folder}/containers")
        with contextlib.suppress(OSError):
            os.rmdir(folder)

    def read_all(self) -> RecordSet:
        """Every record; what cannot be read is listed as damaged. Temporary files of a crash are removed."""
        reader = _Reader(self._boot_id)
        for name in _names(self._sandboxes):
            reader.read_folder(self._sandboxes / name)
        return RecordSet(
            tuple(reader.sandboxes),
            tuple(reader.containers),
            tuple(reader.reservations),
            tuple(reader.damaged),
            frozenset(reader.other_boot),
        )

    def _folder(self, sandbox_id: str) -> str:
        return f"{self._sandboxes}/{_checked(sandbox_id)}"

    def _write(self, folder: str, name: str, kind: str, value: object) -> None:
        record = {"version": VERSION, "boot_id": self._boot_id, kind: codec.to_json(value)}
        text = json.dumps(record, separators=(",", ":")).encode("ascii")
        temporary = f"{folder}/.{name}.tmp"  # one writer per id: no other name is needed
        try:
            try:
                _write_file(temporary, text)
            except FileNotFoundError:
                os.makedirs(folder, mode=0o700, exist_ok=True)
                _write_file(temporary, text)
            os.rename(temporary, f"{folder}/{name}")
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise Exhausted(f"the {kind} record {folder}/{name} cannot be written: {error.strerror}") from error


def _write_file(path: str, text: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if os.write(fd, text) < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(fd)


def _names(directory: Path) -> list[str]:
    """What is in a directory, sorted; nothing when there is none."""
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


class _Reader:
    """Collects the records of one pass over the directories."""

    def __init__(self, boot_id: str) -> None:
        self._boot_id = boot_id
        self.sandboxes: list[Sandbox] = []
        self.containers: list[Container] = []
        self.reservations: list[ContainerReservation] = []
        self.damaged: list[DamagedRecord] = []
        self.other_boot: set[str] = set()

    def read_folder(self, folder: Path) -> None:
        """Add the records of one sandbox; what a crash left half written is removed."""
        containers = folder / "containers"
        for directory, names in ((folder, _names(folder)), (containers, inside := _names(containers))):
            for name in names:
                if name.startswith(".") and name.endswith(".tmp"):
                    (directory / name).unlink(missing_ok=True)
        sandbox = self._read(folder / "sandbox.json", "sandbox", Sandbox, folder.name)
        if sandbox and sandbox.id == folder.name:
            self.sandboxes.append(sandbox)
        elif sandbox:
            self._report(folder / "sandbox.json", folder.name, f"it is the record of sandbox {sandbox.id}")
        for name in inside:
            if name.endswith(".json"):
                self._read_container(containers / name, folder.name)

    def _read_container(self, path: Path, sandbox_id: str) -> None:
        if path.name.endswith(_RESERVATION):
            reservation = self._read(path, "reservation", ContainerReservation, sandbox_id)
            if reservation and self._belongs(path, _RESERVATION, sandbox_id, reservation):
                self.reservations.append(reservation)
            return
        container = self._read(path, "container", Container, sandbox_id)
        if container and self._belongs(path, ".json", sandbox_id, container):
            self.containers.append(container)

    def _belongs(self, path: Path, ending: str, sandbox_id: str, value: Container | ContainerReservation) -> bool:
        if (value.sandbox_id, value.id) == (sandbox_id, path.name.removesuffix(ending)):
            return True
        self._report(path, sandbox_id, f"it is the record of container {value.id} of sandbox {value.sandbox_id}")
        return False

    def _read(self, path: Path, kind: str, model: type[T], sandbox_id: str) -> T | None:
        try:
            record = codec.parse(path.read_bytes())
            if not isinstance(record, dict) or kind not in record:
                raise codec.DecodeError(f"not a record of a {kind}")
            version = record.get("version")
            if version != VERSION:
                newer = isinstance(version, int) and version > VERSION
                problem = f"version {version!r}, this crishim reads {VERSION}"
                raise codec.NewerRecord(problem) if newer else codec.DecodeError(problem)
            value = codec.from_json(model, record[kind], kind)
        except FileNotFoundError:
            return None
        except (OSError, codec.DecodeError) as error:
            self._report(path, sandbox_id, str(error), newer=isinstance(error, codec.NewerRecord))
            return None
        if record.get("boot_id") != self._boot_id:
            self.other_boot.add(sandbox_id)
        return value

    def _report(self, path: Path, sandbox_id: str, problem: str, *, newer: bool = False) -> None:
        self.damaged.append(DamagedRecord(str(path), sandbox_id, problem, newer))


def _checked(name: str) -> str:
    """An id as part of a file name. Raises InvalidSpec."""
    if not _ID.fullmatch(name):
        raise InvalidSpec(f"id {name!r} is not made of letters, digits, '-' and '_'")
    return name
