"""The images of the store in memory, found by each of their names. Lists and lookups touch no disk."""

from __future__ import annotations

import dataclasses
import threading

from crishim.errors import InvalidSpec, NotFound
from crishim.images.references import parse_image_id, parse_reference
from crishim.images.table import ImageTable
from crishim.model.image import Image

_MIN_ID_PREFIX = 12


class ImageIndex:
    """What the table has; written through it, from any thread."""

    def __init__(self, table: ImageTable, pinned: frozenset[str]) -> None:
        """pinned: complete references that image GC shall spare."""
        self._table = table
        self._pinned = pinned
        #: held while rows are written and the index below is made from them
        self._lock = threading.Lock()
        self._images: dict[str, Image] = {}
        self._names: dict[str, str] = {}
        with self._lock:
            self._read_table()

    def resolve(self, name: str) -> Image:
        """The image called `name`: a reference by tag or digest, an id with or without "sha256:", or 12 digits of it.

        InvalidSpec when it cannot be a name of an image, NotFound when the store has none of that name.
        """
        image_id = parse_image_id(name)
        if image_id is None:
            image_id = self._by_reference(name) or self._by_prefix(name)
        image = self._images.get(image_id or "")
        if image is None:
            raise NotFound(f"image {name!r} is not in the store")
        return image

    def all(self) -> list[Image]:
        """Every image, by id."""
        return sorted(self._images.values(), key=lambda image: image.id)

    def put(self, image: Image, names: list[str], manifest: bytes, configuration: bytes) -> Image:
        """Add the image, or names to it, durably; the image with all its names. Blocking."""
        with self._lock:
            self._table.put_image(image, names, manifest, configuration)
            self._read_table()
            return self._images[image.id]

    def drop(self, image_id: str) -> None:
        """Remove the image with all its names, durably; nothing when it is gone. Blocking."""
        with self._lock:
            self._table.drop_image(image_id)
            self._read_table()

    def _read_table(self) -> None:
        images = [self._with_pin(image) for image in self._table.images()]
        self._images = {image.id: image for image in images}
        self._names = {name: image.id for image in images for name in (*image.repo_tags, *image.repo_digests)}

    def _with_pin(self, image: Image) -> Image:
        return dataclasses.replace(image, pinned=not self._pinned.isdisjoint(image.repo_tags + image.repo_digests))

    def _by_reference(self, name: str) -> str | None:
        try:
            wanted = parse_reference(name)
        except InvalidSpec:
            if self._by_prefix(name):
                return None
            raise
        return self._names.get(wanted.with_digest(wanted.digest) if wanted.digest else str(wanted))

    def _by_prefix(self, name: str) -> str | None:
        digits = name.removeprefix("sha256:")
        if len(digits) < _MIN_ID_PREFIX or not set(digits) <= set("0123456789abcdef"):
            return None
        found = [image_id for image_id in self._images if image_id.startswith(f"sha256:{digits}")]
        return found[0] if len(found) == 1 else None
