"""Exec, attach and port-forward: a URL now, and when its client comes, a process, a view of one, or a socket in a pod.

An exec belongs to its client: when that leaves, its processes get SIGHUP, as when a terminal is closed, and what minds
it not is killed soon after; what was made to live on (nohup) does. An attach leaves no trace. Both end with the
container. The bytes are moved by the streaming server; here are the descriptors and the rules.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from crishim.cgroups import effects
from crishim.cgroups.hierarchy import Hierarchy
from crishim.errors import CrishimError, InvalidSpec, StartFailed, Unavailable, WrongState
from crishim.executor.client import ExecSpec
from crishim.model.container import Container
from crishim.model.events import Sender
from crishim.model.sandbox import NamespaceMode, Sandbox, SandboxState
from crishim.model.session import (
    AttachRequest,
    Ending,
    ExecRequest,
    Exited,
    Failed,
    PortForwardRequest,
    SessionRequest,
)
from crishim.runtime.answers import answered
from crishim.runtime.execs import Leaf
from crishim.runtime.executor import ExecProcess, Executor
from crishim.runtime.helper import Helper
from crishim.runtime.live import Live, LiveContainer
from crishim.runtime.observer import Observer
from crishim.runtime.operations import Operations
from crishim.runtime.stdio import STDERR, STDOUT, Attached, Descriptors, Stdio
from crishim.runtime.tokens import Tokens
from crishim.runtime.verdict import outcome_of
from crishim.spec.container import exec_namespaces
from crishim.spec.process import exec_process
from crishim.store.store import Kind, Store

_PATHS: dict[type[SessionRequest], str] = {
    ExecRequest: "exec",
    AttachRequest: "attach",
    PortForwardRequest: "portforward",
}
_LOOPBACKS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
_DIAL_S = 30.0
#: between SIGHUP to the processes of an exec whose client left, and SIGKILL
_HANG_UP_S = 5.0
#: the monitor closes its side of an attach a little before the exit is recorded
_EXIT_GRACE_S = 2.0
_SIGNAL_ROUNDS = 5


class Session:
    """A client's view of a process: its stdio, and how it ended."""

    def __init__(
        self,
        stdio: Stdio,
        wait: Callable[[], Awaitable[Ending]],
        wait_ended: Callable[[], Awaitable[object]],
        leave: Callable[[], None],
    ) -> None:
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
        hang_up_s: float = _HANG_UP_S,
    ) -> None:
        self._store = store
        self._live = live
        self._executor = executor
        self._operations = operations
        self._helper = helper
        self._observer = observer
        self._hang_up_s = hang_up_s
        self._tokens = Tokens(clock=clock)
        self._base_url: str | None = None
        self._watched: dict[str, set[asyncio.Event]] = {}
        store.subscribe(self._changed)

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
        return self._url(PortForwardRequest(self._ready(sandbox_id).id, ports))

    def _url(self, request: SessionRequest) -> str:
        if self._base_url is None:
            raise Unavailable("the streaming server does not listen")
        return f"{self._base_url}/{_PATHS[type(request)]}/{self._tokens.mint(request)}"

    def _running(self, container_id: str) -> LiveContainer:
        return self._live.running(self._store.resolve_container(container_id).id)

    def _ready(self, sandbox_id: str) -> Sandbox:
        sandbox = self._store.resolve_sandbox(sandbox_id)
        if sandbox.state is not SandboxState.READY:
            raise WrongState(f"sandbox {sandbox.id} is {sandbox.state.name}, not READY")
        return sandbox

    # -- for the streaming server

    def listening_at(self, base_url: str | None) -> None:
        """Where clients reach the server ("http://127.0.0.1:34567"); None when they do not."""
        self._base_url = base_url

    def take(self, token: str) -> SessionRequest | None:
        """The request of a token, which is used up by this; None when it is unknown, used or too old."""
        return self._tokens.take(token)

    async def open_exec(self, request: ExecRequest) -> Session:
        """Start the process. StartFailed, WrongState, Exhausted or Unavailable say why not."""
        container = self._live.running(request.container_id)
        execution = _Exec(request)
        self._operations.spawn(self._supervise(container, execution), f"exec session in {container.id}")
        try:
            stdio = await execution.opened
        except asyncio.CancelledError:
            execution.abandon()
            raise
        return Session(stdio, execution.wait, execution.wait, execution.abandoned.set)

    async def open_attach(self, request: AttachRequest) -> Session:
        """Look at a running container. WrongState or Unavailable say why not."""
        container = self._live.running(request.container_id)
        fd = await answered(container.sandbox_id, self._live.monitor(container.sandbox_id).attach(container.id))
        stdio = Attached(fd, stdout=request.stdout, stderr=request.stderr)
        return Session(stdio, lambda: _attach_ended(container), container.exited.wait, lambda: None)

    async def dial(self, sandbox_id: str, port: int) -> socket.socket:
        """A connection to a port of the pod's loopback: 127.0.0.1, then ::1. The caller owns it, non-blocking.

        Unavailable says why there is none; WrongState when the sandbox is not READY.
        """
        sandbox = self._ready(sandbox_id)
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
            self._ready(sandbox_id)
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

    # -- the life of an exec

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
        await self._helper.run(_signal_all, self._executor.hierarchy, path, signal.SIGHUP)
        await asyncio.sleep(self._hang_up_s)
        await leaf.kill(Sender.RUNTIME)

    async def _end_with_container(self, container: LiveContainer, leaf: Leaf) -> None:
        """With a PID namespace of its own the kernel has done it already; with the host's or the pod's we do."""
        await container.exited.wait()
        with suppress(OSError):
            if effects.is_empty(self._executor.hierarchy, f"{container.spec.cgroup.path}/{leaf.name}"):
                return
        await leaf.kill(Sender.RUNTIME)


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


async def _attach_ended(container: LiveContainer) -> Ending:
    try:
        async with asyncio.timeout(_EXIT_GRACE_S):
            await container.exited.wait()
    except TimeoutError:
        return Failed("detached: the output was not read in time; the container goes on")
    return Exited(0)


def _check_streams(tty: bool, stdin: bool, stdout: bool, stderr: bool) -> None:
    if not (stdin or stdout or stderr):
        raise InvalidSpec("stdin, stdout, stderr: at least one of them must be asked for")
    if tty and stderr:
        raise InvalidSpec("stderr: a terminal has only one output, so it must be false with tty")


def _signal_all(hierarchy: Hierarchy, path: str, number: int) -> None:
    """Signal every process of a cgroup once, those that are forked meanwhile included."""
    signalled: set[int] = set()
    for _ in range(_SIGNAL_ROUNDS):
        fresh = [pid for pid in _pids(hierarchy, path) if pid and pid not in signalled]
        if not fresh:
            return
        for pid in fresh:
            signalled.add(pid)
            _signal_member(hierarchy, path, pid, number)


def _signal_member(hierarchy: Hierarchy, path: str, pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            if pid in _pids(hierarchy, path):  # still: so the pidfd is not of a later process with its number
                signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)


def _pids(hierarchy: Hierarchy, path: str) -> list[int]:
    try:
        return effects.pids(hierarchy, path)
    except OSError:
        return []
