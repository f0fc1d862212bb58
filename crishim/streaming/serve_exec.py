"""One exec or attach session: moves bytes between a client's channels and the stdio of a process."""

from __future__ import annotations

import asyncio

from crishim.errors import CrishimError
from crishim.model.session import AttachRequest, Ending, ExecRequest, Failed
from crishim.runtime.sessions.stdio import Stdio
from crishim.streaming.channels import Channel, Resized
from crishim.streaming.exec_channels import ExecChannels, Input, InputEnded, Left, Ready, SessionEvent
from crishim.streaming.link import Link
from crishim.streaming.spool import Spool, SpoolFiles
from crishim.streaming.use_cases import Session, UseCases

#: how long a client may take to close when it was told the end, and to read more of what an ended process left
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
        linger_s: float = LINGER_S,
        files: SpoolFiles | None = None,
    ) -> None:
        """stopping: the server is; creation_s: how long the client may take to open its streams.

        files: where input goes that the process is behind with, see `Spool`.
        """
        self._link = link
        self._channels = channels
        self._use_cases = use_cases
        self._request = request
        self._stopping = stopping
        self._creation_s = creation_s
        self._linger_s = linger_s
        self._input = Spool(files=files)
        #: why the input cannot be kept any more; what comes after that is dropped
        self._unkept: Failed | None = None
        self._input_lost = asyncio.Event()
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
                    await asyncio.wait((client,), timeout=self._linger_s)
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
                self._keep(event.data)
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

    def _keep(self, data: bytes) -> None:
        """The spool stays open when it fails: its end would look to the process like that of the input."""
        if self._unkept is not None:
            return
        try:
            self._input.put(data)
        except OSError as error:
            self._unkept = Failed(f"the input cannot be kept: {(error.strerror or str(error)).lower()}")
            self._input_lost.set()

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
        await self._link.flush(self._linger_s)
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
            endings = (
                group.create_task(self._show(session)),
                group.create_task(self._give_up(session)),
                group.create_task(self._lose_input()),
                group.create_task(self._stop()),
            )
            done, _ = await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
            for task in (feeding, *endings):
                task.cancel()
        return next(task.result() for task in endings if task in done)

    async def _stop(self) -> Ending:
        await self._stopping.wait()
        return Failed("the server is stopping")

    async def _lose_input(self) -> Ending:
        await self._input_lost.wait()
        return self._unkept or Failed("the input cannot be kept")

    async def _give_up(self, session: Session) -> Ending:
        """After the process, cut a client that does not read the rest; one that is slow gets it all."""
        await session.wait_ended()
        await self._link.wait_stuck(self._linger_s)
        self._link.abort()
        return await session.wait()

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
