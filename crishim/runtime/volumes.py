"""What a container mounts of images: image volumes of the request (KEP-4639)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from crishim.errors import InvalidSpec, NotFound
from crishim.images.store import ImageStore
from crishim.model.container import ContainerConfig, Mount
from crishim.model.image import Image

#: a kubelet finds this word in the error and shows it as the reason of the failure
_REASON = "ImageVolumeMountFailed"


def volume_images(config: ContainerConfig, images: ImageStore) -> dict[int, Image]:
    """The image of each image volume, by its position among the mounts. NotFound names the one that is not here."""
    return {index: _image(index, mount, images) for index, mount in enumerate(config.mounts) if mount.image is not None}


def with_digests(config: ContainerConfig, images: Mapping[int, Image]) -> ContainerConfig:
    """The configuration with the digest of each image volume, as ContainerStatus shows it."""
    if not images:
        return config
    mounts = [
        replace(mount, image_ref=reference_of(images[index])) if index in images else mount
        for index, mount in enumerate(config.mounts)
    ]
    return replace(config, mounts=tuple(mounts))


def reference_of(image: Image) -> str:
    """A repository's digest of the image when one is known, else its id."""
    return image.repo_digests[0] if image.repo_digests else image.id


def _image(index: int, mount: Mount, images: ImageStore) -> Image:
    where = f"{_REASON}: config.mounts[{index}].image.image"
    assert mount.image is not None
    try:
        image = images.resolve(mount.image)
    except (NotFound, InvalidSpec) as error:
        raise type(error)(f"{where}: {error}") from None
    if not image.chain_ids:
        raise InvalidSpec(f"{where}: image {image.id} has no layers: there is nothing to mount")
    return image
