"""The executor's door for the server: the zygote, and through it monitors, execs and roles.

`Executor.launch` is called before grpc is imported and starts the zygote; `open` attaches to the running loop.
Descriptors that a caller hands in stay the caller's; those in answers become the caller's.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import time
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_SEQPACKET, socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from crishim.cgroups import effects, resctrl
from crishim.cgroups.hierarchy import Hierarchy, detect
from crishim.cgroups.sub_cgroups import sub_cgroups, task_files
from crishim.errors import InvalidSpec, NotFound, StartFailed, TimedOut, Unavailable
from crishim.executor import launch, listener, tables, value, wire
from crishim.executor.connection import Connection, first_message, reap, reap_later
from crishim.executor.hook_values import check_hooks, hooks_cgroup, hooks_value
from crishim.executor.listener_values import listener_value
from crishim.executor.probe import NodeFacts, probe
from crishim.executor.remote import ExecProcess, Monitor, read_exit_record
from crishim.executor.requests import ExecExit, ExecSpec, MonitoredContainer, PodSpec, StartedContainer
from crishim.executor.value import ERROR, log_level
from crishim.linux.selinux import why_refused as why_label_refused
from crishim.model.process import ContainerSpec, NamespaceKind

__all__ = [
    "ERROR",
    "ExecExit",
    "ExecProcess",
    "ExecSpec",
    "Executor",
    "Monitor",
    "MonitoredContainer",
    "PodSpec",
    "StartedContainer",
    "check_hooks",
    "log_level",
    "read_exit_record",
    "why_label_refused",
]


#: the role that runs hooks after the end of a container; `app` gives it to the zygote
POSTSTOP_ROLE = "poststop"
#: the executor's own role, which every zygote has: it hands the seccomp listener of an exec over
LISTENER_ROLE = "listener"
#: connecting and sending have bounds of their own, this is one for what has none
_LISTENER_S = 30.0
#: hooks have bounds of their own, this is one for all of them
_POSTSTOP_S = 300.0
#: a zygote that lived this long was well
_STEADY_S = 5.0
_PAUSE_LIMIT_S = 10.0
#: what a cgroup of v2 says to a process that it cannot take
_BUSY = os.strerror(errno.EBUSY).lower()

logger = logging.getLogger(__name__)


class Executor:
    """The server's zygote and what it starts."""

    def __init__(self, hierarchy: Hierarchy, node: NodeFacts, arguments: dict[str, object]) -> None:
        self.hierarchy = hierarchy
        self.node = node
        #: called after a zygote died; a fresh one is or will be started
        self.on_zygote_lost: Callable[[], None] = lambda: None
        self._arguments = arguments
        self._home = str(arguments["cgroup"])
        self._place: Callable[[int], None] | None = None
        self._interpreter = launch.sealed_interpreter()
        self._pid = 0
        self._socket: socket | None = None
        self._connection: Connection | None = None
        self._execs: dict[int, asyncio.Future[ExecExit]] = {}
        self._closing = False
        #: when the present zygote was started, and how many before it died soon after their start
        self._spawned = 0.0
        self._early_deaths = 0

    @classmethod
    def launch(cls, *, cgroup: str, roles: Mapping[str, str], place: Callable[[int], None] | None = None) -> Executor:
        """Start the zygote; to be called before grpc is imported and before there is a thread.

        cgroup: where zygote and monitors live ("/crishim.slice/monitors"); roles: name to "module:function".
        place: puts a new zygote, by its pid, into that cgroup where only another program may make it; blocking.
        Raises Unavailable when it does not come up (not root, no cgroups).
        """
        hierarchy = detect()
        known = {LISTENER_ROLE: "crishim.executor.listener:run_role", **roles}
        executor = cls(hierarchy, probe(), launch.arguments(hierarchy.to_value(), cgroup, known))
        executor._place = place
        executor._spawn()
        return executor

    @property
    def pid(self) -> int:
        """The zygote's."""
        return self._pid

    def _spawn(self) -> None:
        self._spawned = time.monotonic()
        self._pid, self._socket = launch.spawn_zygote(self._interpreter, self._arguments, self._place)

    async def open(self) -> None:
        """Attach to the running loop and wait until the zygote is ready."""
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

        self._connect(event, lost)
        await ready

    def _event(self, message: wire.Message) -> None:
        message.close()
        if message.kind != wire.EVENT_EXEC_EXITED:
            return
        body = message.body
        waiting = self._execs.pop(int(body["seq"]), None)  # type: ignore[call-overload]
        if waiting is not None and not waiting.done():
            waiting.set_result(ExecExit(body["code"], body["signal"], body["ended_at_ns"]))  # type: ignore[arg-type]

    def _connect(self, on_event: Callable[[wire.Message], None], on_lost: Callable[[], None]) -> None:
        assert self._socket is not None
        self._connection = Connection(self._socket, on_event, on_lost)

    def _lost(self) -> None:
        reap_later(self._pid)
        for waiting in self._execs.values():
            if not waiting.done():
                waiting.set_exception(Unavailable("the zygote died, and the exec with it"))
                waiting.exception()  # retrieved: nobody may be waiting
        self._execs.clear()
        if self._closing:
            return
        self._early_deaths = 0 if time.monotonic() - self._spawned > _STEADY_S else self._early_deaths + 1
        self._respawn_later()
        self.on_zygote_lost()

    def _respawn_later(self) -> None:
        """A fresh zygote: at once after a death, ever more slowly when they die young or cannot be started."""
        if self._early_deaths < 2:
            self._respawn()
        else:
            pause_s = min(0.1 * 2**self._early_deaths, _PAUSE_LIMIT_S)
            asyncio.get_running_loop().call_later(pause_s, self._respawn)

    def _respawn(self) -> None:
        if self._closing:
            return
        if self._place is not None:  # it waits for another program, which may not answer
            asyncio.get_running_loop().run_in_executor(None, self._spawn).add_done_callback(self._respawned)
            return
        try:
            self._spawn()
        except OSError as error:
            self._not_spawned(str(error.strerror))
        else:
            self._connect(self._event, self._lost)

    def _respawned(self, spawned: asyncio.Future[None]) -> None:
        """A zygote was started in a thread, or not."""
        error = spawned.exception()
        if error is not None:
            self._not_spawned(str(error))
        elif self._closing:
            assert self._socket is not None
            self._socket.close()
            reap_later(self._pid)
        else:
            self._connect(self._event, self._lost)

    def _not_spawned(self, reason: str) -> None:
        logger.error("the zygote cannot be started: %s", reason)
        self._early_deaths += 2
        self._respawn_later()

    async def _request(self, kind: int, sandbox_id: bytes, body: dict[str, object], fds: Sequence[int]) -> wire.Message:
        if self._connection is None:
            raise Unavailable("the executor is not open")
        return await self._connection.request(kind, sandbox_id, body, fds)

    async def start_monitor(self, sandbox_id: str, directory: Path, pod: PodSpec) -> Monitor:
        """Fork the monitor of a sandbox, whose directory exists; StartFailed says what could not be set up."""
        ours, theirs = wire.pair()
        place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        monitor = Monitor(sandbox_id, directory, self.hierarchy, self._home)
        try:
            answer = await self._request(
                wire.START_MONITOR, sandbox_id.encode(), pod.to_value(), [theirs.fileno(), place]
            )
            monitor.pidfd = answer.fds[0]
            theirs.close()
            message = await first_message(ours)
            if message is None or message.kind == wire.ERROR:
                text = "the monitor died" if message is None else message.body.get("message", "refused")
                raise StartFailed(str(text))
            monitor.connect(ours)
            monitor.take_about(message.body)
            return monitor
        except BaseException:
            ours.close()
            monitor.close()
            raise
        finally:
            theirs.close()
            os.close(place)

    async def adopt_monitor(self, sandbox_id: str, directory: Path) -> Monitor:
        """Connect to a monitor that outlived its server; NotFound when there is no socket or nobody behind it.

        Unsupported when it speaks a version that we do not: it must be left to a server that does.
        """
        sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK)
        try:
            place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                sock.connect(b"/proc/self/fd/%d/%b" % (place, wire.MONITOR_SOCKET))
            finally:
                os.close(place)
        except OSError as error:
            sock.close()
            raise NotFound(f"sandbox {sandbox_id} has no monitor: {error.strerror}") from None
        monitor = Monitor(sandbox_id, directory, self.hierarchy, self._home)
        monitor.connect(sock, wire.ACCEPTED_VERSIONS[0])
        try:
            await monitor.refresh()
        except BaseException:  # it does not answer, or nobody waits any more
            monitor.close()
            raise
        with suppress(ProcessLookupError):
            monitor.pidfd = os.pidfd_open(monitor.pid)
        return monitor

    async def exec(self, spec: ExecSpec) -> ExecProcess:
        """Start an exec. Its set-up goes on while this returns; `wait` raises StartFailed when it came to nothing.

        StartFailed when the container's cgroup is gone, Unavailable while there is no zygote, InvalidSpec for what
        cannot be honoured.
        """
        body = value.process_value(spec.process)
        body["container_id"] = spec.container_id.encode()
        if self._connection is None:
            raise Unavailable("the executor is not open")
        flags = 0
        for kind in spec.namespaces:
            if kind is not NamespaceKind.PID:
                flags |= tables.NAMESPACE_FLAGS[kind.value.encode()]
        leaf = f"{spec.cgroup_path}/{spec.leaf}" if spec.leaf else spec.cgroup_path
        if spec.process.sub_cgroup_paths:
            if spec.leaf:
                raise InvalidSpec(f"sub_cgroup_paths: the exec has the leaf {spec.leaf!r} of the container's cgroup")
            places = sub_cgroups(self.hierarchy, spec.cgroup_path, spec.process.sub_cgroup_paths)
            leaf = places.get(self.hierarchy.mount, leaf)
            files = task_files(self.hierarchy, places)
        else:
            # of a v1 node the leaf is in one of these trees, elsewhere they have the container's cgroup alone
            files = effects.task_files(self.hierarchy, spec.cgroup_path if self.hierarchy.mount else leaf)
        report, reports = wire.pair()
        report.setblocking(False)
        cgroup = -1
        try:
            try:
                cgroup = effects.open_dir(self.hierarchy, leaf)
            except OSError as error:
                raise StartFailed(f'the cgroup "{leaf}": {(error.strerror or "").lower()}') from None
            fds = [spec.init_pidfd]
            order = [0]
            log = spec.process.log_fd if body["log"] else None
            for fd in (spec.stdin, spec.stdout, spec.stderr, reports.fileno(), cgroup, log):
                order.append(-1 if fd is None or fd < 0 else len(fds))
                if fd is not None and fd >= 0:
                    fds.append(fd)
            body["fds"] = order
            body["namespaces"] = flags
            body["join_pid"] = NamespaceKind.PID in spec.namespaces
            body["leaf"] = leaf if spec.leaf else ""
            rdt = value.rdt_value(spec.intel_rdt, spec.container_id)
            if rdt is not None:
                files += resctrl.task_files(rdt["root"], rdt)  # type: ignore[arg-type]
            if body["initial_affinity"]:
                files += effects.birth_files(self.hierarchy, leaf)
            body["cgroup_procs"] = files
            body["nested"] = "" if spec.leaf or spec.process.sub_cgroup_paths else spec.cgroup_path
            seq = self._connection.next_seq()
            ended: asyncio.Future[ExecExit] = asyncio.get_running_loop().create_future()
            self._execs[seq] = ended
            try:
                message = await self._connection.request(
                    wire.EXEC, spec.container_id.encode(), body, fds, seq, on_late=_kill_exec
                )
            except BaseException as error:
                self._execs.pop(seq, None)
                if str(error) == _BUSY:
                    why = "it has handed controllers to cgroups below it, so that it takes no process"
                    raise StartFailed(f'the cgroup "{leaf}": {why}') from None
                raise
            started = ExecProcess(
                int(message.body["pid"]),  # type: ignore[call-overload]
                message.fds[0],
                int(message.body["started_at_ns"]),  # type: ignore[call-overload]
                ended,
                report,
            )
            started.body, started.namespaces = body, flags
            if spec.process.seccomp_listener is not None:
                reports.close()  # it is the process's alone now, or its end would not be seen
                await self._hand_listener_over(spec, started)
            return started
        except BaseException:
            report.close()
            raise
        finally:
            reports.close()
            if cgroup >= 0:
                os.close(cgroup)

    async def _hand_listener_over(self, spec: ExecSpec, started: ExecProcess) -> None:
        """The listener gets its descriptor, and the exec reaches execve(2); or it is killed, and StartFailed tells."""
        told = listener_value(spec.process, spec.container_id, spec.bundle, spec.annotations)
        assert told is not None

        async def send(number: int) -> None:
            text = listener.state(told, b"running", _pid_of(spec.init_pidfd), started.pid)
            request = {"path": told["path"], "take_s": told["take_s"], "text": text, "number": number}
            try:
                await self.run_role(LISTENER_ROLE, request, [started.pidfd], timeout_s=_LISTENER_S)
            except (InvalidSpec, TimedOut) as error:
                raise StartFailed(str(error)) from None

        try:
            await started.hand_over(send, told["limit_s"], listener.unanswered(told))  # type: ignore[arg-type]
        except BaseException:
            started.send_signal(signal.SIGKILL)
            started.close()
            raise

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
                    message = await first_message(ours)
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

    async def run_poststop(self, spec: ContainerSpec) -> None:
        """Run the hooks after the end of a container whose monitor died before; InvalidSpec tells one that failed."""
        hooks = hooks_value(spec, hooks_cgroup(self._home, spec.id))
        if hooks is not None:
            request = {"hooks": hooks, "hierarchy": self.hierarchy.to_value()}
            await self.run_role(POSTSTOP_ROLE, request, timeout_s=_POSTSTOP_S)

    @asynccontextmanager
    async def hold(self, role: str) -> AsyncIterator[int]:
        """Pid of a child of the zygote that plays a role which does not end by itself; it is killed with the block."""
        ours, theirs = wire.pair()
        try:
            answer = await self._request(wire.RUN_ROLE, b"", {"role": role, "request": {}}, [theirs.fileno()])
        finally:
            ours.close()
            theirs.close()
        pidfd = answer.fds[0]
        try:
            yield int(answer.body["pid"])  # type: ignore[call-overload]
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)

    async def close(self) -> None:
        """End the zygote and its execs; monitors and containers go on."""
        self._closing = True
        if self._connection is not None:
            self._connection.close()
            await reap(self._pid)
        os.close(self._interpreter)


def _pid_of(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))


def _kill_exec(answer: wire.Message) -> None:
    """The zygote started an exec that nobody waits for any more."""
    if answer.kind == wire.OK:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(answer.fds[0], signal.SIGKILL)
