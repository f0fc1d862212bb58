"""Port-forward: connections to ports of a pod's loopback, made in its network namespace, and the end of the pod."""

from __future__ import annotations

import asyncio
import os
import socket

from crishim.errors import CrishimError, StartFailed, Unavailable, WrongState
from crishim.model.container import Container
from crishim.model.sandbox import NamespaceMode, Sandbox, SandboxState
from crishim.runtime.answers import answered
from crishim.runtime.live import Live
from crishim.store.store import Kind, Store

_LOOPBACKS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
_DIAL_S = 30.0


class Forwards:
    """What port-forwards need of the pods."""

    def __init__(self, store: Store, live: Live) -> None:
        self._store = store
        self._live = live
        #: by sandbox id, what is to be set at its end
        self._watched: dict[str, set[asyncio.Event]] = {}
        store.subscribe(self._changed)

    def ready(self, sandbox_id: str) -> Sandbox:
        """The sandbox of that id or of an unambiguous beginning of it; NotFound, or WrongState when it is not READY."""
        sandbox = self._store.resolve_sandbox(sandbox_id)
        if sandbox.state is not SandboxState.READY:
            raise WrongState(f"sandbox {sandbox.id} is {sandbox.state.name}, not READY")
        return sandbox

    async def dial(self, sandbox_id: str, port: int) -> socket.socket:
        """A connection to a port of the pod's loopback: 127.0.0.1, then ::1. The caller owns it, non-blocking.

        Unavailable says why there is none; WrongState when the sandbox is not READY.
        """
        sandbox = self.ready(sandbox_id)
        reasons = []
        for family, address in _LOOPBACKS:
            try:
                return await self._connect(sandbox, family, address, port)
            except TimeoutError:
                reasons.append(f"{address} does not answer")
            except OSError as error:
                reasons.append(f"{address}: {os.strerror(error.errno or 0).lower()}")
            except StartFailed as error:
                reasons.append(f"{address}: {error}")
        raise Unavailable(f"no connection to port {port} in sandbox {sandbox.id}: {'; '.join(reasons)}")

    async def _connect(self, sandbox: Sandbox, family: int, address: str, port: int) -> socket.socket:
        if sandbox.config.security.namespaces.network is NamespaceMode.NODE:
            sock = socket.socket(family, socket.SOCK_STREAM)
        else:
            monitor = self._live.monitor(sandbox.id)
            sock = socket.socket(fileno=await answered(sandbox.id, monitor.open_socket(family, socket.SOCK_STREAM, 0)))
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(_DIAL_S):
                await asyncio.get_running_loop().sock_connect(sock, (address, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def watch_sandbox(self, sandbox_id: str) -> asyncio.Event:
        """An event that is set when the sandbox is not READY any more; to be given back by `unwatch_sandbox`."""
        event = asyncio.Event()
        self._watched.setdefault(sandbox_id, set()).add(event)
        try:
            self.ready(sandbox_id)
        except CrishimError:
            event.set()
        return event

    def unwatch_sandbox(self, sandbox_id: str, event: asyncio.Event) -> None:
        """Let go of an event."""
        events = self._watched.get(sandbox_id, set())
        events.discard(event)
        if not events:
            self._watched.pop(sandbox_id, None)

    def _changed(self, kind: Kind, old: Sandbox | Container | None, new: Sandbox | Container | None) -> None:
        if kind is Kind.SANDBOX and old is not None:
            sandbox_ended = not isinstance(new, Sandbox) or new.state is not SandboxState.READY
            for event in self._watched.get(old.id, ()) if sandbox_ended else ():
                event.set()
