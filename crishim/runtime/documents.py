"""Directories of JSON and YAML documents that the node's administrator fills: read again when a file has changed.

Nothing is watched. Who asks pays a look at the directories; a file is parsed when its size, time or inode is another
than last time. A document that cannot be used is left out and says why. Blocking.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from crishim.errors import InvalidSpec

T = TypeVar("T")

_LIMIT_BYTES = 4 << 20
_FILES_LIMIT = 1000
_DEPTH_LIMIT = 32


@dataclass(frozen=True, slots=True)
class Document(Generic[T]):
    """A file; `value` is None when it cannot be used, and `problem` the sentence that says why."""

    path: str
    #: position of its directory
    directory: int
    value: T | None
    problem: str = ""


class Documents(Generic[T]):
    """The documents of some directories; a directory that does not exist holds none."""

    def __init__(self, directories: Sequence[str], suffixes: tuple[str, ...], parse: Callable[[object], T]) -> None:
        """parse: from the value of a document; its InvalidSpec is the document's problem."""
        self._directories = tuple(directories)
        self._suffixes = suffixes
        self._parse = parse
        #: path to (mtime ns, size, inode, device) and the document
        self._known: dict[str, tuple[tuple[int, int, int, int], Document[T]]] = {}

    def read(self) -> list[Document[T]]:
        """Every document, in the order of directories and of names in them."""
        documents: list[Document[T]] = []
        for number, directory in enumerate(self._directories):
            try:
                names = sorted(name for name in os.listdir(directory) if name.endswith(self._suffixes))
            except OSError:
                continue
            documents += [self._document(number, f"{directory}/{name}") for name in names[:_FILES_LIMIT]]
        self._known = {each.path: self._known[each.path] for each in documents if each.path in self._known}
        return documents

    def _document(self, directory: int, path: str) -> Document[T]:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            return Document(path, directory, None, (error.strerror or "").lower())
        try:
            status = os.fstat(fd)
            version = (status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev)
            known = self._known.get(path)
            if known is not None and known[0] == version:
                return known[1]
            if not stat.S_ISREG(status.st_mode) or status.st_size > _LIMIT_BYTES:
                problem = f"it is not a file of at most {_LIMIT_BYTES} bytes"
                document: Document[T] = Document(path, directory, None, problem)
            else:
                with open(fd, "rb", closefd=False) as file:
                    document = self._parsed(path, directory, file.read(_LIMIT_BYTES))
        finally:
            os.close(fd)
        self._known[path] = (version, document)
        return document

    def _parsed(self, path: str, directory: int, text: bytes) -> Document[T]:
        try:
            value = json.loads(text) if path.endswith(".json") else _yaml(text)
        except (ValueError, RecursionError) as error:
            kind = "JSON" if path.endswith(".json") else "YAML"
            return Document(path, directory, None, f"it is not {kind}: {' '.join(str(error).split())[:200]}")
        try:
            return Document(path, directory, self._parse(value))
        except InvalidSpec as error:
            return Document(path, directory, None, str(error))


def _yaml(text: bytes) -> object:
    """The value of one YAML document, by the safe loader; ValueError also for aliases, which multiply what is read."""
    import yaml  # here: most nodes have no such document, and it is a megabyte of memory

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("aliases are not taken")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > _DEPTH_LIMIT:
                raise ValueError("it nests too deeply")
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
