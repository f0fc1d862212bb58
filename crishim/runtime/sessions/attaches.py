"""Attach: a client looks at a container that runs, through its monitor, and leaves no trace.

The session ends with the container.
"""

from __future__ import annotations

import asyncio

from crishim.model.session import AttachRequest, Ending, Exited, Failed
from crishim.runtime.answers import answered
from crishim.runtime.live import Live, LiveContainer
from crishim.runtime.sessions.session import Session
from crishim.runtime.sessions.stdio import Attached

#: the monitor closes its side of an attach a little before the exit is recorded
_EXIT_GRACE_S = 2.0


async def open_attach(live: Live, request: AttachRequest) -> Session:
    """A session of a running container. WrongState or Unavailable say why not."""
    container = live.running(request.container_id)
    fd = await answered(container.sandbox_id, live.monitor(container.sandbox_id).attach(container.id))
    stdio = Attached(fd, stdout=request.stdout, stderr=request.stderr)
    return Session(stdio, lambda: _ending(container), container.exited.wait, lambda: None)


async def _ending(container: LiveContainer) -> Ending:
    """The monitor closed its side: the container has ended, or this client did not read for too long."""
    try:
        async with asyncio.timeout(_EXIT_GRACE_S):
            await container.exited.wait()
    except TimeoutError:
        return Failed("detached: the output was not read in time; the container goes on")
    return Exited(0)
