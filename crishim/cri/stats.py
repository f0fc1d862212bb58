"""RuntimeService, usage of containers (api.proto)."""

from __future__ import annotations

from typing import Any

from crishim.cri.convert import checks
from crishim.cri.listing import Listing
from crishim.cri.pb import api_pb2 as pb
from crishim.cri.use_cases import Stats


class StatsMethods:
    """Methods of RuntimeService about the usage of containers."""

    def __init__(self, stats: Stats, listing: Listing) -> None:
        self._stats = stats
        self._listing = listing

    async def ContainerStats(self, request: pb.ContainerStatsRequest, _: Any) -> bytes:
        # ContainerStatsResponse.stats has the number 1 too, so the answer is a list of one
        sample = await self._stats.container(checks.identifier("container_id", request.container_id))
        return self._listing.container_stats([sample])

    async def ListContainerStats(self, request: pb.ListContainerStatsRequest, _: Any) -> bytes:
        samples = await self._stats.list(self._listing.running(request.filter))
        return self._listing.container_stats(samples)
