"""RuntimeService, usage of containers and pods, and CRI's metrics (api.proto)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from crishim.cri.chunks import chunks
from crishim.cri.convert import checks, metrics
from crishim.cri.listing import Listing, entry
from crishim.cri.pb import api_pb2 as pb
from crishim.cri.use_cases import Stats


class StatsMethods:
    """Methods of RuntimeService about the usage of containers and pods."""

    def __init__(self, stats: Stats, listing: Listing) -> None:
        self._stats = stats
        self._listing = listing

    async def ContainerStats(self, request: pb.ContainerStatsRequest, _: Any) -> bytes:
        # ContainerStatsResponse.stats has the number 1 too, so the answer is a list of one
        sample = await self._stats.container(checks.identifier("container_id", request.container_id))
        return b"".join(self._listing.container_stats([sample]))

    async def ListContainerStats(self, request: pb.ListContainerStatsRequest, _: Any) -> bytes:
        return b"".join(await self._containers(request.filter))

    async def StreamContainerStats(self, request: pb.StreamContainerStatsRequest, _: Any) -> AsyncIterator[bytes]:
        for chunk in chunks(await self._containers(request.filter)):
            yield chunk

    async def _containers(self, wanted: pb.ContainerStatsFilter) -> list[bytes]:
        return self._listing.container_stats(await self._stats.list(self._listing.running(wanted)))

    async def PodSandboxStats(self, request: pb.PodSandboxStatsRequest, _: Any) -> bytes:
        sample = await self._stats.sandbox(checks.identifier("pod_sandbox_id", request.pod_sandbox_id))
        return b"".join(self._listing.sandbox_stats([sample]))

    async def ListPodSandboxStats(self, request: pb.ListPodSandboxStatsRequest, _: Any) -> bytes:
        return b"".join(await self._sandboxes(request.filter))

    async def StreamPodSandboxStats(self, request: pb.StreamPodSandboxStatsRequest, _: Any) -> AsyncIterator[bytes]:
        for chunk in chunks(await self._sandboxes(request.filter)):
            yield chunk

    async def _sandboxes(self, wanted: pb.PodSandboxStatsFilter) -> list[bytes]:
        return self._listing.sandbox_stats(await self._stats.list_sandboxes(self._listing.ready(wanted)))

    async def ListMetricDescriptors(
        self, _request: pb.ListMetricDescriptorsRequest, _: Any
    ) -> pb.ListMetricDescriptorsResponse:
        return pb.ListMetricDescriptorsResponse(
            descriptors=[metrics.descriptor_to_proto(each) for each in self._stats.metric_descriptors()]
        )

    async def ListPodSandboxMetrics(self, _request: pb.ListPodSandboxMetricsRequest, _: Any) -> bytes:
        return b"".join(await self._metrics())

    async def StreamPodSandboxMetrics(
        self, _request: pb.StreamPodSandboxMetricsRequest, _: Any
    ) -> AsyncIterator[bytes]:
        for chunk in chunks(await self._metrics()):
            yield chunk

    async def _metrics(self) -> list[bytes]:
        return [entry(metrics.sandbox_to_proto(each)) for each in await self._stats.list_metrics()]
