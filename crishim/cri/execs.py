"""RuntimeService, further processes and streaming sessions (api.proto)."""

from __future__ import annotations

from typing import Any

from crishim.cri.convert import checks
from crishim.cri.pb import api_pb2 as pb
from crishim.cri.use_cases import Execs, Streaming


class ExecMethods:
    """ExecSync."""

    def __init__(self, execs: Execs) -> None:
        self._execs = execs

    async def ExecSync(self, request: pb.ExecSyncRequest, _: Any) -> pb.ExecSyncResponse:
        container_id = checks.identifier("container_id", request.container_id)
        result = await self._execs.exec_sync(
            container_id, checks.arguments("cmd", request.cmd), checks.seconds("timeout", request.timeout)
        )
        return pb.ExecSyncResponse(stdout=result.stdout, stderr=result.stderr, exit_code=result.code)


class StreamingMethods:
    """Exec, Attach and PortForward, which answer with the URL of a session."""

    def __init__(self, streaming: Streaming) -> None:
        self._streaming = streaming

    async def Exec(self, request: pb.ExecRequest, _: Any) -> pb.ExecResponse:
        container_id = checks.identifier("container_id", request.container_id)
        command = checks.arguments("cmd", request.cmd)
        return pb.ExecResponse(url=await self._streaming.exec(container_id, command, **_streams(request)))

    async def Attach(self, request: pb.AttachRequest, _: Any) -> pb.AttachResponse:
        container_id = checks.identifier("container_id", request.container_id)
        return pb.AttachResponse(url=await self._streaming.attach(container_id, **_streams(request)))

    async def PortForward(self, request: pb.PortForwardRequest, _: Any) -> pb.PortForwardResponse:
        sandbox_id = checks.identifier("pod_sandbox_id", request.pod_sandbox_id)
        ports = tuple(checks.within("port", port, 1, checks.MAX_PORT) for port in request.port)
        return pb.PortForwardResponse(url=await self._streaming.port_forward(sandbox_id, ports))


def _streams(request: pb.ExecRequest | pb.AttachRequest) -> dict[str, bool]:
    return {"tty": request.tty, "stdin": request.stdin, "stdout": request.stdout, "stderr": request.stderr}
