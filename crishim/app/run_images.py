"""The images of `crishim run`: a store that only runs use, and a writable layer for each of them.

A run holds a lock on a file of its own while it lives, so that the next one can tell whose container and writable layer
were left behind by a run that was killed.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from crishim.app.image_store import open_image_store
from crishim.cgroups import effects
from crishim.config import ImagesConfig
from crishim.errors import NotFound, Unavailable
from crishim.images.store import ImageStore
from crishim.images.trees import remove_tree
from crishim.model.image import Image, ImageConfig
from crishim.model.process import RootFs
from crishim.model.sandbox import UserNamespace
from crishim.process import Engine, cgroup_root, monitor_directories


class Runs:
    """The image store of runs. It is opened for moments and alone, since a store belongs to one process."""

    def __init__(self, root: Path, images: ImagesConfig, engine: Engine) -> None:
        self._root = root
        self._config = images
        self._engine = engine
        self._alive = root / "alive"
        try:
            self._alive.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"--root: {root.parent} cannot be used: {(error.strerror or '').lower()}") from error

    @contextmanager
    def rootfs(self, run_id: str, reference: str, users: UserNamespace | None) -> Iterator[tuple[RootFs, ImageConfig]]:
        """The root of an image, pulled when it is missing, with a writable layer that is removed at the end.

        users: whose ids own what is written.
        """
        life = _locked(self._alive / run_id)
        try:
            with self._store() as store:
                self._sweep(store)
                image = self._engine.call(_found(store, reference))
                rootfs = self._engine.call(store.rootfs.prepare(run_id, image, users))
            try:
                yield rootfs, image.config
            finally:
                with self._store() as store:
                    self._engine.call(store.rootfs.release(run_id))
        finally:
            (self._alive / run_id).unlink(missing_ok=True)
            os.close(life)

    @contextmanager
    def _store(self) -> Iterator[ImageStore]:
        lock = _locked(self._root / "lock")
        try:
            store = open_image_store(self._root, self._config, self._engine.executor)
            try:
                yield store
            finally:
                store.close()
        finally:
            os.close(lock)

    def _sweep(self, store: ImageStore) -> None:
        """End what runs that were killed have left: their containers and writable layers."""
        for run_id in store.rootfs.prepared():
            with suppress(BlockingIOError):
                life = _locked(self._alive / run_id, fcntl.LOCK_EX | fcntl.LOCK_NB)
                try:
                    hierarchy = self._engine.executor.hierarchy
                    effects.kill(hierarchy, cgroup_root(run_id))
                    effects.remove(hierarchy, cgroup_root(run_id))
                    for directory in Path(tempfile.gettempdir()).glob(f"{monitor_directories(run_id)}*"):
                        remove_tree(directory)
                    self._engine.call(store.rootfs.release(run_id))
                    (self._alive / run_id).unlink()
                finally:
                    os.close(life)


async def _found(store: ImageStore, reference: str) -> Image:
    try:
        return store.resolve(reference)
    except NotFound:
        return await store.pull(reference)


def _locked(path: Path, how: int = fcntl.LOCK_EX) -> int:
    """Descriptor that holds the lock of a file, which ends with the process (flock(2))."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, how)
    except BlockingIOError:
        os.close(fd)
        raise
    return fd
