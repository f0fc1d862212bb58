"""Runs the OCI hooks of a container, one after the other: in a starter, or after the end in a child of the monitor.

A hook is told the container's state on its standard input and answers by its exit code. It runs in a cgroup of its own
below the monitors', so that one that hangs is killed with all that it started; what it leaves running may live as long
as the container. Hooks are the node's administrator's programs, but those of `start_container` run inside, by the very
steps of an exec: with the user, the capabilities and the filter of the container's process.
"""

from __future__ import annotations

import fcntl
import os
import select
import time
from _socket import AF_UNIX, MSG_NOSIGNAL, MSG_PEEK, SOCK_CLOEXEC, SOCK_SEQPACKET, socket, socketpair

from crishim.cgroups import effects
from crishim.cgroups.planned import CgroupPlan
from crishim.executor import child, plan, sentences, userns
from crishim.executor.execs import clone_into
from crishim.executor.listener import Courier
from crishim.executor.lower import lower
from crishim.executor.prepare import StepFailed
from crishim.linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crishim.cgroups.hierarchy import Hierarchy
    from crishim.executor.lower import Privileges

    #: path, argv, environment (None: not given), seconds (0: not given)
    Hook = tuple[bytes, list[bytes], "list[bytes] | None", int]

#: a hook without a timeout of its own may take this long
LIMIT_S = 60
#: of the output of a hook that fails, as much is told
_TOLD_BYTES = 1024
#: stages before the container's root is entered: the host's files are still in sight
EARLY = (b"prestart", b"createRuntime", b"createContainer")
_STATUS = {
    b"prestart": b"creating",
    b"createRuntime": b"creating",
    b"createContainer": b"creating",
    b"startContainer": b"created",
    b"poststart": b"running",
    b"poststop": b"stopped",
}


