"""One exec or attach session: moves bytes between a client's channels and the stdio of a process."""

from __future__ import annotations

import asyncio

from crishim.errors import CrishimError
from crishim.model.session import AttachRequest, Ending, ExecRequest, Failed
from crishim.runtime.stdio import Stdio
from crishim.streaming.channels import Channel, Resized
from crishim.streaming.exec_channels import ExecChannels, Input, InputEnded, Left, Ready, SessionEvent
from crishim.streaming.link import Link
from crishim.streaming.spool import Spool
from crishim.streaming.use_cases import Session, UseCases

#: how long a client that was told the end may take to close
LINGER_S = 5.0


class ExecService:
    """Serves one client; `run` returns when it is over for whatever reason, and the process is let go of then."""

    def __init__(
        self,
        link: Link,
        channels: ExecChannels,
        use_cases: UseCases,
        request: ExecRequest | AttachRequest,
        *,
        stopping: asyncio.Event,
        creation_s: float,
    ) -> None:
        """stopping: the server is; creation_s: how long the client may take to open its streams."""
        self._link = link
        self._channels = channels
        self._use_cases = use_cases
        self._request = request
        self._stopping = stopping
        self._creation_s = creation_s
        self._input = Spool()
        self._ready = asyncio.Event()
        self._stdio: Stdio | None = None
        self._size: Resized | None = None

    async def run(self) -> None:
        """Until the client left, or was told how it ended."""
        self._take(self._channels.start())
        self._flush()
        try:
            async with asyncio.TaskGroup() as group:
                client = group.create_task(self._receive())
                session = group.create_task(self._serve())
                await asyncio.wait((client, session), return_when=asyncio.FIRST_COMPLETED)
                if session.done() and not session.cancelled() and session.exception() is None and session.result():
                    await asyncio.wait((client,), timeout=LINGER_S)
                client.cancel()
                session.cancel()
        finally:
            self._input.close()

    async def _receive(self) -> None:
        """From the client, until it leaves. Pings are answered here, so this waits for stdin only when it must."""
        while data := await self._link.read():
            goes_on = self._take(self._channels.receive(data))
            self._flush()
            if not goes_on:
                return
            await self._input.wait_room()

    def _take(self, events: list[SessionEvent]) -> bool:
        """False when the client left."""
        for event in events:
            if isinstance(event, Input):
                self._input.put(event.data)
            elif isinstance(event, InputEnded):
                self._input.end()
            elif isinstance(event, Resized):
                self._size = event
                if self._stdio is not None:
                    self._stdio.resize(event.rows, event.columns)
            elif isinstance(event, Ready):
                self._ready.set()
            elif isinstance(event, Left):
                return False
        return True

    async def _serve(self) -> bool:
        """The session from its first channel to its end; False when the client did not open its channels."""
        try:
            async with asyncio.timeout(self._creation_s):
                await self._ready.wait()
        except TimeoutError:
            return False
        ending = await self._ending()
        self._input.close()
        self._channels.finish(ending)
        self._flush()
        await self._link.flush()
        return True

    async def _ending(self) -> Ending:
        try:
            session = await self._open()
        except CrishimError as error:
            return Failed(str(error))
        self._stdio = session.stdio
        try:
            if self._size is not None:
                self._stdio.resize(self._size.rows, self._size.columns)
            return await self._move(session)
        finally:
            self._stdio = None
            session.close()

    async def _open(self) -> Session:
        if isinstance(self._request, ExecRequest):
            return await self._use_cases.open_exec(self._request)
        return await self._use_cases.open_attach(self._request)

    async def _move(self, session: Session) -> Ending:
        async with asyncio.TaskGroup() as group:
            feeding = group.create_task(self._feed(session.stdio))
            stopping = group.create_task(self._stopping.wait())
            ending = group.create_task(self._show(session))
            await asyncio.wait((stopping, ending), return_when=asyncio.FIRST_COMPLETED)
            over = ending.done()
            for task in (feeding, stopping, ending):
                task.cancel()
        return ending.result() if over else Failed("the server is stopping")

    async def _show(self, session: Session) -> Ending:
        """Output to the client, no faster than it reads."""
        while (piece := await session.stdio.read()) is not None:
            stream, data = piece
            self._channels.send_output(Channel(stream), data)
            self._flush()
            await self._link.drain()
            await asyncio.sleep(0)  # neither end may have made us wait
        return await session.wait()

    async def _feed(self, stdio: Stdio) -> None:
        """Input to the process, no faster than it reads."""
        while (data := await self._input.get()) is not None:
            if not await stdio.write(data):
                self._input.close()  # nobody reads it any more, so what comes is dropped
                return
            await asyncio.sleep(0)
        await stdio.end_input()

    def _flush(self) -> None:
        self._link.send(self._channels.take_output())
