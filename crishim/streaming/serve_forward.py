"""Port-forward: moves bytes between a client's forwards and connections into a pod.

A forward that is not read waits alone: what its client goes on sending is spooled, to memory and then to disk. When
all that waits on one connection reaches its bound, the connection is not read until there is room again; a forward
that takes nothing for a while then is reset, so that the others go on.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress

from crishim.errors import CrishimError
from crishim.model.session import PortForwardRequest
from crishim.streaming.exec_channels import Left
from crishim.streaming.forward_channels import (
    ForwardEvent,
    ForwardInput,
    ForwardInputEnded,
    ForwardOpened,
    ForwardReset,
    Forwards,
)
from crishim.streaming.link import READ_BYTES, Link
from crishim.streaming.serve_exec import LINGER_S
from crishim.streaming.spool import Spool, SpoolFiles
from crishim.streaming.use_cases import UseCases

logger = logging.getLogger(__name__)

_SPOOL_MEMORY_BYTES = 256 << 10
_CROWDED_BYTES = 1 << 20
#: of all forwards of one connection
WAITING_BYTES = 64 << 20
STUCK_S = 30.0
#: how long a forward whose pod has ended waits for more of its client
_HALF_OPEN_S = 60.0


class ForwardService:
    """Serves one client; `run` returns when it left, the sandbox or the server ends."""

    def __init__(
        self,
        link: Link,
        forwards: Forwards,
        use_cases: UseCases,
        request: PortForwardRequest,
        *,
        stopping: asyncio.Event,
        creation_s: float,
        stuck_s: float,
        waiting_bytes: int,
        half_open_s: float = _HALF_OPEN_S,
        files: SpoolFiles | None = None,
    ) -> None:
        """creation_s: how long the client may take to open the second stream of a forward.

        files: where input goes that the pod is behind with, see `Spool`.
        """
        self._link = link
        self._forwards = forwards
        self._use_cases = use_cases
        self._request = request
        self._stopping = stopping
        self._creation_s = creation_s
        self._stuck_s = stuck_s
        self._waiting_bytes = waiting_bytes
        self._half_open_s = half_open_s
        self._files = files or SpoolFiles()
        self._inputs: dict[int, Spool] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._taken = asyncio.Event()
        self._over = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Until it is over for whatever reason; every connection into the pod is closed then."""
        ended = self._use_cases.watch_sandbox(self._request.sandbox_id)
        try:
            async with asyncio.TaskGroup() as group:
                self._take(self._forwards.start(), group)
                self._flush()
                client = group.create_task(self._receive(group))
                ends = [group.create_task(event.wait()) for event in (ended, self._stopping, self._over)]
                expiry = group.create_task(self._expire())
                await asyncio.wait((client, *ends), return_when=asyncio.FIRST_COMPLETED)
                for task in (*self._tasks.values(), *ends, expiry):
                    task.cancel()
                if not client.done():
                    self._forwards.finish()
                    self._flush()
                    await asyncio.wait((client,), timeout=LINGER_S)
                    client.cancel()
        finally:
            self._use_cases.unwatch_sandbox(self._request.sandbox_id, ended)

    async def _receive(self, group: asyncio.TaskGroup) -> None:
        while data := await self._link.read():
            goes_on = self._take(self._forwards.receive(data, self._loop.time()), group)
            self._flush()
            if not goes_on:
                return
            await self._make_room()

    def _take(self, events: list[ForwardEvent], group: asyncio.TaskGroup) -> bool:
        """False when the client left."""
        for event in events:
            if isinstance(event, Left):
                return False
            if isinstance(event, ForwardOpened):
                self._begin(event, group)
            elif isinstance(event, ForwardReset):
                if event.forward in self._tasks:
                    self._tasks[event.forward].cancel()
            elif event.forward in self._inputs:
                spool = self._inputs[event.forward]
                if isinstance(event, ForwardInput):
                    self._keep(event.forward, event.data)
                elif isinstance(event, ForwardInputEnded):
                    spool.end()
        return True

    def _keep(self, forward: int, data: bytes) -> None:
        try:
            self._inputs[forward].put(data)
        except OSError as error:
            logger.warning("a port-forward into sandbox %s is reset: %s", self._request.sandbox_id, error)
            self._reset(forward)

    def _reset(self, forward: int) -> None:
        """End it at both ends; what waits is dropped."""
        self._forwards.reset(forward)
        self._flush()
        self._inputs[forward].close()
        self._tasks[forward].cancel()

    def _begin(self, event: ForwardOpened, group: asyncio.TaskGroup) -> None:
        self._inputs[event.forward] = Spool(
            memory_bytes=_SPOOL_MEMORY_BYTES, files=self._files, on_take=self._taken.set
        )
        task = group.create_task(self._forward(event.forward, event.port))
        self._tasks[event.forward] = task
        task.add_done_callback(lambda _: self._end(event.forward))

    def _end(self, forward: int) -> None:
        self._inputs.pop(forward).close()
        del self._tasks[forward]
        self._taken.set()

    async def _make_room(self) -> None:
        """Return when less waits than may; see above for what happens to who is stuck."""
        while any(spool.is_spilled for spool in self._inputs.values()) and self._waiting() >= self._bound_bytes():
            before = {forward: spool.taken_bytes for forward, spool in self._inputs.items()}
            with suppress(TimeoutError):
                async with asyncio.timeout(self._stuck_s):
                    while self._waiting() >= self._bound_bytes():
                        self._taken.clear()
                        await self._taken.wait()
                    return
            self._reset_stuck(before)

    def _bound_bytes(self) -> int:
        """What may wait; less while clients of others have filled the files of the server."""
        return min(self._waiting_bytes, _CROWDED_BYTES) if self._files.is_full else self._waiting_bytes

    def _waiting(self) -> int:
        return sum(spool.size for spool in self._inputs.values())

    def _reset_stuck(self, before: dict[int, int]) -> None:
        """Reset the forward with the most bytes among those that took nothing since."""
        stuck = [
            (spool.size, forward)
            for forward, spool in self._inputs.items()
            if spool.taken_bytes == before.get(forward) and spool.size
        ]
        if stuck:
            _, forward = max(stuck)
            self._reset(forward)

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(self._creation_s / 2)
            self._forwards.expire(self._loop.time() - self._creation_s)
            self._flush()

    # -- one forward

    async def _forward(self, forward: int, port: int) -> None:
        try:
            sock = await self._use_cases.dial(self._request.sandbox_id, port)
        except CrishimError as error:
            self._forwards.fail(forward, str(error))
            self._flush()
            return
        with sock:
            spool = self._inputs[forward]
            async with asyncio.TaskGroup() as group:
                feeding = group.create_task(self._feed(sock, spool))
                is_whole = await self._show(forward, sock)
                if not is_whole:
                    self._forwards.reset(forward)
                else:
                    self._forwards.end(forward)
                self._flush()
                if is_whole and not await self._await_client(feeding, spool):
                    self._forwards.reset(forward)
                    self._flush()
                feeding.cancel()

    async def _show(self, forward: int, sock: socket.socket) -> bool:
        """From the pod to the client; False when the pod cut the connection instead of ending it."""
        while True:
            try:
                data = await self._loop.sock_recv(sock, READ_BYTES)
            except OSError:
                return False
            if not data:
                return True
            self._forwards.send(forward, data)
            self._flush()
            await self._link.drain()
            await asyncio.sleep(0)  # neither end may have made us wait

    async def _feed(self, sock: socket.socket, spool: Spool) -> None:
        """From the client to the pod."""
        with suppress(OSError):  # the pod closed: what comes is dropped
            while (data := await spool.get()) is not None:
                await self._loop.sock_sendall(sock, data)
                await asyncio.sleep(0)
            sock.shutdown(socket.SHUT_WR)
            return
        spool.close()

    async def _await_client(self, feeding: asyncio.Task[None], spool: Spool) -> bool:
        """After the pod's end, wait for the client's; False when it went quiet."""
        while True:
            taken = spool.taken_bytes
            await asyncio.wait((feeding,), timeout=self._half_open_s)
            if feeding.done():
                return True
            if spool.taken_bytes == taken:
                return False

    def _flush(self) -> None:
        self._link.send(self._forwards.take_output())
        if self._forwards.closed:
            self._over.set()
