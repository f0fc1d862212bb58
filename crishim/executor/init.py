"""An init process: started by the monitor, watched until its end, its output pumped into the log."""

from __future__ import annotations

import array
import fcntl
import os
import time
from _signal import pidfd_send_signal
from _socket import AF_UNIX, MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOCK_CLOEXEC, SOCK_SEQPACKET, SOL_SOCKET, socket, socketpair

from crishim.cgroups import effects
from crishim.cgroups.planned import CgroupPlan
from crishim.executor import child, plan, prepare
from crishim.executor.attach import Client, set_size, write_some
from crishim.executor.lower import lower
from crishim.executor.prepare import Opened, StepFailed
from crishim.linux import process
from crishim.logs.writer import LogWriter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from crishim.executor.loop import Loop
    from crishim.executor.monitor import Monitor
    from crishim.executor.wire import Message

_READ_BYTES = 1 << 18
#: a pipe that was found full is given this size, so that a flood costs fewer wake-ups
_FLOOD_PIPE_BYTES = 1 << 18
_DEFAULT_PIPE_BYTES = 1 << 16
#: reads of one pipe before other descriptors have their turn
_TURNS = 4


class InitProcess:
    """A started container. Owns its pidfd, its output pipes (or pty master), its stdin pipe and its log."""

    __slots__ = (
        "cgroup",
        "clients",
        "exit",
        "id",
        "log",
        "outputs",
        "own_pid_namespace",
        "phases_ns",
        "pid",
        "pidfd",
        "started_at_ns",
        "stdin",
        "stdin_once",
        "stdin_pending",
        "terminal",
    )

    def __init__(self, container_id: bytes, cgroup: str, own_pid_namespace: bool) -> None:
        self.id = container_id
        self.cgroup = cgroup
        self.own_pid_namespace = own_pid_namespace
        self.pid = 0
        self.pidfd = -1
        self.started_at_ns = 0
        #: durations: cgroup, mounts, clone, setup
        self.phases_ns: dict[str, int] = {}
        #: descriptor to read -> stream number of the log (1 stdout, 2 stderr)
        self.outputs: dict[int, int] = {}
        self.stdin = -1
        self.stdin_once = False
        #: what a client sent and the container has not taken yet
        self.stdin_pending = b""
        self.terminal = False
        self.clients: list[Client] = []
        self.log: LogWriter | None = None
        #: the exit record, None while it runs
        self.exit: dict[str, object] | None = None

    def watch_output(self, loop: Loop) -> None:
        """Pump the output into the log as it comes."""
        for fd, stream in self.outputs.items():
            loop.watch(fd, self._pump_of(loop, fd, stream))

    def _pump_of(self, loop: Loop, fd: int, stream: int) -> Callable[[], None]:
        def pump() -> None:
            self._pump(loop, fd, stream, _TURNS)

        return pump

    def _pump(self, loop: Loop, fd: int, stream: int, turns: int) -> bool:
        """Read up to `turns` times; whether the stream ended."""
        while turns:
            try:
                data = os.read(fd, _READ_BYTES)
            except BlockingIOError:
                return False
            except OSError:  # EIO: the last process with the terminal open is gone
                data = b""
            if not data:
                self._end(loop, fd, stream)
                return True
            if self.log is not None:
                self.log.feed(stream, data)
            for client in list(self.clients):
                client.send(stream, data)
            if len(data) == _DEFAULT_PIPE_BYTES and not self.terminal:
                _enlarge(fd)
            turns -= 1
        return False

    def _end(self, loop: Loop, fd: int, stream: int) -> None:
        loop.forget(fd)
        os.close(fd)
        del self.outputs[fd]
        if self.log is not None:
            self.log.end(stream)

    def drain(self, loop: Loop) -> None:
        """Read what is still in the pipes of an ended process, then let go of them.

        A process outside of the container may hold a pipe; what it writes from now on is not the container's.
        """
        for fd, stream in list(self.outputs.items()):
            if not self._pump(loop, fd, stream, 64):
                self._end(loop, fd, stream)
        self._close_stdin(loop)
        for client in list(self.clients):
            client.end()
        if self.log is not None:
            self.log.close()

    def attach(self, loop: Loop) -> int:
        """The other end of a new client; the caller owns it. StepFailed when the container has ended."""
        if self.exit is not None:
            raise StepFailed("the container has ended")
        ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        self.clients.append(Client(loop, self, ours))
        return theirs.detach()

    def feed_stdin(self, loop: Loop, data: bytes) -> None:
        """Write to the container's stdin; what does not fit waits, and the clients with it."""
        if self.stdin < 0:
            return
        os.set_blocking(self.stdin, False)
        rest = data[write_some(self.stdin, data) :]
        if rest:
            self.stdin_pending = rest
            loop.watch_writable(self.stdin, lambda: self._flush_stdin(loop))
            for client in self.clients:
                loop.pause(client.fd, True)

    def _flush_stdin(self, loop: Loop) -> None:
        self.stdin_pending = self.stdin_pending[write_some(self.stdin, self.stdin_pending) :]
        if not self.stdin_pending:
            loop.forget(self.stdin)
            for client in self.clients:
                loop.pause(client.fd, False)

    def client_stdin_ended(self, loop: Loop) -> None:
        """A client closed its side; with CRI's stdin_once that is the end of the container's stdin."""
        if self.stdin_once and not self.terminal:
            self._close_stdin(loop)

    def _close_stdin(self, loop: Loop) -> None:
        if self.stdin >= 0:
            loop.forget(self.stdin)
            os.close(self.stdin)
            self.stdin = -1
        self.stdin_pending = b""

    def resize(self, rows: int, columns: int) -> None:
        """Window size of the container's terminal."""
        if self.terminal and self.stdin >= 0:
            set_size(self.stdin, rows, columns)

    def reopen_log(self) -> None:
        """ReopenContainerLog: the log was renamed. StepFailed when the process has none; OSError keeps the old file."""
        if self.log is None or self.exit is not None:
            raise StepFailed("the container has no open log")
        self.log.reopen()

    def log_bytes_lost(self) -> int:
        """Bytes of output that could not be written."""
        return 0 if self.log is None else self.log.bytes_lost

    def close(self, loop: Loop) -> None:
        """Let go of everything."""
        for fd in list(self.outputs):
            loop.forget(fd)
            os.close(fd)
        self.outputs = {}
        for client in list(self.clients):
            client.close()
        self._close_stdin(loop)
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def _enlarge(fd: int) -> None:
    try:
        fcntl.fcntl(fd, 1031, _FLOOD_PIPE_BYTES)  # F_SETPIPE_SZ
    except OSError:
        pass  # EPERM: the user's share of pipe pages is used up


