"""ImageService (api.proto), and the small service of our own for archives (`control.proto`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crishim.cri.convert import checks, image, sandbox
from crishim.cri.listing import Listing
from crishim.cri.pb import api_pb2 as pb
from crishim.cri.pb import control_pb2
from crishim.cri.use_cases import Images


class ImageMethods:
    """Methods of ImageService."""

    def __init__(self, images: Images, listing: Listing) -> None:
        self._images = images
        self._listing = listing

    async def ListImages(self, request: pb.ListImagesRequest, _: Any) -> bytes:
        if not request.filter.image.image:
            return self._listing.images()
        found = await self._images.status(image.reference_from_proto(request.filter.image, "filter.image"))
        return self._listing.images(found.id) if found else b""

    async def ImageStatus(self, request: pb.ImageStatusRequest, _: Any) -> pb.ImageStatusResponse:
        found = await self._images.status(image.reference_from_proto(request.image))
        return pb.ImageStatusResponse(image=image.to_proto(found) if found else None)

    async def PullImage(self, request: pb.PullImageRequest, _: Any) -> pb.PullImageResponse:
        reference = image.reference_from_proto(request.image)
        credentials = image.credentials_from_proto(request.auth)
        pod = sandbox.from_proto(request.sandbox_config, path="sandbox_config") if _has_pod(request) else None
        return pb.PullImageResponse(image_ref=await self._images.pull(reference, credentials, pod))

    async def RemoveImage(self, request: pb.RemoveImageRequest, _: Any) -> pb.RemoveImageResponse:
        await self._images.remove(image.reference_from_proto(request.image))
        return pb.RemoveImageResponse()

    async def ImageFsInfo(self, request: pb.ImageFsInfoRequest, _: Any) -> pb.ImageFsInfoResponse:
        usages = await self._images.usage()
        return pb.ImageFsInfoResponse(image_filesystems=[image.filesystem_to_proto(usage) for usage in usages])


def _has_pod(request: pb.PullImageRequest) -> bool:
    """Whether the pull names a pod; clients by hand send a configuration without one."""
    return request.sandbox_config.HasField("metadata")


class ControlMethods:
    """Methods of Control."""

    def __init__(self, images: Images) -> None:
        self._images = images

    async def Load(self, request: control_pb2.LoadRequest, _: Any) -> control_pb2.LoadResponse:
        loaded = await self._images.load(Path(checks.absolute("path", request.path)))
        images = [control_pb2.LoadedImage(id=one.id, repo_tags=one.repo_tags) for one in loaded]
        return control_pb2.LoadResponse(images=images)