class Hooks:
    """The hooks of one container, as `hook_values.py` made them; stages by OCI's names."""

    __slots__ = ("bundle", "cgroup", "hierarchy", "home", "proc", "stages", "state")

    def __init__(self, value: dict[str, object], hierarchy: Hierarchy, proc: int, home: dict[int, int]) -> None:
        """proc: the host's /proc; home: by clone flag, the namespaces of the host that the caller is not in."""
        self.stages: dict[bytes, list[Hook]] = value["stages"]  # type: ignore[assignment]
        #: of a JSON object, all but status, pid and the closing brace
        self.state: bytes = value["state"]  # type: ignore[assignment]
        self.bundle: bytes = value["bundle"]  # type: ignore[assignment]
        self.cgroup = str(value["cgroup"])
        self.hierarchy = hierarchy
        self.proc = proc
        self.home = home

    def are_early(self) -> bool:
        """Whether one wants to run before the root is entered."""
        return any(stage in self.stages for stage in EARLY)

    def run(self, stage: bytes, pid: int = 0, target: int = -1, namespaces: int = 0) -> None:
        """Run the hooks of a stage; StepFailed tells the first that fails.

        pid: the container's init, 0 when there is none; target: its pidfd, and namespaces: flags of those that it does
        not share with us, for a stage that runs in them.
        """
        for index, hook in enumerate(self.stages.get(stage, ())):
            what = f'{stage.decode()} hook {index} "{hook[0].decode("utf-8", "replace")}"'
            inside = target >= 0
            state = _state_file(self._state(stage, self._inner_pid(pid) if inside else pid))
            output, written = _pipe()
            try:
                own, pidfd = self._clone(hook, state, written, target, namespaces)
                os.close(written)
                written = -1
                self._await(own, pidfd, output, what, hook[3] or LIMIT_S)
            except OSError as error:
                raise StepFailed(f"{what}: {os.strerror(error.errno or 0).lower()}") from None
            finally:
                for fd in (state, output, written):
                    if fd >= 0:
                        os.close(fd)

    def run_inside(
        self, container: dict[str, object], pid: int, target: int, namespaces: int, privileges: Privileges
    ) -> None:
        """Run the hooks of startContainer in the container of the init `pid`, as an exec of its process would run."""
        for index, hook in enumerate(self.stages.get(b"startContainer", ())):
            what = f'startContainer hook {index} "{hook[0].decode("utf-8", "replace")}"'
            value = dict(container["process"])  # type: ignore[call-overload]
            value.update(args=hook[1], terminal=False, container_id=container["id"])
            if hook[2] is not None:
                value["env"] = hook[2]
            state = _state_file(self._state(b"startContainer", self._inner_pid(pid)))
            output, written = _pipe()
            report, reports = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
            opened = {b"target": target, b"stdin": state, b"stdout": written, b"stderr": written, b"proc": self.proc}
            try:
                cgroup = str(container["cgroup"])
                for number, path in enumerate(effects.task_files(self.hierarchy, cgroup)):
                    opened[b"procs:%d" % number] = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                steps = plan.exec_steps(value, opened, namespaces & ~process.CLONE_NEWPID)
                steps[-1] = ("execute_path", hook[0], *steps[-1][1:])
                high = fcntl.fcntl(reports.fileno(), fcntl.F_DUPFD_CLOEXEC, 10)
                program = lower(steps, privileges, high)
                directory = effects.open_dir(self.hierarchy, cgroup)
                own_pid_namespace = self.own_pid_namespace()
                join_pid = target if namespaces & process.CLONE_NEWPID else -1
                own, pidfd = clone_into(join_pid, own_pid_namespace, directory)
                if own == 0:
                    child.run(program, high)
                for fd in (high, directory, own_pid_namespace, written):
                    if fd >= 0:
                        os.close(fd)
                written = -1
                reports.close()
                self._hand_listener_over(container, pid, own, pidfd, report)
                self._await_inside(own, pidfd, output, report, steps, what, hook[3] or LIMIT_S)
            except OSError as error:
                raise StepFailed(f"{what}: {os.strerror(error.errno or 0).lower()}") from None
            finally:
                report.close()
                reports.close()
                for role, fd in opened.items():
                    if role.startswith(b"procs:"):
                        os.close(fd)
                for fd in (state, output, written):
                    if fd >= 0:
                        os.close(fd)

    def _hand_listener_over(
        self, container: dict[str, object], init: int, pid: int, pidfd: int, report: socket
    ) -> None:
        """Of a hook's own filter, which is the container's; whether it gets that far is told by who awaits it."""
        listener = container.get("listener")
        if listener is None:
            return
        while data := report.recv(4096, MSG_PEEK):
            kind, _, number = child.REPORT.unpack_from(data)
            if kind == child.FAILED:
                return
            report.recv(4096)
            if kind == child.LISTENER:
                courier = Courier(listener, self.home)  # type: ignore[arg-type]
                try:
                    courier.hand_over(b"created", init, pid, pidfd, number)
                finally:
                    courier.end()
                report.send(b"1", MSG_NOSIGNAL)
                return

    def end(self) -> None:
        """Kill what hooks have left running, and remove their cgroup."""
        try:
            effects.kill(self.hierarchy, self.cgroup)
            effects.remove(self.hierarchy, self.cgroup)
        except OSError:
            pass  # the next start or removal tries again

    def tidy(self) -> None:
        """Remove the cgroup unless a hook has left something running."""
        try:
            effects.remove(self.hierarchy, self.cgroup, tries=1)
        except OSError:
            pass

    # -- one hook ------------------------------------------------------------------------------------------------------

    def _state(self, stage: bytes, pid: int) -> bytes:
        text = self.state + b',"status":"%b"' % _STATUS[stage]
        return text + (b',"pid":%d}' % pid if pid else b"}")

    def _inner_pid(self, pid: int) -> int:
        """The number of the process in its own PID namespace."""
        fd = os.open(f"{pid}/status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc)
        try:
            for line in os.read(fd, 1 << 14).splitlines():
                if line.startswith(b"NSpid:"):
                    return int(line.split()[-1])
        finally:
            os.close(fd)
        return pid

    def own_pid_namespace(self) -> int:
        """Descriptor of the PID namespace that we are in; the caller owns it."""
        return os.open("self/ns/pid", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc)

    def _clone(self, hook: Hook, state: int, output: int, target: int, namespaces: int) -> tuple[int, int]:
        # below the cgroup where monitors are: with controllers it would take no process
        effects.create(self.hierarchy, CgroupPlan(self.cgroup, []), hand_down=False)
        directory = effects.open_dir(self.hierarchy, self.cgroup)
        own_pid_namespace = self.own_pid_namespace()
        join_pid = target if namespaces & process.CLONE_NEWPID else -1
        try:
            pid, pidfd = clone_into(join_pid, own_pid_namespace, directory)
            if pid == 0:
                self._become(hook, state, output, target, namespaces & ~process.CLONE_NEWPID)
            return pid, pidfd
        finally:
            os.close(own_pid_namespace)
            if directory >= 0:
                os.close(directory)

    def _become(self, hook: Hook, state: int, output: int, target: int, namespaces: int) -> None:
        """What the hook's process does up to its execve(2); never returns."""
        try:
            process.prctl(process.PR_SET_PDEATHSIG, 9)  # a start that is cancelled ends its hooks
            effects.join(self.hierarchy, self.cgroup, 0, unified=False)
            os.setsid()
            child.set_oom_score_adj(self.proc, b"0")
            if target >= 0:
                process.setns(target, namespaces)
                if namespaces & process.CLONE_NEWUSER:
                    userns.become_root()
            else:
                for flag, fd in self.home.items():
                    process.setns(fd, flag)
            os.umask(0o022)
            try:
                os.chdir(self.bundle)
            except PermissionError:
                os.chdir("/")  # root of a user namespace may not go there
            for place, fd in enumerate((state, output, output)):
                os.dup2(fd, place)
            child.reset_signals()
            process.close_range(3)
            path, args, env, _ = hook
            os.execve(path, args, dict(_pair(entry) for entry in env or ()))
        except OSError as error:
            os.write(2, os.strerror(error.errno or 0).lower().encode())
        finally:
            os._exit(127)

    def _await(self, pid: int, pidfd: int, output: int, what: str, limit_s: int) -> None:
        try:
            told, ended = _collect(pidfd, output, limit_s)
            if not ended:
                effects.kill(self.hierarchy, self.cgroup)
            info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        finally:
            os.close(pidfd)
        if not ended:
            raise StepFailed(f"{what}: it did not end within {limit_s} s and was killed")
        _check(info, what, told)

    def _await_inside(
        self, pid: int, pidfd: int, output: int, report: object, steps: list[plan.Step], what: str, limit_s: int
    ) -> None:
        """As `_await`; the start that fails kills the container's cgroup, and the hook's processes in it."""
        try:
            told, ended = _collect(pidfd, output, limit_s)
            if not ended:
                os.kill(pid, 9)
            info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        finally:
            os.close(pidfd)
        if not ended:
            raise StepFailed(f"{what}: it did not end within {limit_s} s and was killed")
        while data := report.recv(4096):  # type: ignore[attr-defined]
            kind, index, code = child.REPORT.unpack_from(data)
            if kind == child.FAILED:
                raise StepFailed(f"{what}: {sentences.describe(steps[index], code, data[child.REPORT.size :])}")
        _check(info, what, told)


def _collect(pidfd: int, output: int, limit_s: int) -> tuple[bytes, bool]:
    """The beginning of the output, and whether the process ended in time. A daemon of it may keep the pipe."""
    deadline = time.monotonic() + limit_s
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(output, select.POLLIN)
    told = b""
    while ready := dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000)):
        data = _read_some(output)
        told = (told + data)[:_TOLD_BYTES]
        if pidfd in ready:
            return told, True
        if not data:
            poll.unregister(output)
    return told, False


