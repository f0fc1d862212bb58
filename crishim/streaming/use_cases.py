"""What the streaming server calls: `Sessions` of `runtime.sessions`, or a fake of it in tests. Errors: `errors`."""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

from crishim.model.session import AttachRequest, Ending, ExecRequest, SessionRequest
from crishim.runtime.sessions.stdio import Stdio


class Session(Protocol):
    """A client's view of a process."""

    @property
    def stdio(self) -> Stdio:
        """Its stdio; read to its end before `wait`."""
        ...

    async def wait(self) -> Ending:
        """How it ended."""
        ...

    async def wait_ended(self) -> None:
        """Return when the process has ended, whether its output was read or not."""
        ...

    def close(self) -> None:
        """The client is gone, or was told the end. Nobody may be waiting for the stdio."""
        ...


class UseCases(Protocol):
    """Sessions by token."""

    def listening_at(self, base_url: str | None) -> None:
        """Where clients reach the server; None when they do not."""
        ...

    def take(self, token: str) -> SessionRequest | None:
        """The request of a token, which is used up by this; None when it is unknown, used or too old."""
        ...

    async def open_exec(self, request: ExecRequest) -> Session:
        """Start the process."""
        ...

    async def open_attach(self, request: AttachRequest) -> Session:
        """Look at a running container."""
        ...

    async def dial(self, sandbox_id: str, port: int) -> socket.socket:
        """A non-blocking connection to a port inside the pod; the caller owns it."""
        ...

    def watch_sandbox(self, sandbox_id: str) -> asyncio.Event:
        """An event that is set when the sandbox is not READY any more; to be given back by `unwatch_sandbox`."""
        ...

    def unwatch_sandbox(self, sandbox_id: str, event: asyncio.Event) -> None:
        """Let go of an event."""
        ...
