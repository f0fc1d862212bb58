"""Process 1 of a pod's shared PID namespace: it reaps, and can do nothing else.

It is Python cloned from a monitor, so it must be no target: an empty read-only root, no descriptors, no capabilities,
not dumpable, no_new_privs.
"""

from __future__ import annotations

import os
from _signal import SIG_BLOCK, pthread_sigmask, sigwaitinfo

from crishim.linux import process

_SIGNALS = frozenset(range(1, 32)) - {9, 19}


def run() -> None:
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
