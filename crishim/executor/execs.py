"""Execs: a further process in a container, one fork of the zygote, told to the server when it ends.

The request brings the pidfd of the container's init, stdin, stdout and stderr, a report socket, and the directory of
the exec's leaf cgroup; the answer takes the pidfd of the new process back.
"""

from __future__ import annotations

import errno
import fcntl
import os
from _signal import pidfd_send_signal

from crishim.cgroups import effects
from crishim.executor import child, plan, userns
from crishim.executor.lower import lower
from crishim.linux import fs, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crishim.cgroups.hierarchy import Hierarchy
    from crishim.executor.lower import Privileges
    from crishim.executor.wire import Message


class Exec:
    """A running exec of this zygote; owns its descriptors."""

    __slots__ = ("_directory", "_leaf", "pid", "pidfd", "seq")

    def __init__(self, seq: int, pid: int, pidfd: int, leaf: str, directory: int) -> None:
        self.seq = seq
        self.pid = pid
        self.pidfd = pidfd
        self._leaf = leaf
        #: of the leaf, in the v2 tree; -1 on a v1 node
        self._directory = directory

    def close(self) -> None:
        """Let go of the descriptors; the process goes on."""
        os.close(self.pidfd)
        if self._directory >= 0:
            os.close(self._directory)

    def kill(self, hierarchy: Hierarchy) -> None:
        """Kill it with all that it started; what is gone is fine.

        By the directory's descriptor: the next server may already have made a new leaf of the same name for an exec of
        its own, which must not die for ours.
        """
        try:
            pidfd_send_signal(self.pidfd, 9)
            if self._leaf and self._directory >= 0:
                fd = os.open("cgroup.kill", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._directory)
                try:
                    os.write(fd, b"1")
                finally:
                    os.close(fd)
            elif self._leaf:
                effects.kill(hierarchy, self._leaf)
        except OSError:
            pass


def clone_into(target: int, own_pid_namespace: int, cgroup: int) -> tuple[int, int]:
    """clone3 into the cgroup, and into the PID namespace of the process of pidfd `target` unless it is -1."""
    if target < 0:
        return process.clone3(0, cgroup)
    process.setns(target, process.CLONE_NEWPID)
    try:
        pid, pidfd = process.clone3(0, cgroup)
    except OSError:
        _point_back(own_pid_namespace)
        raise
    if pid:
        _point_back(own_pid_namespace)
    return pid, pidfd


def _point_back(own_pid_namespace: int) -> None:
    try:
        process.setns(own_pid_namespace, process.CLONE_NEWPID)
    except OSError:
        os._exit(70)  # every later child would be born in a stranger's namespace


def _give_pipes(fds: tuple[int, ...], uid: int, target: int, namespaces: int, proc: int) -> None:
    """To the user `uid` of the process's user namespace: its init is the process of pidfd `target`."""
    if namespaces & process.CLONE_NEWUSER:
        uid = _outside(uid, target, proc)
    if uid:
        for fd in fds:
            if fd >= 0:
                fs.give_pipe(fd, uid)


def _outside(uid: int, target: int, proc: int) -> int:
    """The host's number of a uid in the user namespace of a process; 0 when it has none, and set-up will say so."""
    fd = os.open(_pid_of(target) + b"/uid_map", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    try:
        return userns.outside([[int(word) for word in line.split()] for line in os.read(fd, 1 << 16).splitlines()], uid)
    except OSError:
        return 0
    finally:
        os.close(fd)


def _pid_of(pidfd: int) -> bytes:
    with open(f"/proc/self/fdinfo/{pidfd}", "rb") as info:
        return next(line.split()[1] for line in info if line.startswith(b"Pid:"))


def _where_init_went(cgroup: int, path: str, target: int, proc: int) -> int:
    """Directory of the v2 cgroup that the container's init is in now, below the container's own, `path`.

    A container that may write its cgroup, an init system above all, hands controllers to cgroups below and moves its
    processes there: then its own cgroup takes no process any more (cgroups(7), "no internal processes"). OSError
    (EBUSY) when its init is not below.
    """
    fd = os.open(_pid_of(target) + b"/cgroup", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    try:
        lines = os.read(fd, 1 << 16).splitlines()
    finally:
        os.close(fd)
    now = next((line[3:] for line in lines if line.startswith(b"0::")), b"")
    own = os.fsencode(path.rstrip("/")) + b"/"
    if not now.startswith(own) or b".." in now.split(b"/"):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    return os.open(now[len(own) :], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=cgroup)


def start(message: Message, own_pid_namespace: int, proc: int, privileges: Privileges) -> Exec:
    """Clone the exec of a message; OSError when the container's init is gone (ESRCH) or a clone is refused.

    The child reports to the server itself. A zygote that cannot point its children back to its own PID namespace ends.
    """
    value = message.body
    target, stdin, stdout, stderr, report, cgroup, log = (
        message.fds[index] if index >= 0 else -1
        for index in value["fds"]  # type: ignore[attr-defined]
    )
    opened = {b"target": target, b"stdin": stdin, b"stdout": stdout, b"stderr": stderr, b"proc": proc}
    ours: list[int] = []
    try:
        for index, path in enumerate(value["cgroup_procs"]):  # type: ignore[arg-type, var-annotated]
            ours.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
            opened[b"procs:%d" % index] = ours[-1]
        high = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, 10)
        ours.append(high)
        namespaces: int = value["namespaces"]  # type: ignore[assignment]
        _give_pipes((stdin, stdout, stderr), value["uid"], target, namespaces, proc)  # type: ignore[arg-type]
        if namespaces & process.CLONE_NEWUSER:
            privileges = privileges.in_user_namespace()
        program = lower(plan.exec_steps(value, opened, namespaces), privileges, high, log)
        # with an initial affinity it joins the cgroup by itself, later
        born_in = -1 if value["initial_affinity"] else cgroup
        into = target if value["join_pid"] else -1
        try:
            pid, pidfd = clone_into(into, own_pid_namespace, born_in)
        except OSError as error:
            # a server of an earlier version does not say it
            if error.errno != errno.EBUSY or not value.get("nested"):
                raise
            ours.append(_where_init_went(cgroup, str(value["nested"]), target, proc))
            pid, pidfd = clone_into(into, own_pid_namespace, ours[-1])
        if pid == 0:
            child.run(program, high)
    finally:
        for fd in ours:
            os.close(fd)
    directory = os.dup(cgroup) if cgroup >= 0 else -1
    return Exec(message.seq, pid, pidfd, value["leaf"], directory)  # type: ignore[arg-type]
