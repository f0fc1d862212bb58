"""Exit records: one small file per ended container, written by the monitor before it tells anyone.

The file holds one wire value in `STATE/sandboxes/SANDBOX/exits/CONTAINER`; it is replaced as a whole, so a reader sees
all of it or nothing. It must survive crashes of our processes, not a power cut, so nothing is synchronised.
"""

from __future__ import annotations

import os

from crishim.executor import wire

DIRECTORY = b"exits"
_LIMIT_BYTES = 1 << 16


def write(sandbox: int, container_id: bytes, record: dict[str, object]) -> None:
    """Write the record of a container below the sandbox directory (descriptor)."""
    try:
        os.mkdir(DIRECTORY, 0o700, dir_fd=sandbox)
    except FileExistsError:
        pass
    place = DIRECTORY + b"/" + container_id
    fd = os.open(place + b".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=sandbox)
    try:
        os.write(fd, wire.encode(record))
    finally:
        os.close(fd)
    os.replace(place + b".new", place, src_dir_fd=sandbox, dst_dir_fd=sandbox)


def read(sandbox: int, container_id: bytes) -> dict[str, object] | None:
    """The record of a container, or None; WireError for a file that is no record."""
    try:
        fd = os.open(DIRECTORY + b"/" + container_id, os.O_RDONLY | os.O_CLOEXEC, dir_fd=sandbox)
    except FileNotFoundError:
        return None
    try:
        value = wire.decode(os.read(fd, _LIMIT_BYTES))
    finally:
        os.close(fd)
    if not isinstance(value, dict):
        raise wire.WireError("exit record is not a mapping")
    return value


def remove(sandbox: int, container_id: bytes) -> None:
    """Remove the record of a container; a missing one is fine."""
    try:
        os.unlink(DIRECTORY + b"/" + container_id, dir_fd=sandbox)
    except FileNotFoundError:
        pass
