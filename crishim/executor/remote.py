"""Processes of the executor as the server holds them: a pod's monitor, a started exec (part of the executor's door)."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from _socket import MSG_CMSG_CLOEXEC, MSG_NOSIGNAL, SCM_RIGHTS, SOL_SOCKET, socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from crishim.cgroups.hierarchy import Hierarchy
from crishim.errors import StartFailed, Unavailable
from crishim.executor import child, plan, records, scheduling, sentences, value, wire
from crishim.executor.connection import Connection, until_readable
from crishim.executor.hook_values import hooks_cgroup, hooks_value
from crishim.executor.listener_values import listener_value
from crishim.executor.requests import ExecExit, MonitoredContainer, StartedContainer
from crishim.model.exit import ExitRecord
from crishim.model.process import ContainerSpec

logger = logging.getLogger(__name__)


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
        #: a pty master that came before somebody asked for it
        self._console = -1

    async def console(self) -> int:
        """The pty master of an exec with `terminal`; the caller owns it. StartFailed when it came to nothing."""
        while self._console < 0:
            kind, _ = await self._next_report()
            if not kind:
                raise StartFailed("the process ended before it had a terminal")
        master, self._console = self._console, -1
        return master

    async def _next_report(self) -> tuple[int, int]:
        """(kind, code) of the next report, a pty master is kept; kind 0: there are no more. StartFailed tells one."""
        await until_readable(self._report.fileno())
        data, ancillary, _, _ = self._report.recvmsg(4096, 64, MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if level == SOL_SOCKET and kind == SCM_RIGHTS:
                self._console = int.from_bytes(content[:4], "little")
        if not data:
            return 0, 0
        told, _, code = child.REPORT.unpack_from(data)
        if told == child.FAILED:
            raise StartFailed(self._describe(data))
        return told, code

    async def hand_over(self, send: Callable[[int], Awaitable[None]], limit_s: float, unanswered: str) -> None:
        """Wait until the exec has loaded a filter with a listener and reached execve(2); its end is fine too.

        send: gives the listener its descriptor, which has the number given in the process. StartFailed when that fails,
        and with the text `unanswered` when the process needs longer than `limit_s` from then on.
        """
        kind, number = await self._next_report()
        while kind not in (0, child.LISTENER):
            kind, number = await self._next_report()
        if not kind:
            return
        await send(number)
        with suppress(BrokenPipeError):
            self._report.send(b"1", MSG_NOSIGNAL)
        try:
            async with asyncio.timeout(limit_s):
                while (await self._next_report())[0]:
                    pass
        except TimeoutError:
            raise StartFailed(unanswered) from None

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
        files: list[bytes] = procs  # type: ignore[assignment]
        return sentences.describe(steps[index], code, report[child.REPORT.size :]) + scheduling.cause(
            steps[index], code, files
        )

    def send_signal(self, number: int) -> None:
        """Signal this process; one that is gone is fine."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def close(self) -> None:
        """Let go of the descriptors; the process goes on."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self._report.close()
            if self._console >= 0:
                os.close(self._console)
            self.pidfd = self._console = -1


class Monitor:
    """The server's side of one pod's monitor."""

    def __init__(self, sandbox_id: str, directory: Path, hierarchy: Hierarchy, home: str) -> None:
        """home: the cgroup of the monitors, below which hooks run."""
        self.sandbox_id = sandbox_id
        self.pid = 0
        self.pidfd = -1
        #: of the crishim that started it, "" until it has told
        self.version = ""
        self.wire_version = 0
        self.began_at_ns = 0
        self.containers: dict[str, MonitoredContainer] = {}
        self.pod_init_died = False
        #: called with each exit record, after the monitor has written it
        self.on_exit: Callable[[ExitRecord], None] = lambda record: None
        #: called with a container whose start an earlier server had asked for; its pidfd is the receiver's
        self.on_started: Callable[[MonitoredContainer], None] = _drop_started
        #: called when the reaping init of a shared PID namespace died, and every process of the pod with it
        self.on_pod_init_exited: Callable[[], None] = lambda: None
        #: called once when the monitor is gone without having been stopped
        self.on_lost: Callable[[], None] = lambda: None
        self._directory = directory
        self._hierarchy = hierarchy
        self._home = home
        self._connection: Connection | None = None
        self._id = sandbox_id.encode()
        self._stopped = False

    def connect(self, sock: socket, version: int = wire.VERSION) -> None:
        """Serve this socket on the running loop, in `version` until the monitor has told its own."""
        self._connection = Connection(sock, self._event, self._gone)
        self._connection.version = version

    def _event(self, message: wire.Message) -> None:
        if message.kind == wire.EVENT_CONTAINER_STARTED:
            self.on_started(_monitored(message.body, message.fds.pop()))
        message.close()
        if message.kind == wire.EVENT_CONTAINER_EXITED:
            self.on_exit(exit_record(message.body))
        elif message.kind == wire.EVENT_POD_INIT_EXITED:
            self.on_pod_init_exited()
        elif message.kind == wire.EVENT_NOTE:
            logger.error("sandbox %s: %s", self.sandbox_id, message.body.get("message"))

    def _gone(self) -> None:
        if not self._stopped:
            self.close()  # its pidfd too: nobody has a use for it
            self.on_lost()

    async def _request(self, kind: int, body: dict[str, object], fds: Sequence[int] = ()) -> wire.Message:
        if self._connection is None:
            raise Unavailable(f"sandbox {self.sandbox_id} has no monitor")
        return await self._connection.request(kind, self._id, body, fds)

    async def start_container(
        self, spec: ContainerSpec, *, pid_target: str | None = None, stdio: Sequence[int | None] = ()
    ) -> StartedContainer:
        """Start the init process of a container.

        pid_target: "pod" for the pod's shared PID namespace, the id of a container of this pod for its namespace, None
        for a new one (NamespaceKind.PID in the spec) or the host's. stdio: stdin, stdout and stderr instead of a log,
        None is the container's /dev/null.
        Raises StartFailed with a sentence (nothing is left), InvalidSpec for a field that cannot be honoured.
        """
        container = value.container_value(spec, self._hierarchy)
        container["pid_namespace"] = pid_target and pid_target.encode()
        container["hooks"] = hooks_value(spec, hooks_cgroup(self._home, spec.id))
        container["listener"] = listener_value(spec.process, spec.id, spec.bundle, spec.annotations)
        standard = zip((b"stdin", b"stdout", b"stderr"), stdio, strict=False)
        named = [(name, fd) for name, fd in standard if fd is not None]
        log = spec.process.log_fd if container["process"]["log"] else None  # type: ignore[index]
        handles = ((b"console", spec.process.console_socket), (b"pidfd", spec.process.pidfd_socket), (b"log", log))
        for name, fd in handles:
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
            "hooks": container["hooks"],
            "rdt": container["rdt"],
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
        """Ask what the monitor holds and fill `containers`, `pid` and `pod_init_died`."""
        message = await self._request(wire.STATE, {})
        body = message.body
        self.take_about(body)
        self.containers = {}
        for entry in body["containers"]:  # type: ignore[attr-defined]
            container = _monitored(entry, message.fds[entry["pidfd"]] if "pidfd" in entry else None)
            self.containers[container.id] = container
        self.pod_init_died = bool(body["pod_init_died"])

    def take_about(self, body: Mapping[str, Any]) -> None:
        """What a monitor tells of itself; from now on it is spoken to in the version that both know."""
        self.pid = int(body["pid"])
        self.version = str(body.get("version", ""))
        self.wire_version = int(body.get("wire_version", 0))
        self.began_at_ns = int(body.get("began_at_ns", 0))
        if self._connection is not None and self.wire_version:
            self._connection.version = min(wire.VERSION, self.wire_version)

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


def _monitored(entry: Mapping[str, Any], pidfd: int | None) -> MonitoredContainer:
    ended = entry.get("exit")
    return MonitoredContainer(
        id=entry["id"].decode(),
        pid=entry["pid"],
        pidfd=pidfd,
        started_at_ns=entry["started_at_ns"],
        exit=None if ended is None else exit_record(ended),
    )


def _drop_started(container: MonitoredContainer) -> None:
    if container.pidfd is not None:
        os.close(container.pidfd)


def exit_record(body: Mapping[str, Any]) -> ExitRecord:
    """The model's record of a monitor's."""
    return ExitRecord(
        container_id=body["id"].decode(),
        pid=body["pid"],
        started_at_ns=body["started_at_ns"],
        ended_at_ns=body["ended_at_ns"],
        code=body["code"],
        signal=body["signal"],
        oom_kills=body["oom_kills"],
        log_bytes_lost=body["log_bytes_lost"],
    )


def read_exit_record(directory: Path, container_id: str) -> ExitRecord | None:
    """The record that a monitor left in a sandbox directory, None when there is none."""
    place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        body = records.read(place, container_id.encode())
    finally:
        os.close(place)
    return None if body is None else exit_record(body)
