"""RuntimeService, the runtime as a whole (api.proto)."""

from __future__ import annotations

from typing import Any, Final

from crishim.cri.convert import checks, node
from crishim.cri.pb import api_pb2 as pb
from crishim.cri.use_cases import Node

#: the version of the kubelet's own interface, which never left this value
_KUBELET_API_VERSION: Final = "0.1.0"


class NodeMethods:
    """Methods of RuntimeService about the node."""

    def __init__(self, node: Node, version: str) -> None:
        self._node = node
        self._version = version

    async def Version(self, request: pb.VersionRequest, _: Any) -> pb.VersionResponse:
        return pb.VersionResponse(
            version=_KUBELET_API_VERSION,
            runtime_name="crishim",
            runtime_version=self._version,
            runtime_api_version="v1",
        )

    async def Status(self, request: pb.StatusRequest, _: Any) -> pb.StatusResponse:
        return node.status_to_proto(await self._node.status(request.verbose))

    async def RuntimeConfig(self, request: pb.RuntimeConfigRequest, _: Any) -> pb.RuntimeConfigResponse:
        return node.driver_to_proto(await self._node.cgroup_driver())

    async def UpdateRuntimeConfig(
        self, request: pb.UpdateRuntimeConfigRequest, _: Any
    ) -> pb.UpdateRuntimeConfigResponse:
        pod_cidr = request.runtime_config.network_config.pod_cidr
        await self._node.update_pod_cidr(checks.line("runtime_config.network_config.pod_cidr", pod_cidr))
        return pb.UpdateRuntimeConfigResponse()
