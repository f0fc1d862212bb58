"""What a container mounts of images: image volumes of the request (KEP-4639), and the VOLUME directories of its own.

For each of the latter a directory is made beside the container's writable layer and filled from the image by a confined
child; it goes with the container.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from crishim import errors
from crishim.errors import CrishimError, InvalidSpec, NotFound, Unavailable
from crishim.images.store import ImageStore
from crishim.model.container import ContainerConfig, Mount
from crishim.model.image import Image
from crishim.model.process import MountSpec
from crishim.runtime.executor import Executor
from crishim.runtime.helper import Helper
from crishim.spec.volumes import declared_volumes, volume_mounts

#: a kubelet finds this word in the error and shows it as the reason of the failure
_REASON = "ImageVolumeMountFailed"
#: name of the role that copies; `app/serve.py` gives it to the zygote
COPY_ROLE = "copy_volumes"
#: name of the role that looks for sub paths
_FIND_ROLE = "find_paths"
_FIND_S = 20.0
#: a volume may hold as much as an image
_COPY_S = 600.0


@dataclass(frozen=True, slots=True)
class Volumes:
    """What a container mounts of images."""

    #: the image of each image volume, by its position among the mounts of the request
    images: Mapping[int, Image]
    #: for the VOLUMEs of its own image: mounts, or directories that are made in its root
    mounts: Sequence[MountSpec] = ()
    directories: tuple[str, ...] = ()


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


async def check_sub_paths(
    config: ContainerConfig, volumes: Mapping[int, Image], images: ImageStore, executor: Executor
) -> None:
    """NotFound names the sub path that the image of a volume lacks, InvalidSpec one that cannot be reached.

    Asked when the container is created, where a kubelet looks for the reason; the start opens the path again.
    """
    for image in {image.id: image for image in volumes.values()}.values():
        places = [at for at, each in volumes.items() if each.id == image.id and config.mounts[at].image_sub_path]
        if places:
            paths = [config.mounts[at].image_sub_path for at in places]
            found = await _find(executor, images.layer_paths(image), paths, image.id)
            for at, path, number in zip(places, paths, found, strict=True):
                if number:
                    kind = NotFound if number == errno.ENOENT else InvalidSpec
                    why = "the image has nothing there" if number == errno.ENOENT else os.strerror(number).lower()
                    raise kind(f"{_REASON}: config.mounts[{at}].image_sub_path is {path!r}: {why}")


async def _find(executor: Executor, layers: Sequence[str], paths: Sequence[str], image_id: str) -> list[int]:
    request = {"lowers": [os.fsencode(layer) for layer in layers], "paths": [os.fsencode(path) for path in paths]}
    reply = await executor.run_role(_FIND_ROLE, request, timeout_s=_FIND_S)
    if "error" in reply:
        raise _failure(reply, f"{_REASON}: image {image_id}")
    numbers = reply["errors"]
    assert isinstance(numbers, list)
    return numbers


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


async def make_volumes(
    container_id: str,
    config: ContainerConfig,
    image: Image,
    images: ImageStore,
    executor: Executor,
    helper: Helper,
    *,
    idmap: bool,
) -> list[MountSpec]:
    """Directories with the image's content for what it declares as VOLUME, and their mounts.

    The container's root is prepared. InvalidSpec names a volume that cannot be, Exhausted is a full disk.
    """
    paths = declared_volumes(image.config.volumes, config.mounts)
    if not paths:
        return []
    directory = images.rootfs.volumes(container_id)
    place = await helper.run(images.rootfs.make_volumes, container_id)
    try:
        targets = await _copy(executor, images.layer_paths(image), paths, place)
    finally:
        os.close(place)
    pairs = [(str(directory / str(number)), target) for number, target in enumerate(targets)]
    return volume_mounts(pairs, config.mounts, idmap=idmap)


async def _copy(executor: Executor, layers: Sequence[str], paths: Sequence[str], place: int) -> list[str]:
    """Where the image has the paths, once their content is below the directory `place`."""
    request = {"lowers": [os.fsencode(layer) for layer in layers], "paths": [os.fsencode(path) for path in paths]}
    reply = await executor.run_role(COPY_ROLE, request, [place], timeout_s=_COPY_S)
    if "error" in reply:
        raise _failure(reply, "config.image")
    targets = reply["targets"]
    assert isinstance(targets, list)
    return [os.fsdecode(target) for target in targets]


def _failure(reply: Mapping[str, object], where: str) -> CrishimError:
    """The error that a role replied with."""
    kind = getattr(errors, str(reply.get("kind")), Unavailable)
    error = kind if isinstance(kind, type) and issubclass(kind, CrishimError) else Unavailable
    return error(f"{where}: {reply['error']}")
