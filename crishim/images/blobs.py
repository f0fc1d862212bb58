"""Layer blobs between the registry and the unpacker: received, resumed, verified, kept while somebody needs them.

`partial/<algorithm>-<hex>` is on its way, `blobs/<algorithm>-<hex>` is complete and verified. Both outlive a crash, so
that a pull goes on where it was; what nobody asked for again in a day is removed when the store is opened.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakValueDictionary

from crishim.images.disk import own_files
from crishim.images.download import PartialBlob
from crishim.images.manifests import Descriptor
from crishim.images.repository import Repository

#: between looks whether another thread has let go of a file
_LOCK_POLL_S = 0.05
LEFTOVER_LIFE_S = 24 * 3600


class BlobStore:
    """ROOT/images/partial and ROOT/images/blobs."""

    def __init__(self, directory: Path, threads: Executor) -> None:
        """threads: where downloads run."""
        self._threads = threads
        self._partial = directory / "partial"
        self._complete = directory / "blobs"
        #: pulls that use a digest; its file goes with the last of them
        self._users: Counter[str] = Counter()
        #: one download per digest; a second waits and finds it done
        self._downloading: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        for place in (self._partial, self._complete):
            place.mkdir(mode=0o700, exist_ok=True)
            for left in place.iterdir():
                if left.stat().st_mtime < time.time() - LEFTOVER_LIFE_S:
                    left.unlink()

    @contextmanager
    def used(self, digests: Iterable[str]) -> Iterator[None]:
        """While it is open, complete blobs stay; partial ones always stay."""
        counted = list(digests)
        self._users.update(counted)
        try:
            yield
        finally:
            self._users.subtract(counted)
            for digest in set(counted):
                if self._users[digest] <= 0:
                    del self._users[digest]
                    (self._complete / _file_name(digest)).unlink(missing_ok=True)

    def in_use(self) -> frozenset[str]:
        """Names of the files of running pulls, in both directories."""
        return frozenset(map(_file_name, [*self._users, *self._downloading]))

    def free(self, name: str) -> None:
        """Remove what nobody has asked for in a day, complete or not. Blocking; OSError when it cannot be removed."""
        for place in (self._partial, self._complete):
            with suppress(FileNotFoundError):
                if name not in self.in_use() and (place / name).lstat().st_mtime < time.time() - LEFTOVER_LIFE_S:
                    (place / name).unlink()

    async def fetch(self, repository: Repository, blob: Descriptor, progress: Callable[[int], None]) -> Path:
        """Path of the complete, verified blob. Errors are those of `Repository.download`, and Exhausted (disk).

        progress is called with the bytes on disk, from another thread. The caller holds the digest as `used`.
        """
        async with self._downloading.setdefault(blob.digest, asyncio.Lock()):
            running = asyncio.get_running_loop()
            return await running.run_in_executor(self._threads, self._fetch, repository, blob, progress)

    def _fetch(self, repository: Repository, blob: Descriptor, progress: Callable[[int], None]) -> Path:
        complete = self._complete / _file_name(blob.digest)
        partial = self._partial / _file_name(blob.digest)
        with own_files(partial):
            while not complete.exists():
                descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                try:
                    # the thread of a cancelled pull ends in its own time: two must not write one file
                    _lock(descriptor, repository)
                    if _is_same_file(partial, descriptor):
                        self._complete_partial(repository, PartialBlob(descriptor, blob, progress), partial, complete)
                finally:
                    os.close(descriptor)
        return complete

    def _complete_partial(self, repository: Repository, blob: PartialBlob, partial: Path, complete: Path) -> None:
        try:
            repository.download(blob)
            blob.sync()  # its name says that it is verified, so its content may not be lost before its name
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                blob.discard()  # a layer that claims more than there is must not hold the disk full for a day
            raise
        finally:
            if blob.size and not blob.received:
                partial.unlink()
        partial.rename(complete)


def _lock(descriptor: int, repository: Repository) -> None:
    """Hold the file alone; Unavailable when the pull is stopped while it waits."""
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            repository.pause(_LOCK_POLL_S)


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _file_name(digest: str) -> str:
    return digest.replace(":", "-")
