"""The executor's door for the server: zygote, monitors and execs as asyncio objects.

`Executor.launch` is called before grpc is imported and starts the zygote; `open` attaches to the running loop. Every
request has one answer, found by its sequence number. Descriptors that a caller hands in stay the caller's; those in
answers become the caller's.
"""

from __future__ import annotations

import asyncio
import os
import signal
from _socket import (
    AF_UNIX,
    MSG_CMSG_CLOEXEC,
    SCM_RIGHTS,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    socket,
)
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from crishim.cgroups import effects
from crishim.cgroups.hierarchy import Hierarchy, detect
from crishim.errors import InvalidSpec, NotFound, StartFailed, TimedOut, Unavailable
from crishim.executor import child, launch, plan, records, value, wire
from crishim.executor.probe import NodeFacts, probe
from crishim.model.exit import ExitRecord
from crishim.model.process import ContainerSpec, NamespaceKind, ProcessSpec

_MONITOR_SOCKET = b"monitor.sock"
_SHM_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class PodSpec:
    """The namespaces that a pod's containers share, and what is set in them.

    network, ipc, uts: whether the pod has its own; netns_path: where the network namespace is pinned; shared_pid: a
    PID namespace of the pod with a reaping init of ours; sysctls: keys of the pod's own namespaces, validated.
    """

    network: bool = False
    netns_path: str | None = None
    ipc: bool = True
    uts: bool = True
    shared_pid: bool = False
    hostname: str | None = None
    sysctls: Mapping[str, str] = field(default_factory=dict)
    shm_bytes: int = _SHM_BYTES

    def to_value(self) -> dict[str, object]:
        """The body of START_MONITOR."""
        return {
            "network": self.network,
            "netns_path": self.netns_path and os.fsencode(self.netns_path),
            "ipc": self.ipc,
            "uts": self.uts,
            "shared_pid": self.shared_pid,
            "hostname": self.hostname and os.fsencode(self.hostname),
            "sysctls": {os.fsencode(key): os.fsencode(text) for key, text in self.sysctls.items()},
            "shm_bytes": self.shm_bytes,
        }


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """A further process in a running container.

    init_pidfd: of the container's init; namespaces: those that the container does not share with us; cgroup_path: the
    container's cgroup; leaf: "exec.0", a leaf of it that the caller made, or "" for the container's own cgroup.
    stdin, stdout, stderr: descriptors, None is the container's /dev/null.
    """

    container_id: str
    init_pidfd: int
    process: ProcessSpec
    cgroup_path: str
    leaf: str = ""
    namespaces: tuple[NamespaceKind, ...] = ()
    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None


@dataclass(frozen=True, slots=True)
class StartedContainer:
    """A container whose init passed execve(2); the caller owns the pidfd."""

    pid: int
    pidfd: int
    started_at_ns: int
    #: seconds of the phases cgroup, mounts, clone, setup
    phases: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class MonitoredContainer:
    """A container that an adopted monitor knows; `pidfd` is the caller's, None when it has exited."""

    id: str
    pid: int
    pidfd: int | None
    started_at_ns: int
    exit: ExitRecord | None


@dataclass(frozen=True, slots=True)
class ExecExit:
    """How an exec ended: 0..255, or 128 + signal."""

    code: int
    signal: int | None
    ended_at_ns: int


