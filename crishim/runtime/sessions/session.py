"""What a client of the streaming server has in hand, whether it runs a process or looks at one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from crishim.model.session import Ending
from crishim.runtime.sessions.stdio import Stdio


class Session:
    """A client's view of a process: its stdio, and how it ended."""

    def __init__(
        self,
        stdio: Stdio,
        wait: Callable[[], Awaitable[Ending]],
        wait_ended: Callable[[], Awaitable[object]],
        leave: Callable[[], None],
    ) -> None:
        """wait, wait_ended: as the methods; leave: called once when the client goes. The stdio is closed by `close`."""
        self.stdio = stdio
        self._wait = wait
        self._wait_ended = wait_ended
        self._leave = leave

    async def wait(self) -> Ending:
        """How it ended; to be asked when `stdio.read` says that there is no more."""
        return await self._wait()

    async def wait_ended(self) -> None:
        """Return when the process has ended, whether its output was read or not."""
        await self._wait_ended()

    def close(self) -> None:
        """The client is gone, or was told the end. Nobody may be waiting for the stdio."""
        self._leave()
        self.stdio.close()
