"""ImageService (api.proto): one call of a use case each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from crishim.cri.chunks import chunks
from crishim.cri.convert import image, sandbox
from crishim.cri.listing import Listing
from crishim.cri.pb import api_pb2 as pb
from crishim.cri.use_cases import Images


class ImageMethods:
    """Methods of ImageService."""

    def __init__(self, images: Images, listing: Listing) -> None:
        self._images = images
        self._listing = listing

    async def ListImages(self, request: pb.ListImagesRequest, _: Any) -> bytes:
        return b"".join(await self._matching(request.filter))

    async def StreamImages(self, request: pb.StreamImagesRequest, _: Any) -> AsyncIterator[bytes]:
        for chunk in chunks(await self._matching(request.filter)):
            yield chunk

    async def _matching(self, wanted: pb.ImageFilter) -> list[bytes]:
        if not wanted.image.image:
            return self._listing.image_entries()
        found = await self._images.status(image.reference_from_proto(wanted.image, "filter.image"))
        return self._listing.image_entries(found.id) if found else []

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