class Connection:
    """Requests and answers over one socket, on the running loop."""

    def __init__(self, sock: socket, on_event: Callable[[wire.Message], None], on_lost: Callable[[], None]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_event = on_event
        self._on_lost = on_lost
        self._waiting: dict[int, asyncio.Future[wire.Message]] = {}
        self._seq = 0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable)
        self.lost = False

    def next_seq(self) -> int:
        """A sequence number that no request has had."""
        self._seq = self._seq % 0x7FFFFFFF + 1
        return self._seq

    async def request(
        self, kind: int, sandbox_id: bytes, body: dict[str, object], fds: Sequence[int] = (), seq: int = 0
    ) -> wire.Message:
        """The OK answer; StartFailed with the peer's sentence for an ERROR; Unavailable when the peer is gone."""
        seq = seq or self.next_seq()
        future: asyncio.Future[wire.Message] = self._loop.create_future()
        if self.lost:
            raise Unavailable("the process that should answer is gone")
        self._waiting[seq] = future
        try:
            await self._send(kind, seq, sandbox_id, body, fds)
            message = await future
        finally:
            self._waiting.pop(seq, None)
        if message.kind == wire.ERROR:
            message.close()
            raise StartFailed(str(message.body.get("message", "refused")))
        return message

    async def _send(self, kind: int, seq: int, sandbox_id: bytes, body: dict[str, object], fds: Sequence[int]) -> None:
        while True:
            try:
                wire.send(self._sock, kind, seq, sandbox_id, body, list(fds))
                return
            except BlockingIOError:  # the peer's queue is full
                await self._until_writable()
            except OSError as error:
                self._lose()
                raise Unavailable(f"the process that should answer is gone: {error.strerror}") from None

    async def _until_writable(self) -> None:
        writable: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_writer(self._sock.fileno(), _resolve, writable)
        try:
            await writable
        finally:
            self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        for _ in range(64):
            try:
                message = wire.receive(self._sock)
            except BlockingIOError:
                return
            except (OSError, wire.WireError):
                message = None
            if message is None:
                self._lose()
                return
            waiting = self._waiting.get(message.seq)
            if message.seq and waiting is not None and not waiting.done():
                waiting.set_result(message)
            elif message.seq:
                message.close()  # its caller was cancelled
            else:
                self._on_event(message)

    def _lose(self) -> None:
        if self.lost:
            return
        self.close()
        self._on_lost()

    def close(self) -> None:
        """Stop; whoever waits gets Unavailable."""
        if self.lost:
            return
        self.lost = True
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Unavailable("the process that should answer is gone"))


class ExecProcess:
    """A started exec; owns its pidfd until `close`."""

    def __init__(
        self, pid: int, pidfd: int, started_at_ns: int, ended: asyncio.Future[ExecExit], report: socket
    ) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.started_at_ns = started_at_ns
        self._ended = ended
        self._report = report
        #: what the plan was made from, to tell which of its steps failed
        self.body: dict[str, object] = {}
        self.namespaces = 0

    async def console(self) -> int:
        """The pty master of an exec with `terminal`; the caller owns it. StartFailed when it came to nothing."""
        while True:
            await _until_readable(self._report.fileno())
            data, ancillary, _, _ = self._report.recvmsg(4096, 64, MSG_CMSG_CLOEXEC)
            for level, kind, content in ancillary:
                if level == SOL_SOCKET and kind == SCM_RIGHTS:
                    return int.from_bytes(content[:4], "little")
            if not data:
                raise StartFailed("the process ended before it had a terminal")
            if child.REPORT.unpack_from(data)[0] == child.FAILED:
                raise StartFailed(self._describe(data))

    async def wait(self) -> ExecExit:
        """How it ended. StartFailed when it never reached execve(2); Unavailable when the zygote died."""
        ended = await asyncio.shield(self._ended)
        failure = self._failure()
        if failure is not None:
            raise StartFailed(failure)
        return ended

    def _failure(self) -> str | None:
        with suppress(BlockingIOError):
            while data := self._report.recv(4096):
                if child.REPORT.unpack_from(data)[0] == child.FAILED:
                    return self._describe(data)
        return None

    def _describe(self, report: bytes) -> str:
        _, index, code = child.REPORT.unpack_from(report)
        procs = self.body["cgroup_procs"]
        opened = {b"procs:%d" % number: 0 for number in range(len(procs))}  # type: ignore[arg-type]
        opened.update({b"target": 0, b"stdin": 0, b"stdout": 0, b"stderr": 0, b"proc": 0})
        steps = plan.exec_steps(self.body, opened, self.namespaces)
        return plan.describe(steps[index], code, report[child.REPORT.size :])

    def send_signal(self, number: int) -> None:
        """Signal this process; one that is gone is fine."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def close(self) -> None:
        """Let go of the descriptors; the process goes on."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self._report.close()
            self.pidfd = -1


