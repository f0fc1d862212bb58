"""What was given to plugins and what they answered, one file per sandbox, so that DEL works after a crash or a reboot.

A record is durable before the first plugin runs and removed after the last one has undone its part. It holds the
configuration as it was: the node's may have changed since. A record that a newer crishim wrote is left alone, and a
server does not start on it: put aside, it would leave the attachment for ever.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crishim.errors import InvalidSpec, Unavailable, Unsupported
from crishim.network.cni.conf import NetworkConf, document_of, network_of

logger = logging.getLogger(__name__)

_VERSION = 1
_KEYS = frozenset({"version", "sandbox_id", "network", "netns_path", "cni_args", "arguments", "result"})
_SANDBOX_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")


@dataclass(frozen=True, slots=True)
class AttachmentRecord:
    """One attachment; `result` is what the chain answered, None until it has."""

    sandbox_id: str
    network: NetworkConf
    netns_path: str
    cni_args: str
    arguments: dict[str, Any]
    result: dict[str, Any] | None = None


class AttachmentRecords:
    """Files in one directory, which is made at the first write. Unavailable when the disk refuses."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, record: AttachmentRecord) -> None:
        """Durable at return: file and directory are synced."""
        document = {
            "version": _VERSION,
            "sandbox_id": record.sandbox_id,
            "network": document_of(record.network),
            "netns_path": record.netns_path,
            "cni_args": record.cni_args,
            "arguments": record.arguments,
            "result": record.result,
        }
        path = self._path(record.sandbox_id)
        fresh = path.with_suffix(".new")
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(fresh, "w", encoding="utf-8") as file:
                json.dump(document, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)
            self._sync()
        except OSError as error:
            raise Unavailable(f"{path} cannot be written: {error.strerror}") from error

    def find(self, sandbox_id: str) -> AttachmentRecord | None:
        """None when there is none. One that is damaged is put aside, logged, and counts as none.

        It cannot be undone, and a sandbox that could never be stopped would be worse; GC has the rest. Unsupported for
        one that a newer crishim wrote, which stays as it is.
        """
        path = self._path(sandbox_id)
        try:
            document = json.loads(path.read_bytes())
            _refuse_newer(path, document)
            if document["version"] != _VERSION:
                raise ValueError(f"version {document['version']} is not {_VERSION}")
            return AttachmentRecord(
                sandbox_id=document["sandbox_id"],
                network=network_of(document["network"]),
                netns_path=document["netns_path"],
                cni_args=document["cni_args"],
                arguments=document["arguments"],
                result=document["result"],
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unavailable(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, RecursionError, InvalidSpec) as error:
            logger.error("%s is not a record of a CNI attachment: %s", path, error)
            path.replace(path.with_suffix(".damaged"))
            return None

    def remove(self, sandbox_id: str) -> None:
        """Nothing to do when there is none."""
        path = self._path(sandbox_id)
        try:
            path.unlink(missing_ok=True)
            if self._directory.is_dir():
                self._sync()
        except OSError as error:
            raise Unavailable(f"{path} cannot be removed: {error.strerror}") from error

    def ids(self) -> Iterator[str]:
        """Of every sandbox with a record."""
        try:
            names = sorted(os.listdir(self._directory))
        except FileNotFoundError:
            return
        yield from (name.removesuffix(".json") for name in names if name.endswith(".json"))

    def refuse_newer(self) -> None:
        """Unsupported names the first record that a newer crishim wrote; damaged ones are for `find` to tell."""
        for sandbox_id in self.ids():
            with suppress(OSError, ValueError, RecursionError, InvalidSpec):
                path = self._path(sandbox_id)
                _refuse_newer(path, json.loads(path.read_bytes()))

    def _path(self, sandbox_id: str) -> Path:
        if not _SANDBOX_ID.fullmatch(sandbox_id):
            raise InvalidSpec(f"sandbox id: {sandbox_id!r} cannot be the name of a file")
        return self._directory / f"{sandbox_id}.json"

    def _sync(self) -> None:
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _refuse_newer(path: Path, document: object) -> None:
    if not isinstance(document, dict):
        return
    version, unknown = document.get("version"), sorted(document.keys() - _KEYS)
    if isinstance(version, int) and version > _VERSION:
        problem = f"version {version}, this crishim reads {_VERSION}"
    elif version == _VERSION and unknown:
        problem = f"unknown field {unknown[0]!r}"
    else:
        return
    raise Unsupported(
        f"{path} was written by a newer crishim ({problem}): go back to that version, or remove its pods with it first"
    )
