"""Process 1 of a pod's shared PID namespace: it reaps, and can do nothing else.

It is Python cloned from a monitor, so it must be no target: an empty read-only root, no descriptors, no capabilities,
not dumpable, no_new_privs. In a pod with a user namespace it is born there, and the PID namespace belongs to that.
"""

from __future__ import annotations

import os
from _signal import SIG_BLOCK, pthread_sigmask, sigwaitinfo

from crishim.executor import userns
from crishim.linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crishim.executor.seed import Seed
    from crishim.executor.userns import UserNamespace

_SIGNALS = frozenset(range(1, 32)) - {9, 19}


def start(seed: Seed, user: UserNamespace | None) -> tuple[int, int]:
    """(pid, pidfd) of a new one, a child of the caller."""
    flags = process.CLONE_NEWNS | process.CLONE_NEWPID
    if user is None:
        pid, pidfd = seed.clone(flags)
        if pid == 0:
            _run()
        return pid, pidfd
    told, telling = os.pipe2(os.O_CLOEXEC)
    helper, helper_pidfd = process.clone3(0)  # who has joined a user namespace does not come back
    if helper == 0:
        _start_inside(seed, user, telling)
    os.close(telling)
    try:
        answer = os.read(told, 16)
    finally:
        os.close(told)
        os.waitid(os.P_PIDFD, helper_pidfd, os.WEXITED)
        os.close(helper_pidfd)
    pid = int(answer or b"-3")  # ESRCH: the helper was killed
    if pid < 0:
        raise OSError(-pid, os.strerror(-pid))
    return pid, os.pidfd_open(pid)


def _start_inside(seed: Seed, user: UserNamespace, telling: int) -> None:
    try:
        process.prctl(process.PR_SET_DUMPABLE, 0)  # or a container of the pod could trace us, and what we have open
        seed.enter()
        process.setns(user.fd, process.CLONE_NEWUSER)
        pid, _ = process.clone3(process.CLONE_NEWNS | process.CLONE_NEWPID | process.CLONE_PARENT)
        if pid == 0:
            userns.become_root()
            _run()
        os.write(telling, b"%d" % pid)
    except OSError as error:
        os.write(telling, b"-%d" % (error.errno or 0))
    finally:
        os._exit(0)


def _run() -> None:
    """Reap until killed; never returns."""
    try:
        os.setsid()
        process.set_name(b"crishim-podinit")
        process.prctl(process.PR_SET_DUMPABLE, 0)
        process.close_range(0)
        process.prctl(process.PR_SET_NO_NEW_PRIVS, 1)
        for capability in range(process.bounding_set().bit_length()):
            process.prctl(process.PR_CAPBSET_DROP, capability)
        process.capset(0, 0, 0)
        process.prctl(process.PR_SET_PDEATHSIG, 9)
        # process 1 gets no signal whose action is the default; blocked, they wait until sigwaitinfo takes them
        pthread_sigmask(SIG_BLOCK, _SIGNALS)
        while True:
            _reap()
            sigwaitinfo(_SIGNALS)
    finally:
        os._exit(70)


def _reap() -> None:
    try:
        while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG) is not None:
            pass
    except ChildProcessError:
        pass