class Monitor:
    """The server's side of one pod's monitor."""

    def __init__(self, sandbox_id: str, directory: Path, hierarchy: Hierarchy) -> None:
        self.sandbox_id = sandbox_id
        self.pid = 0
        self.pidfd = -1
        self.containers: dict[str, MonitoredContainer] = {}
        #: called with each exit record, after the monitor has written it
        self.on_exit: Callable[[ExitRecord], None] = lambda record: None
        #: called with a container whose start an earlier server had asked for; its pidfd is the receiver's
        self.on_started: Callable[[MonitoredContainer], None] = _drop_started
        #: called once when the monitor is gone without having been stopped
        self.on_lost: Callable[[], None] = lambda: None
        self._directory = directory
        self._hierarchy = hierarchy
        self._connection: Connection | None = None
        self._id = sandbox_id.encode()
        self._stopped = False

    def connect(self, sock: socket) -> None:
        """Serve this socket on the running loop."""
        self._connection = Connection(sock, self._event, self._gone)

    def _event(self, message: wire.Message) -> None:
        if message.kind == wire.EVENT_CONTAINER_STARTED:
            body = message.body
            pidfd = message.fds.pop()
            started = MonitoredContainer(body["id"].decode(), body["pid"], pidfd, body["started_at_ns"], None)  # type: ignore[attr-defined, arg-type]
            self.on_started(started)
        message.close()
        if message.kind == wire.EVENT_CONTAINER_EXITED:
            self.on_exit(exit_record(message.body))

    def _gone(self) -> None:
        if not self._stopped:
            self.close()  # its pidfd too: nobody has a use for it
            self.on_lost()

    async def _request(self, kind: int, body: dict[str, object], fds: Sequence[int] = ()) -> wire.Message:
        if self._connection is None:
            raise Unavailable(f"sandbox {self.sandbox_id} has no monitor")
        return await self._connection.request(kind, self._id, body, fds)

    async def start_container(
        self, spec: ContainerSpec, *, pid_target: str | None = None, stdio: Sequence[int] = ()
    ) -> StartedContainer:
        """Start the init process of a container.

        pid_target: "pod" for the pod's shared PID namespace, the id of a container of this pod for its namespace, None
        for a new one (NamespaceKind.PID in the spec) or the host's. stdio: stdin, stdout and stderr instead of a log.
        Raises StartFailed with a sentence (nothing is left), InvalidSpec for a field that cannot be honoured.
        """
        container = value.container_value(spec, self._hierarchy)
        container["pid_namespace"] = pid_target and pid_target.encode()
        named = list(zip((b"stdin", b"stdout", b"stderr"), stdio, strict=False))
        for name, fd in ((b"console", spec.process.console_socket), (b"pidfd", spec.process.pidfd_socket)):
            if fd is not None:
                named.append((name, fd))
        named += [(b"extra", fd) for fd in spec.process.extra_files]
        container["descriptors"] = [name for name, _ in named]
        body: dict[str, object] = {
            "id": container["id"],
            "cgroup": container["cgroup"],
            "own_pid_namespace": b"pid" in container["new_namespaces"],  # type: ignore[operator]
            "terminal": spec.process.terminal,
            "log": container["log"],
            "stdin_once": spec.stdin_once,
            "spec": wire.encode(container),  # for the starter: the monitor itself does not look
        }
        message = await self._request(wire.START_CONTAINER, body, [fd for _, fd in named])
        phases = message.body["phases_ns"]
        assert isinstance(phases, dict)
        return StartedContainer(
            pid=int(message.body["pid"]),  # type: ignore[call-overload]
            pidfd=message.fds[0],
            started_at_ns=int(message.body["started_at_ns"]),  # type: ignore[call-overload]
            phases={str(name): ns / 1e9 for name, ns in phases.items()},
        )

    async def cancel_start(self, container_id: str) -> None:
        """End a start under way, also one that hangs; returns when it failed. Nothing to do when there is none."""
        await self._request(wire.CANCEL_START, {"id": container_id.encode()})

    async def reopen_log(self, container_id: str) -> None:
        """Close and open the container's log after a rotation; StartFailed says why not."""
        await self._request(wire.REOPEN_LOG, {"id": container_id.encode()})

    async def attach(self, container_id: str) -> int:
        """A socket with the container's output, and to its stdin (`attach.py` has the messages); the caller owns it."""
        return (await self._request(wire.ATTACH, {"id": container_id.encode()})).fds[0]

    async def open_socket(self, family: int, kind: int, protocol: int) -> int:
        """A socket of the pod's network namespace; the caller owns it."""
        body: dict[str, object] = {"family": family, "kind": kind, "protocol": protocol}
        return (await self._request(wire.OPEN_SOCKET, body)).fds[0]

    async def open_netns(self) -> int:
        """A descriptor of the pod's network namespace; the caller owns it."""
        return (await self._request(wire.OPEN_NETNS, {})).fds[0]

    async def forget(self, container_id: str) -> None:
        """Drop an exited container and its record; one that the monitor does not know is fine."""
        with suppress(StartFailed):
            await self._request(wire.FORGET, {"id": container_id.encode()})

    async def refresh(self) -> None:
        """Ask what the monitor holds and fill `containers` and `pid`."""
        message = await self._request(wire.STATE, {})
        body = message.body
        self.pid = int(body["pid"])  # type: ignore[call-overload]
        self.containers = {}
        for entry in body["containers"]:  # type: ignore[attr-defined]
            ended = entry["exit"]
            container = MonitoredContainer(
                id=entry["id"].decode(),
                pid=entry["pid"],
                pidfd=message.fds[entry["pidfd"]] if "pidfd" in entry else None,
                started_at_ns=entry["started_at_ns"],
                exit=None if ended is None else exit_record(ended),
            )
            self.containers[container.id] = container

    async def stop(self) -> None:
        """End the monitor; StartFailed when a container still runs. One that is gone is fine."""
        self._stopped = True
        try:
            with suppress(Unavailable):
                await self._request(wire.STOP, {})
        except BaseException:
            self._stopped = False
            raise
        self.close()

    def close(self) -> None:
        """Let go of the connection; the monitor lives on."""
        self._stopped = True
        if self._connection is not None:
            self._connection.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def _drop_started(container: MonitoredContainer) -> None:
    if container.pidfd is not None:
        os.close(container.pidfd)