def _read_some(output: int) -> bytes:
    """What is there, as far as it can be told."""
    data = b""
    while len(data) < _TOLD_BYTES:
        try:
            part = os.read(output, 1 << 16)
        except BlockingIOError:
            break
        if not part:
            break
        data += part
    return data


def _check(info: os.waitid_result | None, what: str, told: bytes) -> None:
    assert info is not None
    if info.si_code == os.CLD_EXITED and info.si_status == 0:
        return
    how = f"exit code {info.si_status}" if info.si_code == os.CLD_EXITED else f"killed by signal {info.si_status}"
    text = " ".join(told.decode("utf-8", "replace").split())
    raise StepFailed(f"{what}: {how}{text and ': ' + text}")


def _pipe() -> tuple[int, int]:
    """Ends of a pipe: ours, which does not block, and the hook's, above the standard descriptors."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(ours, False)
    high = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(theirs)
    return ours, high


def _state_file(text: bytes) -> int:
    """The state as a file to read: no pipe, which a hook that reads nothing would leave full."""
    fd = os.memfd_create("state", os.MFD_CLOEXEC)
    os.pwrite(fd, text, 0)
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(fd)
    return high


def _pair(entry: bytes) -> tuple[bytes, bytes]:
    name, _, value = entry.partition(b"=")
    return name, value
