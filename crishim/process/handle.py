"""One process of the library: what to run, its stdio, and its handle once it was started."""

from __future__ import annotations

import asyncio
import os
import signal as signals
from dataclasses import dataclass

from crishim.errors import NotFound, WrongState
from crishim.executor.client import ExecProcess, StartedContainer
from crishim.model.process import ProcessSpec
from crishim.process.engine import running_engine


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: 0..255, or 128 + signal; oom_kills of the container when it was its init."""

    code: int
    signal: int | None
    oom_kills: int = 0


@dataclass(frozen=True, slots=True)
class ProcessIO:
    """The caller's ends of the pipes that `Process.initialize_io` made; the caller owns them."""

    stdin: int
    stdout: int
    stderr: int


class Process:
    """One process: what to run, its stdio, and after `Container.start` its handle.

    stdin, stdout, stderr: descriptors that stay the caller's; None is the container's /dev/null.
    """

    def __init__(
        self, spec: ProcessSpec, *, stdin: int | None = None, stdout: int | None = None, stderr: int | None = None
    ) -> None:
        self.spec = spec
        self.stdio = (stdin, stdout, stderr)
        self._made: list[int] = []
        self._started: StartedContainer | ExecProcess | None = None
        self._ended: asyncio.Future[ExitStatus] | None = None

    def initialize_io(self, uid: int = 0, gid: int = 0) -> ProcessIO:
        """Three pipes for stdio, owned on both ends by the host ids of the container's root.

        So that a process may reopen /proc/self/fd/1. Source: libcontainer, Process.InitializeIO.
        """
        ends = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        try:
            for pair in ends:
                for fd in pair:
                    os.fchown(fd, uid, gid)
        except OSError:
            for pair in ends:
                for fd in pair:
                    os.close(fd)
            raise
        (in_read, in_write), (out_read, out_write), (err_read, err_write) = ends
        self.stdio = (in_read, out_write, err_write)
        self._made = [in_read, out_write, err_write]
        return ProcessIO(in_write, out_read, err_read)

    @property
    def pid(self) -> int:
        """In our PID namespace. Raises WrongState before the start, as every method below."""
        return self._handle().pid

    @property
    def pidfd(self) -> int:
        """Still ours: duplicate it to keep it."""
        return self._handle().pidfd

    def signal(self, number: int) -> None:
        """Signal this process alone; NotFound when it has ended."""
        try:
            signals.pidfd_send_signal(self._handle().pidfd, number)
        except ProcessLookupError:
            raise NotFound(f"process {self.pid} has ended") from None

    def wait(self, timeout_s: float | None = None) -> ExitStatus:
        """How it ended; TimeoutError after `timeout_s`. May be called again."""
        self._handle()
        assert self._ended is not None
        return running_engine().call(_shielded(self._ended), timeout_s)

    def _handle(self) -> StartedContainer | ExecProcess:
        if self._started is None:
            raise WrongState("the process was not started")
        return self._started

    def _release_io(self) -> None:
        for fd in self._made:
            os.close(fd)
        self._made = []


async def _shielded(ended: asyncio.Future[ExitStatus]) -> ExitStatus:
    return await asyncio.shield(ended)