class Executor:
    """The server's zygote and what it starts."""

    def __init__(self, hierarchy: Hierarchy, node: NodeFacts, arguments: dict[str, object]) -> None:
        self.hierarchy = hierarchy
        self.node = node
        #: called after a zygote died, when a fresh one is being started
        self.on_zygote_lost: Callable[[], None] = lambda: None
        self._arguments = arguments
        self._interpreter = launch.sealed_interpreter()
        self._pid = 0
        self._socket: socket | None = None
        self._connection: Connection | None = None
        self._execs: dict[int, asyncio.Future[ExecExit]] = {}
        self._closing = False

    @classmethod
    def launch(cls, *, cgroup: str, roles: Mapping[str, str]) -> Executor:
        """Start the zygote; to be called before grpc is imported and before there is a thread.

        cgroup: where zygote and monitors live ("/crishim.slice/monitors"); roles: name to "module:function".
        Raises Unavailable when it does not come up (not root, no cgroups).
        """
        hierarchy = detect()
        executor = cls(hierarchy, probe(), launch.arguments(hierarchy.to_value(), cgroup, dict(roles)))
        executor._spawn()
        return executor

    @property
    def pid(self) -> int:
        """The zygote's."""
        return self._pid

    def _spawn(self) -> None:
        self._pid, self._socket = launch.spawn_zygote(self._interpreter, self._arguments)

    async def open(self) -> None:
        """Attach to the running loop and wait until the zygote is ready."""
        assert self._socket is not None
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def event(message: wire.Message) -> None:
            if message.kind == wire.OK and not ready.done():
                ready.set_result(None)
            else:
                self._event(message)

        def lost() -> None:
            if not ready.done():
                ready.set_exception(Unavailable("the zygote did not start; its standard error says why"))
            else:
                self._lost()

        self._connection = Connection(self._socket, event, lost)
        await ready

    def _event(self, message: wire.Message) -> None:
        message.close()
        if message.kind != wire.EVENT_EXEC_EXITED:
            return
        body = message.body
        waiting = self._execs.pop(int(body["seq"]), None)  # type: ignore[call-overload]
        if waiting is not None and not waiting.done():
            waiting.set_result(ExecExit(body["code"], body["signal"], body["ended_at_ns"]))  # type: ignore[arg-type]

    def _lost(self) -> None:
        _reap_later(self._pid)
        for waiting in self._execs.values():
            if not waiting.done():
                waiting.set_exception(Unavailable("the zygote died, and the exec with it"))
                waiting.exception()  # retrieved: nobody may be waiting
        self._execs.clear()
        if self._closing:
            return
        self._spawn()
        assert self._socket is not None
        self._connection = Connection(self._socket, self._event, self._lost)
        self.on_zygote_lost()

    async def _request(
        self, kind: int, sandbox_id: bytes, body: dict[str, object], fds: Sequence[int], seq: int = 0
    ) -> wire.Message:
        if self._connection is None:
            raise Unavailable("the executor is not open")
        return await self._connection.request(kind, sandbox_id, body, fds, seq)

    async def start_monitor(self, sandbox_id: str, directory: Path, pod: PodSpec) -> Monitor:
        """Fork the monitor of a sandbox, whose directory exists; StartFailed says what could not be set up."""
        ours, theirs = wire.pair()
        place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        monitor = Monitor(sandbox_id, directory, self.hierarchy)
        try:
            answer = await self._request(
                wire.START_MONITOR, sandbox_id.encode(), pod.to_value(), [theirs.fileno(), place]
            )
            monitor.pidfd = answer.fds[0]
            monitor.pid = int(answer.body["pid"])  # type: ignore[call-overload]
            theirs.close()
            message = await _first_message(ours)
            if message is None or message.kind == wire.ERROR:
                os.close(monitor.pidfd)
                monitor.pidfd = -1
                text = "the monitor died" if message is None else message.body.get("message", "refused")
                raise StartFailed(str(text))
            monitor.connect(ours)
            return monitor
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(place)

    async def adopt_monitor(self, sandbox_id: str, directory: Path) -> Monitor:
        """Connect to a monitor that outlived its server; NotFound when there is no socket or nobody behind it."""
        sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK)
        try:
            place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                sock.connect(b"/proc/self/fd/%d/%b" % (place, _MONITOR_SOCKET))
            finally:
                os.close(place)
        except OSError as error:
            sock.close()
            raise NotFound(f"sandbox {sandbox_id} has no monitor: {error.strerror}") from None
        monitor = Monitor(sandbox_id, directory, self.hierarchy)
        monitor.connect(sock)
        await monitor.refresh()
        with suppress(ProcessLookupError):
            monitor.pidfd = os.pidfd_open(monitor.pid)
        return monitor

    async def exec(self, spec: ExecSpec) -> ExecProcess:
        """Start an exec. Its set-up goes on while this returns; `wait` raises StartFailed when it came to nothing."""
        body = value.process_value(spec.process)
        assert self._connection is not None
        flags = 0
        for kind in spec.namespaces:
            if kind is not NamespaceKind.PID:
                flags |= plan.NAMESPACE_FLAGS[kind.value.encode()]
        leaf = f"{spec.cgroup_path}/{spec.leaf}" if spec.leaf else spec.cgroup_path
        report, reports = wire.pair()
        report.setblocking(False)
        ours: list[int] = []
        try:
            cgroup = effects.open_dir(self.hierarchy, leaf)
            fds = [spec.init_pidfd]
            order = [0]
            for fd in (spec.stdin, spec.stdout, spec.stderr, reports.fileno(), cgroup):
                order.append(-1 if fd is None or fd < 0 else len(fds))
                if fd is not None and fd >= 0:
                    fds.append(fd)
            if cgroup >= 0:
                ours.append(cgroup)
            body["fds"] = order
            body["namespaces"] = flags
            body["join_pid"] = NamespaceKind.PID in spec.namespaces
            body["leaf"] = leaf if spec.leaf else ""
            body["cgroup_procs"] = effects.task_files(self.hierarchy, spec.cgroup_path)
            seq = self._connection.next_seq()
            ended: asyncio.Future[ExecExit] = asyncio.get_running_loop().create_future()
            self._execs[seq] = ended
            try:
                message = await self._request(wire.EXEC, spec.container_id.encode(), body, fds, seq)
            except BaseException:
                self._execs.pop(seq, None)
                raise
            started = ExecProcess(
                int(message.body["pid"]),  # type: ignore[call-overload]
                message.fds[0],
                int(message.body["started_at_ns"]),  # type: ignore[call-overload]
                ended,
                report,
            )
            started.body, started.namespaces = body, flags
            return started
        except BaseException:
            report.close()
            raise
        finally:
            reports.close()
            for fd in ours:
                os.close(fd)

    async def run_role(
        self, role: str, request: Mapping[str, object], fds: Sequence[int] = (), timeout_s: float = 60.0
    ) -> dict[str, object]:
        """Run a role in a child of the zygote; its answer. TimedOut kills it; InvalidSpec carries its own sentence."""
        ours, theirs = wire.pair()
        pidfd = -1
        try:
            answer = await self._request(
                wire.RUN_ROLE, b"", {"role": role, "request": dict(request)}, [theirs.fileno(), *fds]
            )
            pidfd = answer.fds[0]
            theirs.close()
            try:
                async with asyncio.timeout(timeout_s):
                    message = await _first_message(ours)
            except TimeoutError:
                raise TimedOut(f"{role} did not end within {timeout_s:g} s") from None
            if message is None:
                raise Unavailable(f"{role} died")
            message.close()
            if message.kind == wire.ERROR:
                raise InvalidSpec(str(message.body.get("message", "refused")))
            return message.body
        finally:
            if pidfd >= 0:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                os.close(pidfd)
            ours.close()
            theirs.close()

    async def close(self) -> None:
        """End the zygote and its execs; monitors and containers go on."""
        self._closing = True
        if self._connection is not None:
            self._connection.close()
            await _reap(self._pid)
        os.close(self._interpreter)


