"""A start, an exec and a batch of log lines, done once before the freeze.

What the interpreter allocates and specialises for them is then shared by every monitor instead of being copied by each
[measured: a fifth of a monitor's memory].
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, socketpair

from crishim.executor import child, plan, wire
from crishim.linux import process
from crishim.logs import format as log_format

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crishim.executor.seed import Seed

_PROCESS: dict[str, object] = {
    "args": [b"/nonexistent"],
    "env": [b"PATH=/bin", b"HOME=/"],
    "uid": 0,
    "gid": 0,
    "groups": [0],
    "umask": None,
    "cwd": b"/",
    "capabilities": [0, 0, 0, 0, 0],
    "apparmor_profile": None,
    "label": None,
    "no_new_privileges": True,
    "rlimits": [],
    "terminal": False,
    "console_width": 0,
    "console_height": 0,
    "scheduler": None,
    "io_priority": None,
    "affinity": [],
    "oom_score_adj": None,
    "seccomp": None,
    "cgroup_procs": [],
}


def run(seed: Seed) -> None:
    """Rehearse; what fails here fails for real later, with a sentence."""
    value = wire.decode(wire.encode({"process": _PROCESS, "lines": b"x" * 100}))
    assert isinstance(value, dict)
    stamp = log_format.stamp(1)
    log_format.format_lines(b"line\n" * 100, b"stdout", stamp)
    opened = {b"stdin": -1, b"stdout": -1, b"stderr": -1, b"proc": seed.proc}
    for flags in (process.CLONE_NEWNS | process.CLONE_NEWPID, process.CLONE_NEWNS):
        steps = plan.finish_steps(value["process"], opened, init=True)
        steps = [step for step in steps if step[0] != "set_stdio"]  # the seed has no /dev/null
        here, there = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        pid, pidfd = seed.clone(flags)
        if pid == 0:
            child.run(steps, there)
        there.close()
        while here.recv(4096):
            pass
        here.close()
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)
