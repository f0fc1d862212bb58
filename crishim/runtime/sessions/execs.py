"""Exec sessions: a further process in a container, for a client that may talk to it as long as it lives.

An exec belongs to its client: when that leaves, its processes get SIGHUP, as when a terminal is closed, and what minds
it not is killed soon after; what was made to live on (nohup) does. It ends with its container.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress

from crishim.cgroups import effects
from crishim.errors import CrishimError, StartFailed, Unavailable, WrongState
from crishim.executor.client import ExecSpec
from crishim.model.events import Sender
from crishim.model.session import Ending, ExecRequest, Exited, Failed
from crishim.runtime.execs import Leaf
from crishim.runtime.executor import ExecProcess, Executor
from crishim.runtime.helper import Helper
from crishim.runtime.live import LiveContainer
from crishim.runtime.observer import Observer
from crishim.runtime.operations import Operations
from crishim.runtime.sessions.session import Session
from crishim.runtime.sessions.stdio import STDERR, STDOUT, Descriptors
from crishim.runtime.verdict import outcome_of
from crishim.spec.container import exec_namespaces
from crishim.spec.process import exec_process
from crishim.store.store import Store

#: between SIGHUP to the processes of an exec whose client left, and SIGKILL
HANG_UP_S = 5.0


class ExecSessions:
    """Starts execs for clients, and sees each to its end."""

    def __init__(
        self,
        store: Store,
        executor: Executor,
        operations: Operations,
        helper: Helper,
        observer: Observer,
        hang_up_s: float = HANG_UP_S,
    ) -> None:
        self._store = store
        self._executor = executor
        self._operations = operations
        self._helper = helper
        self._observer = observer
        self._hang_up_s = hang_up_s

    async def open(self, container: LiveContainer, request: ExecRequest) -> Session:
        """Start the process. StartFailed, WrongState, Exhausted or Unavailable say why not."""
        execution = _Exec(request)
        self._operations.spawn(self._supervise(container, execution), f"exec session in {container.id}")
        try:
            stdio = await execution.opened
        except asyncio.CancelledError:
            execution.abandon()
            raise
        return Session(stdio, execution.wait, execution.wait, execution.abandoned.set)

    async def _supervise(self, container: LiveContainer, execution: _Exec) -> None:
        """From the leaf to the end; goes on when the client has gone, until nothing of the exec is left to do."""
        began = time.monotonic()
        outcome = "failed"
        try:
            async with Leaf(self._executor, self._helper, self._observer, container) as leaf:
                ending = await self._run(container, execution, leaf)
                if isinstance(ending, Exited):
                    outcome = "ok" if ending.code == 0 else "nonzero"
                execution.end(ending)
        except CrishimError as error:
            execution.end(Failed(str(error)))
        finally:
            execution.end(Failed("the server is stopping"))
            self._observer.exec_ended(container.id, outcome, time.monotonic() - began)

    async def _run(self, container: LiveContainer, execution: _Exec, leaf: Leaf) -> Ending:
        process = await self._start(container, execution, leaf)
        try:
            async with asyncio.TaskGroup() as group:
                guards = (
                    group.create_task(self._hang_up(container, execution, leaf)),
                    group.create_task(self._end_with_container(container, leaf)),
                )
                ending = await self._until_end(execution, process, leaf)
                for guard in guards:
                    guard.cancel()
            return ending
        finally:
            process.close()

    async def _until_end(self, execution: _Exec, process: ExecProcess, leaf: Leaf) -> Ending:
        try:
            if execution.request.tty:
                execution.open(Descriptors.of_console(await process.console(), stdin=execution.request.stdin))
            ended = await process.wait()
        except StartFailed as error:
            self._observer.process_start_failed("exec", outcome_of(str(error)))
            return Failed(str(error))
        except Unavailable as error:
            await leaf.kill(Sender.RUNTIME)
            return Failed(str(error))
        self._observer.process_started("exec", {})
        return Exited(ended.code)

    async def _start(self, container: LiveContainer, execution: _Exec, leaf: Leaf) -> ExecProcess:
        request = execution.request
        record = self._store.get_container(container.id)
        sandbox = self._store.get_sandbox(record.sandbox_id)
        if container.pidfd < 0:
            raise WrongState(f"container {container.id} is not running")
        pipes = _Pipes(request)
        try:
            process = await self._executor.exec(
                ExecSpec(
                    container_id=container.id,
                    init_pidfd=container.pidfd,
                    process=exec_process(container.spec.process, request.args, terminal=request.tty),
                    cgroup_path=container.spec.cgroup.path,
                    leaf=leaf.name,
                    namespaces=exec_namespaces(record.config, sandbox),
                    stdin=pipes.theirs.get(0),
                    stdout=pipes.theirs.get(STDOUT),
                    stderr=pipes.theirs.get(STDERR),
                    bundle=container.spec.bundle,
                    annotations=container.spec.annotations,
                    intel_rdt=container.spec.intel_rdt,
                )
            )
            if not request.tty:
                execution.open(pipes.steal())
        finally:
            pipes.close()
        return process

    async def _hang_up(self, container: LiveContainer, execution: _Exec, leaf: Leaf) -> None:
        await execution.abandoned.wait()
        path = f"{container.spec.cgroup.path}/{leaf.name}"
        self._observer.signal_sent("SIGHUP", Sender.RUNTIME.value)
        with suppress(OSError):  # what was not told is killed all the same
            await self._helper.run(effects.signal_all, self._executor.hierarchy, path, signal.SIGHUP)
        await asyncio.sleep(self._hang_up_s)
        await leaf.kill(Sender.RUNTIME)

    async def _end_with_container(self, container: LiveContainer, leaf: Leaf) -> None:
        """With a PID namespace of its own the kernel has done it already; with the host's or the pod's we do."""
        await container.exited.wait()
        with suppress(OSError):
            if effects.is_empty(self._executor.hierarchy, f"{container.spec.cgroup.path}/{leaf.name}"):
                return
        await leaf.kill(Sender.RUNTIME)


class _Exec:
    """What an exec's supervisor and its session share."""

    def __init__(self, request: ExecRequest) -> None:
        loop = asyncio.get_running_loop()
        self.request = request
        self.opened: asyncio.Future[Descriptors] = loop.create_future()
        self.ended: asyncio.Future[Ending] = loop.create_future()
        self.abandoned = asyncio.Event()

    def open(self, stdio: Descriptors) -> None:
        """The process has its stdio; that of a client that left meanwhile is closed."""
        if self.opened.done():
            stdio.close()
        else:
            self.opened.set_result(stdio)

    def abandon(self) -> None:
        """The client left before it had the stdio, or just when it came."""
        self.abandoned.set()
        if self.opened.done() and not self.opened.cancelled() and self.opened.exception() is None:
            self.opened.result().close()

    async def wait(self) -> Ending:
        """How it ended; nobody who leaves takes it from the others."""
        return await asyncio.shield(self.ended)

    def end(self, ending: Ending) -> None:
        """The first ending counts."""
        if not self.ended.done():
            self.ended.set_result(ending)
        if not self.opened.done():
            sentence = ending.message if isinstance(ending, Failed) else "the process ended before it had its stdio"
            self.opened.set_exception(StartFailed(sentence))
        elif not self.opened.cancelled() and self.opened.exception() is None:
            self.opened.result().process_ended()


class _Pipes:
    """Pipes for the streams of a request without a terminal; owns both ends of each until `steal` and `close`."""

    def __init__(self, request: ExecRequest) -> None:
        self.theirs: dict[int, int] = {}
        self._ours: dict[int, int] = {}
        wanted = ((0, request.stdin), (STDOUT, request.stdout), (STDERR, request.stderr))
        try:
            for stream in (stream for stream, is_wanted in wanted if is_wanted and not request.tty):
                reading, writing = os.pipe2(os.O_CLOEXEC)
                self.theirs[stream], self._ours[stream] = (writing, reading) if stream else (reading, writing)
        except OSError:
            self.close()
            raise

    def steal(self) -> Descriptors:
        """Our ends."""
        ours, self._ours = self._ours, {}
        stdin = ours.pop(0, None)
        return Descriptors(stdin, ours)

    def close(self) -> None:
        """Their ends, which the process has copies of, and ours when nobody took them."""
        for fd in (*self.theirs.values(), *self._ours.values()):
            os.close(fd)
        self.theirs.clear()
        self._ours.clear()
