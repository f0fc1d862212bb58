"""The streaming server: takes connections, answers their upgrade, and serves each session until it ends.

It listens on loopback by default: the kubelet connects, and shows clients the way no further. A token is the only key.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import ssl
from contextlib import suppress
from pathlib import Path

import h11

from crishim.model.session import AttachRequest, ExecRequest, PortForwardRequest, SessionRequest
from crishim.streaming.channels import SPDY_WITHOUT_RESIZE, TUNNEL_PROTOCOL
from crishim.streaming.exec_channels import ExecChannels, SpdyChannels, WebSocketChannels, wanted_channels
from crishim.streaming.forward_channels import (
    MAX_WEBSOCKET_PORTS,
    Forwards,
    SpdyForwards,
    TunnelledForwards,
    WebSocketForwards,
)
from crishim.streaming.link import READ_BYTES, Link
from crishim.streaming.serve_exec import LINGER_S, ExecService
from crishim.streaming.serve_forward import STUCK_S, WAITING_BYTES, ForwardService
from crishim.streaming.spool import SpoolFiles
from crishim.streaming.upgrade import Handshake, Purpose, Refusal, Upgrade, target, upgrade
from crishim.streaming.use_cases import UseCases

logger = logging.getLogger(__name__)

IDLE_S = 4 * 3600.0
CREATION_S = 30.0
#: connections that have not been upgraded yet
_MAX_HANDSHAKES = 512
_TLS_SHUTDOWN_S = 2.0
#: such a connection is not counted yet
_TLS_HANDSHAKE_S = 10.0
_REQUESTS: dict[Purpose, type[SessionRequest]] = {
    Purpose.EXEC: ExecRequest,
    Purpose.ATTACH: AttachRequest,
    Purpose.PORT_FORWARD: PortForwardRequest,
}
_NO_SESSION = Refusal(
    404, "there is no such session: tokens are good for one use, for a minute, and until the server is restarted"
)


class StreamingServer:
    """Serves the sessions of `use_cases`."""

    def __init__(
        self,
        use_cases: UseCases,
        *,
        tls: ssl.SSLContext | None = None,
        idle_s: float = IDLE_S,
        creation_s: float = CREATION_S,
        stuck_s: float = STUCK_S,
        waiting_bytes: int = WAITING_BYTES,
        linger_s: float = LINGER_S,
        spool_dir: Path | None = None,
    ) -> None:
        """idle_s: a connection without a byte for so long is cut; creation_s: for request and streams to come.

        waiting_bytes: what the forwards of one connection may have waiting for the pod; stuck_s: how long one of them
        may take nothing when that is reached. linger_s: the same of the rest of a process that ended.
        spool_dir: where input lies that a process or a pod is behind with, in files without a name; None: where
        temporary files are.
        """
        self._use_cases = use_cases
        self._tls = tls
        self._idle_s = idle_s
        self._creation_s = creation_s
        self._stuck_s = stuck_s
        self._waiting_bytes = waiting_bytes
        self._linger_s = linger_s
        self._files = SpoolFiles(spool_dir)
        self._server: asyncio.Server | None = None
        self._stopping = asyncio.Event()
        self._links: set[Link] = set()
        #: connections whose request has not come, the oldest first
        self._shaking: dict[Link, None] = {}
        self._quiet = asyncio.Event()
        self._quiet.set()

    @property
    def sessions(self) -> int:
        """Connections that are open."""
        return len(self._links)

    async def start(self, host: str, port: int) -> str:
        """Listen, and return the base URL; OSError when the address is taken or not of this machine.

        port 0 lets the kernel choose. An unspecified host ("0.0.0.0", "::") is reached by loopback.
        """
        self._server = await asyncio.start_server(
            self._connected,
            host,
            port,
            limit=READ_BYTES,
            ssl=self._tls,
            ssl_handshake_timeout=_TLS_HANDSHAKE_S if self._tls else None,
            ssl_shutdown_timeout=_TLS_SHUTDOWN_S if self._tls else None,
        )
        bound = self._server.sockets[0].getsockname()
        base_url = f"{'https' if self._tls else 'http'}://{_reachable(bound[0])}:{bound[1]}"
        self._use_cases.listening_at(base_url)
        return base_url

    async def stop(self, grace_s: float = 2.0) -> None:
        """Tell every client that it is over and let go of what is left after `grace_s`; allowed twice."""
        server, self._server = self._server, None
        if server is None:
            return
        self._use_cases.listening_at(None)
        server.close()
        self._stopping.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._quiet.wait()
        for link in self._links:
            link.abort()
        await self._quiet.wait()
        await server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._stopping.is_set():
            writer.transport.abort()
            return
        if len(self._shaking) >= _MAX_HANDSHAKES:
            # the oldest gives way: a kubelet asks at once, and who only holds connections must not shut it out
            oldest = next(iter(self._shaking))
            del self._shaking[oldest]
            oldest.abort()
        link = Link(reader, writer, self._idle_s)
        self._links.add(link)
        self._quiet.clear()
        try:
            await self._serve(link)
        except Exception:
            logger.exception("a streaming session failed")
            link.abort()
        finally:
            await link.close()
            self._links.discard(link)
            if not self._links:
                self._quiet.set()

    async def _serve(self, link: Link) -> None:
        self._shaking[link] = None
        try:
            async with asyncio.timeout(self._creation_s):
                found = await self._shake_hands(link)
        except TimeoutError:
            return
        finally:
            self._shaking.pop(link, None)
        if found is None:
            return
        request, switch = found
        if isinstance(request, PortForwardRequest):
            forwards = _forwards(request, switch)
            service = ForwardService(
                link,
                forwards,
                self._use_cases,
                request,
                stopping=self._stopping,
                creation_s=self._creation_s,
                stuck_s=self._stuck_s,
                waiting_bytes=self._waiting_bytes,
                files=self._files,
            )
            await service.run()
        else:
            channels = _channels(request, switch)
            await ExecService(
                link,
                channels,
                self._use_cases,
                request,
                stopping=self._stopping,
                creation_s=self._creation_s,
                linger_s=self._linger_s,
                files=self._files,
            ).run()

    async def _shake_hands(self, link: Link) -> tuple[SessionRequest, Upgrade] | None:
        """The session of a request that was upgraded; None when it was refused or did not come."""
        taken: list[SessionRequest] = []

        def decide(head: h11.Request) -> Upgrade | Refusal:
            request = self._request_of(head)
            if request is None:
                return _NO_SESSION
            taken.append(request)
            return _checked(request, upgrade(_purpose(request), list(head.headers)))

        handshake = Handshake(decide)
        while handshake.decision is None:
            data = await link.read()
            answer = handshake.receive(data)
            if answer:
                link.send([answer])
            if not data:
                return None
        if isinstance(handshake.decision, Refusal):
            await link.flush(self._linger_s)
            return None
        link.unread(handshake.rest)
        return taken[0], handshake.decision

    def _request_of(self, head: h11.Request) -> SessionRequest | None:
        found = target(head.target) if head.method in (b"GET", b"POST") else None
        if found is None:
            return None
        purpose, token = found
        request = self._use_cases.take(token)
        return request if type(request) is _REQUESTS[purpose] else None


def _purpose(request: SessionRequest) -> Purpose:
    return next(purpose for purpose, kind in _REQUESTS.items() if isinstance(request, kind))


def _checked(request: SessionRequest, answer: Upgrade | Refusal) -> Upgrade | Refusal:
    """Plain WebSocket takes its ports from the request."""
    plain = isinstance(answer, Upgrade) and answer.websocket and answer.protocol != TUNNEL_PROTOCOL
    if isinstance(request, PortForwardRequest) and plain and not 1 <= len(request.ports) <= MAX_WEBSOCKET_PORTS:
        return Refusal(400, f"a WebSocket client names 1 to {MAX_WEBSOCKET_PORTS} ports, not {len(request.ports)}")
    return answer


def _channels(request: ExecRequest | AttachRequest, switch: Upgrade) -> ExecChannels:
    wanted = wanted_channels(
        tty=request.tty,
        stdin=request.stdin,
        stdout=request.stdout,
        stderr=request.stderr,
        resizes=switch.websocket or switch.protocol not in SPDY_WITHOUT_RESIZE,
    )
    kind = WebSocketChannels if switch.websocket else SpdyChannels
    return kind(wanted, switch.protocol)


def _forwards(request: PortForwardRequest, switch: Upgrade) -> Forwards:
    if not switch.websocket:
        return SpdyForwards()
    if switch.protocol == TUNNEL_PROTOCOL:
        return TunnelledForwards()
    return WebSocketForwards(request.ports, switch.protocol)


def _reachable(host: str) -> str:
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return host if address.version == 4 else f"[{host}]"
