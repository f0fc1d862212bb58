"""A blob on its way to the disk: what was received, hashed as it comes, resumed where it stopped."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable

from crishim.errors import RegistryUnavailable
from crishim.images.disk import write_all
from crishim.images.manifests import Descriptor

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-[0-9]+/(?:[0-9]+|\*)")


class PartialBlob:
    """The open file of one blob. The descriptor stays the caller's; one thread at a time."""

    def __init__(self, descriptor: int, blob: Descriptor, progress: Callable[[int], None]) -> None:
        """Hash what the file already holds, from an earlier attempt or another process."""
        self.digest = blob.digest
        self.size = blob.size
        self._descriptor = descriptor
        self._progress = progress
        self._restart()
        if os.fstat(descriptor).st_size > self.size:
            os.ftruncate(descriptor, 0)
        while piece := os.read(descriptor, 1 << 20):
            self._hash.update(piece)
            self.received += len(piece)
        progress(self.received)

    @property
    def missing(self) -> int:
        """Bytes still to come."""
        return self.size - self.received

    def begin(self, status: int, content_range: str) -> bool:
        """A response begins: keep what there is when it continues just there, else start again.

        False when its body is of no use: another part than the one asked for, or none (416).
        """
        place = _CONTENT_RANGE.fullmatch(content_range)
        if status == 206 and place and int(place[1]) == self.received:
            return True
        if self.received:
            self.discard()
        return status == 200

    def receive(self, piece: bytes) -> None:
        """Append bytes; RegistryUnavailable when there are more than the manifest says."""
        if len(piece) > self.missing:
            raise RegistryUnavailable(f"the registry sends more than the {self.size} bytes of {self.digest}")
        write_all(self._descriptor, piece)
        self._hash.update(piece)
        self.received += len(piece)
        self._progress(self.received)

    def is_right(self) -> bool:
        """Whether the complete content has the digest."""
        return self.missing == 0 and self._hash.hexdigest() == self.digest.partition(":")[2]

    def discard(self) -> None:
        """Drop all that was received: it is of no use."""
        self._restart()
        os.ftruncate(self._descriptor, 0)

    def sync(self) -> None:
        """Have the content on the disk. OSError when that is full or broken."""
        os.fsync(self._descriptor)

    def _restart(self) -> None:
        self.received = 0
        self._hash = hashlib.new(self.digest.partition(":")[0])
        os.lseek(self._descriptor, 0, os.SEEK_SET)
