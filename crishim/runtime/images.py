"""Images: pulled, listed, removed. Facts: api.proto ImageService; a pull of the same image is joined by the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from crishim.errors import InvalidSpec, NotFound
from crishim.images.store import ImageStore
from crishim.model.image import Credentials, FilesystemUsage, Image
from crishim.model.sandbox import SandboxConfig
from crishim.runtime.observer import Observer
from crishim.runtime.operations import Operation, Operations
from crishim.runtime.steps import reached


class Images:
    """The use cases of `cri.use_cases.Images`."""

    def __init__(self, images: ImageStore, operations: Operations, observer: Observer) -> None:
        self._images = images
        self._operations = operations
        self._observer = observer
        #: told the image that came, or the id of one that went: lists are kept from it
        self.on_added: Callable[[Image], None] = lambda image: None
        self.on_removed: Callable[[str], None] = lambda image_id: None

    async def pull(self, reference: str, credentials: Credentials | None, sandbox_config: SandboxConfig | None) -> str:
        """Id of the image. Ends with its last caller; what was fetched is kept for the next one."""
        return await self._operations.run(
            ("PullImage", reference, credentials),
            lambda operation: self._pull(reference, credentials, operation),
            stage="pull.done",
            cancel_with_last_caller=True,
        )

    async def _pull(self, reference: str, credentials: Credentials | None, operation: Operation) -> str:
        began = time.monotonic()
        received: dict[str, int] = {}
        try:
            image = await self._images.pull(
                reference, credentials, lambda progress: received.update({progress.digest: progress.received_bytes})
            )
        except BaseException:
            self._observer.pull_ended("failed", time.monotonic() - began, sum(received.values()))
            raise
        reached("pull.done")
        self._observer.pull_ended("ok", time.monotonic() - began, sum(received.values()))
        self.on_added(image)
        return image.id

    async def status(self, reference: str) -> Image | None:
        """The image by id, tag or digest; None when it is not here."""
        try:
            return self._images.resolve(reference)
        except NotFound:
            return None

    async def remove(self, reference: str) -> None:
        """With all its names; nothing to do when it is not here."""
        image = await self.status(reference)
        await self._images.remove(reference)
        if image is not None:
            self.on_removed(image.id)

    async def usage(self) -> Sequence[FilesystemUsage]:
        """The store's file system."""
        return (self._images.usage(),)

    async def load(self, archive: Path) -> Sequence[Image]:
        """Images of an archive on this machine; InvalidSpec names what is wrong in it."""
        if not archive.is_absolute():
            raise InvalidSpec(f"path: {str(archive)!r} is not an absolute path")
        try:
            images = await self._images.load(archive)
        except FileNotFoundError:
            raise NotFound(f"path: {str(archive)!r} does not exist") from None
        except OSError as error:
            raise InvalidSpec(f"path: {str(archive)!r} cannot be read: {error.strerror}") from error
        for image in images:
            self.on_added(image)
        return images
