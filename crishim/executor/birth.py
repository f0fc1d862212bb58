"""How an init is born: in which cgroup and namespaces, and with what it cannot get any more once it is in them.

A starter is here for one container only, so it joins namespaces itself and its child is born in them.
"""

from __future__ import annotations

import fcntl
import os
from _socket import socket

from crishim.cgroups import effects
from crishim.executor import child, plan, prepare, sentences
from crishim.executor.lower import lower
from crishim.executor.prepare import StepFailed
from crishim.linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crishim.executor.pod import Pod


class Started:
    """What the monitor is told: the init and the monitor's ends of its stdio."""

    __slots__ = ("outputs", "phases_ns", "pid", "pidfd", "stdin")

    def __init__(self) -> None:
        self.pid = 0
        self.pidfd = -1
        #: durations: cgroup, mounts, clone, setup
        self.phases_ns: dict[str, int] = {}
        #: (descriptor to read, stream of the log)
        self.outputs: list[tuple[int, int]] = []
        #: pipe or pty master to write to, -1 for none
        self.stdin = -1


def clone(
    pod: Pod,
    started: Started,
    container: dict[str, object],
    steps: list[plan.Step],
    ours: socket,
    reports: socket,
    roles: dict[bytes, int],
) -> None:
    """Clone the init into a copy of the seed, or of the host's mounts when hooks want to see them.

    ours, reports: both ends of the report socket; roles: what was opened, by role. StepFailed says what is refused.
    """
    report = fcntl.fcntl(reports.fileno(), fcntl.F_DUPFD_CLOEXEC, 10)
    inside = b"user" in roles
    privileges = pod.privileges.in_user_namespace() if inside else pod.privileges
    program = lower(steps, privileges, report, roles.get(b"log", -1))
    cgroup = -1
    if not container["process"]["initial_affinity"]:  # type: ignore[index]
        cgroup = effects.open_dir(pod.hierarchy, str(container["cgroup"]))
    if container["pid_namespace"] is not None:
        _enter_pid_namespace(pod, container["pid_namespace"])
    for role, fd in roles.items():  # a process of our own, so that the child is born in them
        if role.startswith(b"ns:") and role not in (b"ns:mnt", b"ns:cgroup"):
            _join(role[3:], fd)
    if b"time" in container["new_namespaces"]:  # type: ignore[operator]
        _set_clocks(pod, container["clock_offsets"])  # type: ignore[arg-type]
    flags = prepare.clone_flags(container) | process.CLONE_PARENT
    if inside:
        _enter_user_namespace(pod, container, roles)
    try:
        # who joined a user namespace does not come back to the host's mounts, and has no need to
        clone = process.clone3 if inside or b"bundle" in roles else pod.seed.clone
        started.pid, started.pidfd = clone(flags, cgroup)
    except OSError as error:
        raise StepFailed(f"clone3: {os.strerror(error.errno or 0).lower()}") from None
    if started.pid == 0:
        if container["hooks"] is not None:
            os.close(ours.fileno())  # a child that waits for hooks must see that the starter has died
        child.run(program, report)
    os.close(report)


def _join(kind: bytes, fd: int) -> None:
    try:
        process.setns(fd, 0)
    except OSError as error:
        raise StepFailed(f"joining the {kind.decode()} namespace: {os.strerror(error.errno or 0).lower()}") from None


def _set_clocks(pod: Pod, offsets: bytes) -> None:
    """A new time namespace for children; its clocks can be set only before anybody is in it."""
    try:
        process.unshare(process.CLONE_NEWTIME)
        if offsets:
            fd = os.open("self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC, dir_fd=pod.seed.proc)
            try:
                os.write(fd, offsets)
            finally:
                os.close(fd)
    except OSError as error:
        raise StepFailed(f"setting the clocks of the container: {os.strerror(error.errno or 0).lower()}") from None


def _enter_user_namespace(pod: Pod, container: dict[str, object], roles: dict[bytes, int]) -> None:
    """What only the host's root may do for the child first, by inheritance; then into the seed and the namespace."""
    process.prctl(process.PR_SET_DUMPABLE, 0)  # or a container of the pod could trace us, and what we have open
    early = plan.early_steps(container["process"], roles)  # type: ignore[arg-type]
    for step in early:
        if step == plan.real_time_step(container["process"]):  # type: ignore[arg-type]
            continue  # the child will be given it
        try:
            child.FUNCTIONS[str(step[0])](*step[1:])
        except OSError as error:
            raise StepFailed(sentences.describe(step, error.errno or 0, b"")) from None
    if b"bundle" not in roles:
        pod.seed.enter()
    _join(b"user", roles[b"user"])


def _enter_pid_namespace(pod: Pod, target: object) -> None:
    """Children will be born in the namespace of the pod's init ("pod") or of the process `target`."""
    if target == b"pod":
        if pod.init is None:
            raise StepFailed("the pod's shared PID namespace is gone")
        process.setns(pod.init[1], process.CLONE_NEWPID)
        return
    assert isinstance(target, bytes)
    other = pod.containers.get(target)
    if other is None or other.exit is not None:
        raise StepFailed(f"target container {target.decode('utf-8', 'replace')} does not run")
    process.setns(other.pidfd, process.CLONE_NEWPID)