def _reap_later(pid: int) -> None:
    """Reap a child when it is dead: its connection closes a moment before that."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()

    def ended() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)

    loop.add_reader(pidfd, ended)


async def _reap(pid: int) -> None:
    """Wait for a child's end; one that is reaped already is fine."""
    with suppress(ProcessLookupError, ChildProcessError):
        pidfd = os.pidfd_open(pid)
        try:
            await _until_readable(pidfd)
            os.waitpid(pid, 0)
        finally:
            os.close(pidfd)


async def _until_readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _resolve, readable)
    try:
        await readable
    finally:
        loop.remove_reader(fd)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _first_message(sock: socket) -> wire.Message | None:
    """The first message on a socket, without keeping a reader on it."""
    sock.setblocking(False)
    await _until_readable(sock.fileno())
    try:
        return wire.receive(sock)
    except OSError:
        return None


def exit_record(body: Mapping[str, object]) -> ExitRecord:
    """The model's record of a monitor's."""
    return ExitRecord(
        container_id=body["id"].decode(),  # type: ignore[attr-defined]
        pid=body["pid"],  # type: ignore[arg-type]
        started_at_ns=body["started_at_ns"],  # type: ignore[arg-type]
        ended_at_ns=body["ended_at_ns"],  # type: ignore[arg-type]
        code=body["code"],  # type: ignore[arg-type]
        signal=body["signal"],  # type: ignore[arg-type]
        oom_kills=body["oom_kills"],  # type: ignore[arg-type]
        log_bytes_lost=body["log_bytes_lost"],  # type: ignore[arg-type]
    )


def read_exit_record(directory: Path, container_id: str) -> ExitRecord | None:
    """The record that a monitor left in a sandbox directory, None when there is none."""
    place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        body = records.read(place, container_id.encode())
    finally:
        os.close(place)
    return None if body is None else exit_record(body)