def start(monitor: Monitor, message: Message) -> InitProcess:
    """Start a container: cgroup, sources, clone, and the child's report. StepFailed has the sentence; nothing is left.

    The message brings the descriptors of a library caller; "descriptors" names each of them.
    """
    container = message.body
    init = InitProcess(
        container["id"],  # type: ignore[arg-type]
        container["cgroup"],  # type: ignore[arg-type]
        b"pid" in container["new_namespaces"],  # type: ignore[operator]
    )
    opened = Opened()
    times = [time.monotonic_ns()]
    ours: list[int] = []
    try:
        _make_cgroup(monitor, container)
        times.append(time.monotonic_ns())
        _open_sources(monitor, init, message, opened, ours)
        steps = plan.init_steps(container, opened.by_role)
        times.append(time.monotonic_ns())
        report, reports = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        try:
            _clone(monitor, init, container, steps, opened, reports)
            reports.close()
            times.append(time.monotonic_ns())
            _await_report(init, steps, report, opened.by_role)
        finally:
            reports.close()
            report.close()
        times.append(time.monotonic_ns())
        if b"pidfd" in opened.by_role:
            _send_descriptor(opened.by_role[b"pidfd"], init.pidfd, b"standard")
    except BaseException:
        _undo(monitor, init, ours)
        raise
    finally:
        opened.close()
    init.started_at_ns = time.time_ns()
    names = ("cgroup", "mounts", "clone", "setup")
    init.phases_ns = {name: after - before for name, before, after in zip(names, times, times[1:])}
    return init


def _make_cgroup(monitor: Monitor, container: dict[str, object]) -> None:
    try:
        effects.create(monitor.hierarchy, CgroupPlan.from_value(container["cgroup_plan"]))  # type: ignore[arg-type]
    except OSError as error:
        raise StepFailed(f'making the cgroup "{container["cgroup"]}": {error.strerror or error}') from None


def _open_sources(monitor: Monitor, init: InitProcess, message: Message, opened: Opened, ours: list[int]) -> None:
    container = message.body
    process_ = container["process"]
    assert isinstance(process_, dict)
    roles = opened.by_role
    prepare.open_namespaces(container, opened)
    prepare.open_mounts(container, opened)
    try:
        roles[b"root"] = prepare.open_root(container["rootfs"])  # type: ignore[arg-type]
    except OSError as error:
        raise StepFailed(f"mounting the root file system: {os.strerror(error.errno or 0).lower()}") from None
    for index, path in enumerate(effects.procs_files(monitor.hierarchy, init.cgroup)):
        roles[b"procs:%d" % index] = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    for index, item in enumerate(container["mounts"]):  # type: ignore[arg-type, var-annotated]
        if item["kind"] == b"cgroup":
            prepare.open_cgroups(monitor.hierarchy, init.cgroup, index, item, opened)
    roles[b"proc"] = os.dup(monitor.seed.proc)
    init.terminal = bool(process_["terminal"])
    _open_stdio(init, message, opened, ours)


