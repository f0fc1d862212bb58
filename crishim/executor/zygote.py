"""The zygote: one thread, everything imported and rehearsed, frozen. It forks monitors, execs and role children.

It serves one server over one socket and ends with it: a new server brings a new zygote, so new code reaches execs in
old pods at once. Monitors outlive it.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from _socket import socket

from crishim.cgroups import effects
from crishim.cgroups.hierarchy import Hierarchy
from crishim.executor import execs, rehearsal, wire
from crishim.executor.loop import Loop
from crishim.executor.lower import Privileges
from crishim.executor.monitor import Monitor
from crishim.executor.seed import Seed, make_seed
from crishim.linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from crishim.executor.execs import Exec
    from crishim.executor.wire import Message

    Role = Callable[[dict[str, object], list[int]], dict[str, object]]


class Zygote:
    """What one server's zygote holds: its socket, the seed, the roles, and the children it must reap."""

    def __init__(
        self, control: socket, hierarchy: Hierarchy, seed: Seed, privileges: Privileges, roles: dict[str, Role]
    ) -> None:
        self.control = control
        self.hierarchy = hierarchy
        self.seed = seed
        self.privileges = privileges
        self.roles = roles
        self.loop = Loop(self._reap_adopted)
        self.execs: dict[int, Exec] = {}
        #: pidfd -> pid of monitors and roles
        self.forked: dict[int, int] = {}
        self._own_pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

    def serve(self) -> None:
        """Until the server closes its end; then its execs die with it."""
        self.loop.watch(self.control.fileno(), self._receive)
        self.loop.run()
        for exec_ in self.execs.values():
            exec_.kill(self.hierarchy)

    def _receive(self) -> None:
        message = None
        try:
            message = wire.receive(self.control)
        except OSError:
            pass  # reset by a server that was killed with messages unread
        except wire.WireError as error:
            print(f"crishim zygote: {error}", file=sys.stderr)
        if message is None:
            self.loop.running = False
            return
        fds: list[int] = []
        try:
            kind, body, fds = self._answer(message)
        except OSError as error:
            text = os.strerror(error.errno or 0).lower()
            kind, body = wire.ERROR, {"message": text, "errno": error.errno or 0}
        finally:
            message.close()
        self._send(kind, message.seq, message.sandbox_id, body, fds)
        if message.kind != wire.EXEC:
            for fd in fds:
                os.close(fd)

    def _send(
        self, kind: int, seq: int, sandbox_id: bytes, body: dict[str, object], fds: list[int] | None = None
    ) -> None:
        """A server that is gone ends us, here as at the end of its stream."""
        try:
            wire.send(self.control, kind, seq, sandbox_id, body, fds or [])
        except OSError:
            self.loop.running = False

    def _answer(self, message: Message) -> tuple[int, dict[str, object], list[int]]:
        if message.kind == wire.EXEC:
            started = execs.start(message, self._own_pid_namespace, self.seed.proc, self.privileges)
            self.execs[started.pidfd] = started
            self.loop.watch(started.pidfd, lambda: self._exec_exited(started))
            return wire.OK, {"pid": started.pid, "started_at_ns": time.time_ns()}, [started.pidfd]
        if message.kind == wire.START_MONITOR:
            return self._fork(message, self._run_monitor)
        if message.kind == wire.RUN_ROLE:
            return self._fork(message, self._run_role)
        return wire.ERROR, {"message": f"the zygote does not know request {message.kind}"}, []

    def _exec_exited(self, exec_: Exec) -> None:
        info = os.waitid(os.P_PIDFD, exec_.pidfd, os.WEXITED | os.WNOHANG)
        if info is None:
            return
        self.loop.forget(exec_.pidfd)
        del self.execs[exec_.pidfd]
        exec_.close()
        killed_by = info.si_status if info.si_code != os.CLD_EXITED else None
        body: dict[str, object] = {
            "seq": exec_.seq,
            "code": info.si_status if killed_by is None else 128 + killed_by,
            "signal": killed_by,
            "ended_at_ns": time.time_ns(),
        }
        self._send(wire.EVENT_EXEC_EXITED, 0, b"", body)

    def _fork(self, message: Message, run: Callable[[Message], None]) -> tuple[int, dict[str, object], list[int]]:
        """A child that lives on as Python, by os.fork and its hooks; it answers on the message's first descriptor."""
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                self.control.close()
                self.loop.close()
                for exec_ in self.execs.values():
                    exec_.close()
                for fd in self.forked:
                    os.close(fd)
                run(message)
                code = 0
            finally:
                os._exit(code)
        pidfd = os.pidfd_open(pid)
        ours = os.dup(pidfd)
        self.forked[ours] = pid
        self.loop.watch(ours, lambda: self._forked_exited(ours))
        return wire.OK, {"pid": pid}, [pidfd]

    def _forked_exited(self, pidfd: int) -> None:
        if os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG) is not None:
            self.loop.forget(pidfd)
            os.close(pidfd)
            del self.forked[pidfd]
            self._reap_adopted()

    def _reap_adopted(self) -> None:
        """Containers of a monitor that was killed became our children, and nobody else waits for them."""
        known = {exec_.pid for exec_ in self.execs.values()} | {*self.forked.values()}
        try:
            while (info := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if info.si_pid in known:  # its own callback is about to run
                    return
                os.waitid(os.P_PID, info.si_pid, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            pass

    def _run_monitor(self, message: Message) -> None:
        """The first descriptor is the server's connection, the second the sandbox directory."""
        process.set_name(b"crishim-monitor")
        os.setsid()
        connection, directory = socket(fileno=message.fds[0]), message.fds[1]
        message.fds = []
        monitor = Monitor(message.sandbox_id, directory, self.hierarchy, self.seed, self.privileges)
        try:
            monitor.set_up(message.body)
        except OSError as error:
            monitor.tear_down()
            where = "" if error.filename is None else f" ({os.fsdecode(error.filename)})"
            text = f"setting the pod up: {os.strerror(error.errno or 0).lower()}{where}"
            wire.send(connection, wire.ERROR, 0, message.sandbox_id, {"message": text})
            return
        wire.send(connection, wire.OK, 0, message.sandbox_id, monitor.about())
        monitor.servers.serve(connection)
        monitor.loop.run()

    def _run_role(self, message: Message) -> None:
        """The first descriptor takes the answer; the rest belongs to the role."""
        process.set_name(b"crishim-" + message.body["role"].encode()[:7])  # type: ignore[attr-defined]
        answer = socket(fileno=message.fds[0])
        fds = message.fds[1:]
        message.fds = []
        process.prctl(process.PR_SET_PDEATHSIG, 9)
        _set_oom_score_adj(b"0")  # a role may work on hostile data: it must not be the last to go
        try:
            role = self.roles[message.body["role"]]  # type: ignore[index]
            result = role(message.body["request"], fds)  # type: ignore[arg-type]
            wire.send(answer, wire.OK, 0, b"", result)
        except Exception as error:
            code = error.errno or 0 if isinstance(error, OSError) else 0
            wire.send(answer, wire.ERROR, 0, b"", {"message": str(error), "errno": code})


def main(control_fd: int) -> None:
    """Entry of the zygote's interpreter: the first message on the control socket says what this node is."""
    process.default_signals()
    process.set_name(b"crishim-zygote")
    os.setsid()  # a terminal's Ctrl-C is the server's to handle
    control = socket(fileno=control_fd)
    first = wire.receive(control)
    if first is None:
        return
    arguments = first.body
    sys.path += arguments["path"]  # type: ignore[arg-type]
    hierarchy = Hierarchy.from_value(arguments["hierarchy"])  # type: ignore[arg-type]
    home = str(arguments["cgroup"])
    effects.enter(hierarchy, home)
    _set_oom_score_adj(b"-999")  # monitors must outlive a pod that runs out of memory
    roles = {name: _load(place) for name, place in arguments["roles"].items()}  # type: ignore[attr-defined]
    seed = make_seed()
    process.prctl(process.PR_SET_CHILD_SUBREAPER, 1)
    os.sched_setaffinity(0, range(os.sysconf("SC_NPROCESSORS_CONF")))  # containers must not inherit our service's mask
    privileges = Privileges(process.bounding_set(), process.capget()[1])
    rehearsal.run(seed, privileges)
    zygote = Zygote(control, hierarchy, seed, privileges, roles)
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        wire.send(control, wire.OK, 0, b"", {"pid": os.getpid()})
    except OSError:
        return  # the server did not live to see it
    zygote.serve()


def _load(place: str) -> Role:
    module, _, name = place.partition(":")
    __import__(module)
    role: Role = getattr(sys.modules[module], name)
    return role


def _set_oom_score_adj(value: bytes) -> None:
    """Without CAP_SYS_RESOURCE a value below the present one is refused, and we stay as we are."""
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value)
        finally:
            os.close(fd)
    except PermissionError:
        pass
