"""The executor as a library: `Container` and `Process`, without kubelet, gRPC or images (`docs/library.md`).

    from crishim import Container, Process, ProcessSpec, isolated

    container = Container(isolated("/srv/root", id="job-1"))
    process = Process(ProcessSpec(args=("/bin/true",), init=True))
    with container:
        container.start(process)
        print(process.wait().code)

The names are those of runc's libcontainer: a process with `init` makes the container, later ones are execs in it.
Calls block; the executor's own loop runs in a thread of its own. Needs root.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import secrets
import shutil
import signal as signals
import tempfile
import threading
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from crishim.cgroups import effects
from crishim.errors import InvalidSpec, NotFound, Unavailable, Unsupported, WrongState
from crishim.executor import wire
from crishim.executor.client import ExecProcess, ExecSpec, Executor, Monitor, PodSpec, StartedContainer
from crishim.model.exit import ExitRecord
from crishim.model.process import Capabilities, ContainerSpec, NamespaceKind, ProcessSpec, RootFs
from crishim.spec.capabilities import DEFAULT as DEFAULT_CAPABILITIES
from crishim.spec.isolated import isolated_container
from crishim.spec.process import DEFAULT_PATH

T = TypeVar("T")

_POD_NAMESPACES = (NamespaceKind.NETWORK, NamespaceKind.IPC, NamespaceKind.UTS)


_TOKEN = secrets.token_hex(4)


def program_id() -> str:
    """Name of this Python process that no later one has, as it has the pid alone: "PID-random"."""
    return f"{os.getpid()}-{_TOKEN}"


def cgroup_root(program: str | None = None) -> str:
    """Cgroup of what a Python process runs, by its `program_id` (None: ours); no other has cgroups in it.

    It goes with the engine.
    """
    return f"/crishim-run-{program or program_id()}"


def monitor_directories(program: str | None = None) -> str:
    """What the names of the monitors' directories begin with, below the directory of temporary files."""
    return f"crishim-{program or program_id()}-"


def isolated(
    root: str | os.PathLike[str] | RootFs, *, id: str, hostname: str | None = None, network: str = "none"
) -> ContainerSpec:
    """A container as isolated as runc's default: every namespace its own, default mounts, masks and devices.

    root: a directory that becomes "/", or a `RootFs`; network: "none" (a loopback of its own) or "host".
    The process comes with `Container.start`.
    """
    rootfs = root if isinstance(root, RootFs) else RootFs(path=os.path.realpath(root))
    return isolated_container(id, rootfs, f"{cgroup_root()}/{id}", hostname or id[:63], network)


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
        return _running_engine().call(_shielded(self._ended), timeout_s)

    def _handle(self) -> StartedContainer | ExecProcess:
        if self._started is None:
            raise WrongState("the process was not started")
        return self._started

    def _release_io(self) -> None:
        for fd in self._made:
            os.close(fd)
        self._made = []


class Container:
    """One container: made by the start of its init process, gone after `destroy` (or the end of a `with`)."""

    def __init__(self, spec: ContainerSpec) -> None:
        self.spec = spec
        self._monitor: Monitor | None = None
        self._directory: Path | None = None
        self._init: Process | None = None

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *exc: object) -> None:
        self.destroy()

    def start(self, process: Process) -> None:
        """Start `process`: the init process when its spec says so, an exec in the running container otherwise.

        StartFailed with a sentence leaves nothing; WrongState for a second init or an exec without one.
        """
        try:
            if process.spec.init:
                if self._init is not None:
                    raise WrongState(f"container {self.spec.id} already has an init process")
                _running_engine().call(self._start_init(process))
            else:
                if self._init is None:
                    raise WrongState(f"container {self.spec.id} is not running")
                _running_engine().call(self._start_exec(process))
        finally:
            process._release_io()

    async def _start_init(self, process: Process) -> None:
        if process.spec.sub_cgroup_paths:
            raise InvalidSpec("sub_cgroup_paths: an init process is in the container's cgroup")
        spec = replace(self.spec, process=_with_defaults(process.spec))
        own = {ns.kind for ns in spec.namespaces if ns.path is None}
        engine = _running_engine()
        self._directory = Path(tempfile.mkdtemp(prefix=monitor_directories()))
        pod = PodSpec(
            network=NamespaceKind.NETWORK in own,
            ipc=NamespaceKind.IPC in own,
            uts=NamespaceKind.UTS in own,
            hostname=spec.hostname,
        )
        try:
            monitor = await engine.executor.start_monitor(spec.id, self._directory, pod)
        except BaseException:
            await self._end_monitor()
            raise
        self._monitor = monitor
        ended: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()

        def exited(record: ExitRecord) -> None:
            if not ended.done():
                ended.set_result(ExitStatus(record.code, record.signal, record.oom_kills))

        def lost() -> None:
            if not ended.done():
                ended.set_exception(Unavailable(f"the monitor of container {spec.id} died, and the container with it"))
                ended.exception()  # seen: nobody has to wait

        monitor.on_exit = exited
        monitor.on_lost = lost
        # the monitor already lives in the pod's namespaces, so the child must not make a second set
        spec = replace(
            spec, namespaces=tuple(ns for ns in spec.namespaces if ns.path or ns.kind not in _POD_NAMESPACES)
        )
        stdio = await _descriptors(process)
        try:
            process._started = await monitor.start_container(spec, stdio=stdio)
        except BaseException:
            await self._end_monitor()
            raise
        finally:
            _close_null(process, stdio)
        process._ended = ended
        self._init = process

    async def _start_exec(self, process: Process) -> None:
        init = self._init
        assert init is not None
        spec = ExecSpec(
            container_id=self.spec.id,
            init_pidfd=init.pidfd,
            process=_with_defaults(process.spec),
            cgroup_path=self.spec.cgroup.path,
            namespaces=tuple(ns.kind for ns in self.spec.namespaces),
            stdin=process.stdio[0],
            stdout=process.stdio[1],
            stderr=process.stdio[2],
        )
        _check_exec(process.spec)
        started = await _running_engine().executor.exec(spec)
        try:
            await _send_handles(process.spec, started)
        except BaseException:
            started.send_signal(signals.SIGKILL)
            started.close()
            raise
        process._started = started
        process._ended = asyncio.ensure_future(_exec_status(started))

    def signal(self, number: int) -> None:
        """Signal the init process; SIGKILL ends every process of the container with it."""
        if self._init is None:
            raise WrongState(f"container {self.spec.id} is not running")
        self._init.signal(number)

    def destroy(self) -> None:
        """Kill what runs, and remove what the container had. Safe to repeat."""
        if self._init is not None:
            with suppress(NotFound):
                self._init.signal(signals.SIGKILL)
            with suppress(Unavailable):  # its monitor is gone
                self._init.wait()
        if self._monitor is not None:
            _running_engine().call(self._end_monitor())
        if self._init is not None and isinstance(self._init._started, StartedContainer):
            os.close(self._init.pidfd)
            self._init = None

    async def _end_monitor(self) -> None:
        if self._monitor is not None:
            await self._monitor.stop()
            self._monitor = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None