def _open_stdio(init: InitProcess, message: Message, opened: Opened, ours: list[int]) -> None:
    """Pipes to the log, or the caller's descriptors; -1 is the container's /dev/null."""
    container = message.body
    roles = opened.by_role
    given = list(message.fds)
    message.fds = []
    for name in (b"stdin", b"stdout", b"stderr"):
        roles[name] = -1
    # what the caller's descriptors are, in order: "stdin", "stdout", "stderr", "console", "pidfd", "extra"
    for index, (name, fd) in enumerate(zip(container["descriptors"], given)):  # type: ignore[call-overload]
        roles[b"extra:%d" % index if name == b"extra" else name] = fd
    log = container["log"]
    if b"stdout" in container["descriptors"] or not (log or container["stdin"] or init.terminal):  # type: ignore[operator]
        return
    init.stdin_once = bool(container["stdin_once"])
    if log:
        assert isinstance(log, list)
        init.log = LogWriter(log[0], log[1])
        try:
            init.log.open()
        except OSError as error:
            path = (log[0] + b"/" + log[1]).decode("utf-8", "replace")
            raise StepFailed(f'opening the log "{path}": {os.strerror(error.errno or 0).lower()}') from None
    if not init.terminal:
        for stream, name in ((1, b"stdout"), (2, b"stderr")):
            ours_end, theirs = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(ours_end, False)
            roles[name] = theirs
            init.outputs[ours_end] = stream
            ours.append(ours_end)
    if container["stdin"] and not init.terminal:
        roles[b"stdin"], init.stdin = os.pipe2(os.O_CLOEXEC)


def _clone(
    monitor: Monitor,
    init: InitProcess,
    container: dict[str, object],
    steps: list[plan.Step],
    opened: Opened,
    reports: socket,
) -> None:
    report = fcntl.fcntl(reports.fileno(), fcntl.F_DUPFD_CLOEXEC, 10)
    program = lower(steps, monitor.privileges, report)
    cgroup = effects.open_dir(monitor.hierarchy, init.cgroup)
    target = container["pid_namespace"]  # an open pidfd of ours, by pid; None is a new or the host's
    host_pid = -1
    try:
        if target is not None:
            host_pid = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
            _enter_pid_namespace(monitor, target)
        try:
            init.pid, init.pidfd = monitor.seed.clone(prepare.clone_flags(container), cgroup)
        except OSError as error:
            raise StepFailed(f"clone3: {os.strerror(error.errno or 0).lower()}") from None
        if init.pid == 0:
            child.run(program, report)
    finally:
        os.close(report)
        if cgroup >= 0:
            os.close(cgroup)
        if host_pid >= 0:
            try:
                process.setns(host_pid, process.CLONE_NEWPID)
            except OSError:
                os._exit(70)  # every later child would be born in a stranger's namespace
            os.close(host_pid)


def _enter_pid_namespace(monitor: Monitor, target: object) -> None:
    """Children will be born in the namespace of the pod's init ("pod") or of the process `target`."""
    if target == b"pod":
        if monitor.pod_init is None:
            raise StepFailed("the pod's shared PID namespace is gone")
        process.setns(monitor.pod_init[1], process.CLONE_NEWPID)
        return
    assert isinstance(target, bytes)
    other = monitor.containers.get(target)
    if other is None or other.exit is not None:
        raise StepFailed(f"target container {target.decode('utf-8', 'replace')} does not run")
    process.setns(other.pidfd, process.CLONE_NEWPID)


def _await_report(init: InitProcess, steps: list[plan.Step], report: socket, roles: dict[bytes, int]) -> None:
    """Until the child reached execve(2) (end of file) or told what failed."""
    ready = False
    while True:
        data, ancillary, _, _ = report.recvmsg(4096, 64, MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if level == SOL_SOCKET and kind == SCM_RIGHTS:
                _take_console(init, int.from_bytes(content[:4], "little"), roles)
        if not data and ready:
            return
        if not data:
            raise StepFailed("the process was killed while it was being set up (is its memory limit too low?)")
        kind, index, code = child.REPORT.unpack_from(data)
        ready = ready or kind == child.READY
        if kind == child.FAILED:
            raise StepFailed(plan.describe(steps[index], code, data[child.REPORT.size :]))


def _send_descriptor(sock: int, fd: int, text: bytes) -> None:
    """Hand a descriptor to a caller's socket, as libcontainer's console and pidfd sockets get theirs."""
    peer = socket(fileno=os.dup(sock))
    try:
        peer.sendmsg([text], [(SOL_SOCKET, SCM_RIGHTS, array.array("i", [fd]))])
    finally:
        peer.close()


def _take_console(init: InitProcess, master: int, roles: dict[bytes, int]) -> None:
    if b"console" in roles:
        _send_descriptor(roles[b"console"], master, b"console")
        os.close(master)
        return
    os.set_blocking(master, False)
    init.outputs[master] = 1
    init.stdin = os.dup(master)


def _undo(monitor: Monitor, init: InitProcess, ours: list[int]) -> None:
    """Nothing of a failed start stays: neither the process nor descriptors nor the cgroup."""
    if init.pidfd >= 0:
        try:
            pidfd_send_signal(init.pidfd, 9)
        except ProcessLookupError:
            pass
        os.waitid(os.P_PIDFD, init.pidfd, os.WEXITED)
        os.close(init.pidfd)
        init.pidfd = -1
    for fd in {*ours, *init.outputs}:
        os.close(fd)
    init.outputs = {}
    if init.stdin >= 0:
        os.close(init.stdin)
        init.stdin = -1
    if init.log is not None:
        init.log.close()
    effects.remove(monitor.hierarchy, init.cgroup)
