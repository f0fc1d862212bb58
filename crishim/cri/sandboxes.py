"""RuntimeService, pods (api.proto): one call of a use case each."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from crishim.cri.chunks import chunks
from crishim.cri.convert import checks, container, resources, sandbox
from crishim.cri.listing import Listing
from crishim.cri.pb import api_pb2 as pb
from crishim.cri.use_cases import Sandboxes


class SandboxMethods:
    """Methods of RuntimeService about pods."""

    def __init__(self, sandboxes: Sandboxes, listing: Listing) -> None:
        self._sandboxes = sandboxes
        self._listing = listing

    async def RunPodSandbox(self, request: pb.RunPodSandboxRequest, _: Any) -> pb.RunPodSandboxResponse:
        config = sandbox.from_proto(request.config, request.runtime_handler)
        return pb.RunPodSandboxResponse(pod_sandbox_id=await self._sandboxes.run(config))

    async def StopPodSandbox(self, request: pb.StopPodSandboxRequest, _: Any) -> pb.StopPodSandboxResponse:
        await self._sandboxes.stop(checks.identifier("pod_sandbox_id", request.pod_sandbox_id))
        return pb.StopPodSandboxResponse()

    async def RemovePodSandbox(self, request: pb.RemovePodSandboxRequest, _: Any) -> pb.RemovePodSandboxResponse:
        await self._sandboxes.remove(checks.identifier("pod_sandbox_id", request.pod_sandbox_id))
        return pb.RemovePodSandboxResponse()

    async def PodSandboxStatus(self, request: pb.PodSandboxStatusRequest, _: Any) -> pb.PodSandboxStatusResponse:
        found = await self._sandboxes.get(checks.identifier("pod_sandbox_id", request.pod_sandbox_id))
        members = self._listing.members(found.id)
        return pb.PodSandboxStatusResponse(
            status=sandbox.to_status(found),
            info=sandbox.to_info(found) if request.verbose else {},
            containers_statuses=[container.to_status(member) for member in members],
            timestamp=time.time_ns(),
        )

    async def ListPodSandbox(self, request: pb.ListPodSandboxRequest, _: Any) -> bytes:
        return self._listing.sandboxes(request.filter)

    async def StreamPodSandboxes(self, request: pb.StreamPodSandboxesRequest, _: Any) -> AsyncIterator[bytes]:
        for chunk in chunks(self._listing.sandbox_entries(request.filter)):
            yield chunk

    async def UpdatePodSandboxResources(
        self, request: pb.UpdatePodSandboxResourcesRequest, _: Any
    ) -> pb.UpdatePodSandboxResourcesResponse:
        await self._sandboxes.update_resources(
            checks.identifier("pod_sandbox_id", request.pod_sandbox_id),
            resources.from_proto("overhead", request.overhead) if request.HasField("overhead") else None,
            resources.from_proto("resources", request.resources) if request.HasField("resources") else None,
        )
        return pb.UpdatePodSandboxResourcesResponse()
