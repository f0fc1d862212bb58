"""The root directory of each container: which layers it reads, and its own writable layer on the disk.

Nothing is mounted here: the executor builds the overlay from the paths. A prepared rootfs holds its layers, so that an
image can be removed while containers of it run.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from crishim.errors import InvalidSpec
from crishim.images.disk import own_files
from crishim.images.layers import LayerStore
from crishim.images.table import ImageTable
from crishim.images.trees import remove_tree
from crishim.model.image import Image
from crishim.model.process import RootFs
from crishim.model.sandbox import UserNamespace

_CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class RootFsStore:
    """Writable layers under ROOT/containers/<id>; `ImageStore.rootfs` is the one of a server."""

    def __init__(self, root: Path, table: ImageTable, layers: LayerStore) -> None:
        self._directory = root / "containers"
        self._table = table
        self._layers = layers
        self._directory.mkdir(mode=0o700, exist_ok=True)

    async def prepare(
        self,
        container_id: str,
        image: Image,
        users: UserNamespace | None = None,
        volumes: Sequence[Image] = (),
    ) -> RootFs:
        """Hold the image's layers and make an empty writable layer. Calling it again keeps what is there.

        volumes: images whose layers are held too, because the container mounts them.
        users: the pod's own user namespace, whose ids own what is written.
        NotFound when the image was removed meanwhile, Exhausted when the disk is full, InvalidSpec when the owner of
        the image's "/" is not mapped.
        """
        return await asyncio.to_thread(self._prepare, container_id, image, users, volumes)

    async def release(self, container_id: str) -> None:
        """Remove the writable layer and let go of the image's layers; nothing when it is gone.

        The overlay may be mounted no more. OSError when a file cannot be removed; a retry goes on.
        """
        await asyncio.to_thread(self._release, container_id)

    def prepared(self) -> Mapping[str, str]:
        """Container id to image id of every prepared rootfs, for recovery to compare with what runs."""
        return self._table.rootfs_ids()

    def path(self, container_id: str) -> Path:
        """The directory of a container's writable layer ("upper" and "work" are in it)."""
        if not _CONTAINER_ID.fullmatch(container_id):
            raise InvalidSpec(f"container id {container_id!r} is not a name of letters, digits, '_', '.' and '-'")
        return self._directory / container_id

    def volumes(self, container_id: str) -> Path:
        """Where the directories for the VOLUMEs of a container's image are; it goes with `release`."""
        return self.path(container_id) / "volumes"

    def make_volumes(self, container_id: str) -> int:
        """Make that directory; a descriptor of it, which is the caller's. Blocking."""
        directory = self.volumes(container_id)
        with own_files(directory):
            directory.mkdir(mode=0o700)
            return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _prepare(
        self, container_id: str, image: Image, users: UserNamespace | None, volumes: Sequence[Image]
    ) -> RootFs:
        directory = self.path(container_id)
        if not image.chain_ids:
            raise InvalidSpec(f"image {image.id} has no layers: there is nothing to run")
        self._table.put_rootfs(container_id, image, volumes)  # first: a crash after it leaves a row that release finds
        lowers = self._layers.paths(image.chain_ids)
        with own_files(directory):
            self._make(directory, image, lowers, users)
        return RootFs(lowers=lowers, upper=str(directory / "upper"), work=str(directory / "work"))

    def _make(self, directory: Path, image: Image, lowers: tuple[str, ...], users: UserNamespace | None) -> None:
        upper = directory / "upper"
        directory.mkdir(mode=0o700, exist_ok=True)
        (directory / "work").mkdir(mode=0o700, exist_ok=True)
        if not upper.exists():
            # overlayfs shows the upper directory's own mode and owner as those of "/"
            made = directory / "upper.new"
            made.mkdir(exist_ok=True)
            like = os.stat(self._layers.root_path(image.chain_ids) or lowers[-1])
            os.chown(made, *_owner_of_root(image, like, users))
            made.chmod(like.st_mode & 0o7777)
            made.rename(upper)

    def _release(self, container_id: str) -> None:
        remove_tree(self.path(container_id))
        if self._table.drop_rootfs(container_id):
            self._layers.free_unused()


def _owner_of_root(image: Image, like: os.stat_result, users: UserNamespace | None) -> tuple[int, int]:
    if users is None:
        return like.st_uid, like.st_gid
    uid, gid = users.host_uid(like.st_uid), users.host_gid(like.st_gid)
    if uid is None or gid is None:
        raise InvalidSpec(
            f'image {image.id}: its "/" belongs to {like.st_uid}:{like.st_gid}, which the pod\'s user namespace lacks'
        )
    return uid, gid
