"""The URLs of exec, attach and port-forward, and what the streaming server is given for each of them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

from crishim.errors import InvalidSpec, Unavailable
from crishim.model.session import AttachRequest, ExecRequest, PortForwardRequest, SessionRequest
from crishim.runtime.executor import Executor
from crishim.runtime.helper import Helper
from crishim.runtime.live import Live, LiveContainer
from crishim.runtime.observer import Observer
from crishim.runtime.operations import Operations
from crishim.runtime.sessions.attaches import open_attach
from crishim.runtime.sessions.execs import HANG_UP_S, ExecSessions
from crishim.runtime.sessions.forwards import Forwards
from crishim.runtime.sessions.session import Session
from crishim.runtime.sessions.tokens import Tokens
from crishim.store.store import Store

_PATHS: dict[type[SessionRequest], str] = {
    ExecRequest: "exec",
    AttachRequest: "attach",
    PortForwardRequest: "portforward",
}


class Sessions:
    """The use cases of `cri.use_cases.Streaming` and of the streaming server."""

    def __init__(
        self,
        store: Store,
        live: Live,
        executor: Executor,
        operations: Operations,
        helper: Helper,
        observer: Observer,
        *,
        clock: Callable[[], float] = time.monotonic,
        hang_up_s: float = HANG_UP_S,
    ) -> None:
        """clock: seconds, for the life of tokens; hang_up_s: between SIGHUP to what a client leaves, and SIGKILL."""
        self._store = store
        self._live = live
        self._execs = ExecSessions(store, executor, operations, helper, observer, hang_up_s)
        self._forwards = Forwards(store, live)
        self._tokens = Tokens(clock=clock)
        self._base_url: str | None = None

    # -- for CRI

    async def exec(
        self, container_id: str, args: tuple[str, ...], *, tty: bool, stdin: bool, stdout: bool, stderr: bool
    ) -> str:
        """URL of the session; WrongState when the container does not run, InvalidSpec for streams that cannot be."""
        if not args or not args[0]:
            raise InvalidSpec("cmd is empty")
        _check_streams(tty, stdin, stdout, stderr)
        return self._url(ExecRequest(self._running(container_id).id, args, tty, stdin, stdout, stderr))

    async def attach(self, container_id: str, *, tty: bool, stdin: bool, stdout: bool, stderr: bool) -> str:
        """URL of the session; WrongState when the container does not run, InvalidSpec for streams that cannot be."""
        _check_streams(tty, stdin, stdout, stderr)
        return self._url(AttachRequest(self._running(container_id).id, tty, stdin, stdout, stderr))

    async def port_forward(self, sandbox_id: str, ports: tuple[int, ...]) -> str:
        """URL of the session; WrongState when the sandbox is not READY, InvalidSpec for a port that is none."""
        for port in ports:
            if not 1 <= port <= 65535:
                raise InvalidSpec(f"port: {port} is not in 1..65535")
        return self._url(PortForwardRequest(self._forwards.ready(sandbox_id).id, ports))

    def _url(self, request: SessionRequest) -> str:
        if self._base_url is None:
            raise Unavailable("the streaming server does not listen")
        return f"{self._base_url}/{_PATHS[type(request)]}/{self._tokens.mint(request)}"

    def _running(self, container_id: str) -> LiveContainer:
        return self._live.running(self._store.resolve_container(container_id).id)

    # -- for the streaming server

    def listening_at(self, base_url: str | None) -> None:
        """Where clients reach the server ("http://127.0.0.1:34567"); None when they do not."""
        self._base_url = base_url

    def take(self, token: str) -> SessionRequest | None:
        """The request of a token, which is used up by this; None when it is unknown, used or too old."""
        return self._tokens.take(token)

    async def open_exec(self, request: ExecRequest) -> Session:
        """Start the process. StartFailed, WrongState, Exhausted or Unavailable say why not."""
        return await self._execs.open(self._live.running(request.container_id), request)

    async def open_attach(self, request: AttachRequest) -> Session:
        """Look at a running container. WrongState or Unavailable say why not."""
        return await open_attach(self._live, request)

    async def dial(self, sandbox_id: str, port: int) -> socket.socket:
        """A non-blocking connection to a port of the pod's loopback; the caller owns it. Errors of `Forwards.dial`."""
        return await self._forwards.dial(sandbox_id, port)

    def watch_sandbox(self, sandbox_id: str) -> asyncio.Event:
        """An event that is set when the sandbox is not READY any more; to be given back by `unwatch_sandbox`."""
        return self._forwards.watch_sandbox(sandbox_id)

    def unwatch_sandbox(self, sandbox_id: str, event: asyncio.Event) -> None:
        """Let go of an event."""
        self._forwards.unwatch_sandbox(sandbox_id, event)


def _check_streams(tty: bool, stdin: bool, stdout: bool, stderr: bool) -> None:
    if not (stdin or stdout or stderr):
        raise InvalidSpec("stdin, stdout, stderr: at least one of them must be asked for")
    if tty and stderr:
        raise InvalidSpec("stderr: a terminal has only one output, so it must be false with tty")
