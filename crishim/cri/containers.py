"""RuntimeService, containers (api.proto): one call of a use case each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from crishim.cri.chunks import chunks
from crishim.cri.convert import checks, container, resources, sandbox
from crishim.cri.listing import Listing
from crishim.cri.pb import api_pb2 as pb
from crishim.cri.use_cases import Containers


class ContainerMethods:
    """Methods of RuntimeService about containers."""

    def __init__(self, containers: Containers, listing: Listing) -> None:
        self._containers = containers
        self._listing = listing

    async def CreateContainer(self, request: pb.CreateContainerRequest, _: Any) -> pb.CreateContainerResponse:
        sandbox_id = checks.identifier("pod_sandbox_id", request.pod_sandbox_id)
        config = container.from_proto(request.config)
        sandbox_config = sandbox.from_proto(request.sandbox_config, path="sandbox_config")
        return pb.CreateContainerResponse(
            container_id=await self._containers.create(sandbox_id, config, sandbox_config)
        )

    async def StartContainer(self, request: pb.StartContainerRequest, _: Any) -> pb.StartContainerResponse:
        await self._containers.start(checks.identifier("container_id", request.container_id))
        return pb.StartContainerResponse()

    async def StopContainer(self, request: pb.StopContainerRequest, _: Any) -> pb.StopContainerResponse:
        container_id = checks.identifier("container_id", request.container_id)
        await self._containers.stop(container_id, checks.seconds("timeout", request.timeout))
        return pb.StopContainerResponse()

    async def RemoveContainer(self, request: pb.RemoveContainerRequest, _: Any) -> pb.RemoveContainerResponse:
        await self._containers.remove(checks.identifier("container_id", request.container_id))
        return pb.RemoveContainerResponse()

    async def ContainerStatus(self, request: pb.ContainerStatusRequest, _: Any) -> pb.ContainerStatusResponse:
        found = await self._containers.get(checks.identifier("container_id", request.container_id))
        info = container.to_info(found) if request.verbose else {}
        return pb.ContainerStatusResponse(status=container.to_status(found), info=info)

    async def ListContainers(self, request: pb.ListContainersRequest, _: Any) -> bytes:
        return self._listing.containers(request.filter)

    async def StreamContainers(self, request: pb.StreamContainersRequest, _: Any) -> AsyncIterator[bytes]:
        for chunk in chunks(self._listing.container_entries(request.filter)):
            yield chunk

    async def ReopenContainerLog(self, request: pb.ReopenContainerLogRequest, _: Any) -> pb.ReopenContainerLogResponse:
        await self._containers.reopen_log(checks.identifier("container_id", request.container_id))
        return pb.ReopenContainerLogResponse()

    async def UpdateContainerResources(
        self, request: pb.UpdateContainerResourcesRequest, _: Any
    ) -> pb.UpdateContainerResourcesResponse:
        await self._containers.update_resources(
            checks.identifier("container_id", request.container_id),
            resources.from_proto("linux", request.linux),
            checks.annotation_map("annotations", request.annotations),
        )
        return pb.UpdateContainerResourcesResponse()
