"""Execs: a further process in a container, one fork of the zygote, told to the server when it ends.

The request brings the pidfd of the container's init, stdin, stdout and stderr, a report socket, and the directory of
the exec's leaf cgroup; the answer takes the pidfd of the new process back.
"""

from __future__ import annotations

import fcntl
import os

from crishim.executor import child, plan
from crishim.executor.lower import lower
from crishim.linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crishim.executor.lower import Privileges
    from crishim.executor.wire import Message


class Exec:
    """A running exec of this zygote; owns the pidfd."""

    __slots__ = ("cgroup", "pid", "pidfd", "seq")

    def __init__(self, seq: int, pid: int, pidfd: int, cgroup: str) -> None:
        self.seq = seq
        self.pid = pid
        self.pidfd = pidfd
        #: the leaf that is killed when the server goes away
        self.cgroup = cgroup


def start(message: Message, own_pid_namespace: int, proc: int, privileges: Privileges) -> Exec:
    """Clone the exec of a message; OSError when the container's init is gone (ESRCH) or a clone is refused.

    The child reports to the server itself. A zygote that cannot point its children back to its own PID namespace ends.
    """
    value = message.body
    target, stdin, stdout, stderr, report, cgroup = (
        message.fds[index] if index >= 0 else -1
        for index in value["fds"]  # type: ignore[attr-defined]
    )
    opened = {b"target": target, b"stdin": stdin, b"stdout": stdout, b"stderr": stderr, b"proc": proc}
    procs = [os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in value["cgroup_procs"]]  # type: ignore[attr-defined]
    opened.update((b"procs:%d" % index, fd) for index, fd in enumerate(procs))
    high = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, 10)
    program = lower(plan.exec_steps(value, opened, value["namespaces"]), privileges, high)  # type: ignore[arg-type]
    joins_pid = bool(value["join_pid"])
    if joins_pid:
        process.setns(target, process.CLONE_NEWPID)
    try:
        pid, pidfd = process.clone3(0, cgroup)
        if pid == 0:
            child.run(program, high)
    finally:
        for fd in (high, *procs):
            os.close(fd)
        if joins_pid:
            try:
                process.setns(own_pid_namespace, process.CLONE_NEWPID)
            except OSError:
                os._exit(70)
    return Exec(message.seq, pid, pidfd, value["leaf"])  # type: ignore[arg-type]
