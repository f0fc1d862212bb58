"""A start, an exec and a batch of log lines, done many times before the freeze.

CPython specialises bytecode in place after some runs, and fills its free lists; done here, those pages are shared by
every monitor instead of being copied by each. What is rehearsed are the real functions on the value of a plain
container; only what would leave a trace (cgroups, a root, an execve) is left out.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, socketpair

from crishim.executor import child, plan, prepare, wire
from crishim.executor.loop import Loop
from crishim.executor.lower import lower
from crishim.linux import process
from crishim.logs import format as log_format

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crishim.executor.lower import Privileges
    from crishim.executor.seed import Seed

#: enough for every inline cache to be specialised
_ROUNDS = 24

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
    "initial_affinity": [],
    "affinity": [],
    "log": False,
    "memory_policy": None,
    "personality": None,
    "oom_score_adj": None,
    "seccomp": None,
}


def _mount(target: bytes, kind: bytes, source: bytes = b"") -> dict[str, object]:
    return {
        "target": target,
        "kind": kind,
        "source": source,
        "flags": [b"nosuid", b"ro"],
        "options": [b"mode=755"],
        "propagation": b"rprivate",
        "private": True,
        "recursive": True,
        "idmap": False,
        "copy_up": False,
    }


_CONTAINER: dict[str, object] = {
    "id": b"rehearsal",
    "process": _PROCESS,
    "rootfs": {
        "path": b"/proc",
        "lowers": [],
        "upper": None,
        "work": None,
        "readonly": True,
        "propagation": b"rprivate",
    },
    "new_namespaces": [b"pid", b"mnt"],
    "joined_namespaces": {},
    "clock_offsets": b"",
    "mounts": [_mount(b"/proc", b"proc"), _mount(b"/dev", b"tmpfs"), _mount(b"/etc/hosts", b"bind", b"/proc")],
    "device_nodes": [[b"/dev/null", b"c", 1, 3, 438, 0, 0]],
    "device_sources": [b"/dev/null"],
    "masked_paths": [b"/proc/kcore"],
    "readonly_paths": [b"/proc/sys"],
    "sysctls": {},
    "hostname": None,
    "domainname": None,
    "make_missing_sources": True,
    "hooks": None,
}


def run(seed: Seed, privileges: Privileges) -> None:
    """Rehearse; what fails here fails for real later, with a sentence."""
    for _ in range(_ROUNDS):
        _rehearse_messages(seed, privileges)
    for flags in (process.CLONE_NEWNS | process.CLONE_NEWPID, process.CLONE_NEWNS):
        _rehearse_child(seed, privileges, flags)


def _rehearse_messages(seed: Seed, privileges: Privileges) -> None:
    """What a monitor does for a start and for output: receive, plan, open, answer, format, wait in the loop."""
    here, there = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    wire.send(there, wire.START_CONTAINER, 1, b"rehearsal", _CONTAINER, [seed.proc])
    message = wire.receive(here)
    assert message is not None
    opened = prepare.Opened()
    prepare.open_namespaces(message.body, opened)
    prepare.open_mounts(message.body, opened, seed, -1)
    opened.by_role[b"root"] = prepare.open_root(message.body["rootfs"], seed, -1)  # type: ignore[arg-type]
    for name in (b"stdin", b"stdout", b"stderr"):
        opened.by_role[name] = -1
    opened.by_role[b"proc"] = os.dup(seed.proc)
    lower(plan.init_steps(message.body, opened.by_role), privileges, here.fileno())
    prepare.clone_flags(message.body)
    opened.close_but()
    message.close()
    data = b"line\n" * 100
    log_format.format_lines(data, b"stdout", log_format.stamp(1))
    loop = Loop(lambda: None)

    def once() -> None:
        here.recv(10)
        loop.forget(here.fileno())
        loop.running = False

    loop.watch(here.fileno(), once)
    there.send(b"x")
    loop.run()
    loop.close()
    here.close()
    there.close()


def _rehearse_child(seed: Seed, privileges: Privileges, flags: int) -> None:
    opened = {b"stdin": -1, b"stdout": -1, b"stderr": -1, b"proc": seed.proc}
    steps = plan.finish_steps(_PROCESS, opened, init=True)
    steps = [step for step in steps if step[0] != "set_stdio"]  # the seed has no /dev/null
    here, there = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    program = lower(steps, privileges, there.fileno())
    pid, pidfd = seed.clone(flags)
    if pid == 0:
        child.run(program, there.fileno())
    there.close()
    while here.recv(4096):
        pass
    here.close()
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    os.close(pidfd)