def _with_defaults(process: ProcessSpec) -> ProcessSpec:
    """PATH and HOME when the caller gave none, and the default capabilities."""
    names = {entry.partition("=")[0] for entry in process.env}
    env = process.env
    if "PATH" not in names:
        env = (*env, f"PATH={DEFAULT_PATH}")
    if "HOME" not in names:
        env = (*env, "HOME=/root" if process.user.uid == 0 else "HOME=/")
    capabilities = process.capabilities
    if capabilities is None:
        keep = DEFAULT_CAPABILITIES
        held = keep if process.user.uid == 0 else frozenset()
        capabilities = Capabilities(bounding=keep, effective=held, permitted=held)
    return replace(process, env=env, capabilities=capabilities)


def _check_exec(process: ProcessSpec) -> None:
    """Unsupported for what an exec cannot have: it would be dropped in silence."""
    if process.extra_files:
        raise Unsupported("extra_files: only an init process can have them")
    if process.sub_cgroup_paths:
        raise Unsupported("sub_cgroup_paths: an exec runs in the container's cgroup")
    if process.terminal and process.console_socket is None:
        raise InvalidSpec("terminal: an exec needs a console_socket that takes the pty master")


async def _send_handles(process: ProcessSpec, started: ExecProcess) -> None:
    """The pty master and the pidfd to the sockets of the caller, with libcontainer's payloads."""
    if process.terminal and process.console_socket is not None:
        master = await started.console()
        try:
            wire.hand_over(process.console_socket, master, b"console")
        finally:
            os.close(master)
    if process.pidfd_socket is not None:
        wire.hand_over(process.pidfd_socket, started.pidfd, b"setns")


async def _exec_status(started: ExecProcess) -> ExitStatus:
    try:
        ended = await started.wait()
    finally:
        started.close()
    return ExitStatus(ended.code, ended.signal)


async def _shielded(ended: asyncio.Future[ExitStatus]) -> ExitStatus:
    return await asyncio.shield(ended)


async def _descriptors(process: Process) -> list[int]:
    """stdin, stdout, stderr for the monitor; /dev/null stands for what is missing when any is given."""
    if all(fd is None for fd in process.stdio) or process.spec.terminal:
        return []
    return [os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC) if fd is None else fd for fd in process.stdio]


def _close_null(process: Process, stdio: list[int]) -> None:
    for fd in set(stdio) - {fd for fd in process.stdio if fd is not None}:
        os.close(fd)


class Engine:
    """The executor of this Python process, with its loop in a thread."""

    def __init__(self, roles: Mapping[str, str]) -> None:
        self.executor = Executor.launch(cgroup=f"{cgroup_root()}/monitors", roles=roles)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="crishim", daemon=True)
        self._thread.start()
        self.call(self.executor.open())

    def call(self, coroutine: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """The result of `coroutine`, run on the loop; TimeoutError, or a signal's exception here, cancels it."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout_s)
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End the zygote and the loop; cgroups go unless something runs in them."""
        self.call(self.executor.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        effects.remove(self.executor.hierarchy, cgroup_root())


_the_engine: Engine | None = None
_engine_lock = threading.Lock()


def open_engine(roles: Mapping[str, str]) -> Engine:
    """The engine of this process, whose zygote knows `roles` ("module:function") if it was not open before."""
    global _the_engine
    with _engine_lock:
        if _the_engine is None:
            _the_engine = Engine(roles)
            atexit.register(close_engine)
        return _the_engine


def close_engine() -> None:
    """End the zygote and its execs, as the end of the process does; the next start opens another engine."""
    global _the_engine
    with _engine_lock:
        if _the_engine is not None:
            _the_engine.close()
            _the_engine = None
            atexit.unregister(close_engine)


def _running_engine() -> Engine:
    return open_engine({})
