"""The processes of a cgroup: list, kill, freeze, and how many the kernel killed for memory.

All of it includes the cgroups below, so exec leaves and cgroups that a container made for itself. A node with a v2
tree uses that; a v1 node the freezer. A cgroup that is gone is an empty one.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time

from crishim.cgroups.files import GONE, flat_keyed, join_path, read, read_or_none, walk, write
from crishim.cgroups.hierarchy import Hierarchy

_KILL_ROUNDS = 10
_SIGNAL_ROUNDS = 5
_FREEZE_S = 10.0
_V1_THAW_EVERY = 50


def pids(h: Hierarchy, path: str | bytes) -> list[int]:
    """Process ids in the cgroup and below, as the caller's pid namespace has them (0: outside of it)."""
    found: list[int] = []
    for fd in walk(_tree_path(h, path)):
        # a threaded cgroup answers EOPNOTSUPP; its processes stand in the domain above it
        found += map(int, (read_or_none(b"cgroup.procs", fd) or b"").split())
    return found


def is_empty(h: Hierarchy, path: str | bytes) -> bool:
    """True when no process, zombies aside, is in the cgroup or below."""
    if h.mount:
        events = read_or_none(_tree_path(h, path) + b"/cgroup.events")
        return events is None or flat_keyed(events).get(b"populated") != 1
    return not pids(h, path)


def kill(h: Hierarchy, path: str | bytes) -> None:
    """SIGKILL to every process in the cgroup and below, those being forked now included. Does not wait for the end."""
    if h.mount:
        try:
            write(_tree_path(h, path) + b"/cgroup.kill", "1")
            _thaw_hybrid(h, path)
            return
        except OSError as error:
            if error.errno in GONE and not os.path.isdir(_tree_path(h, path)):
                return
            if error.errno not in (*GONE, errno.EOPNOTSUPP):  # a threaded cgroup cannot
                raise
    _kill_each(h, path)


def signal_all(h: Hierarchy, path: str | bytes, number: int) -> None:
    """Send a signal once to every process of the cgroup and below, those that are forked meanwhile included."""
    signalled: set[int] = set()
    for _ in range(_SIGNAL_ROUNDS):
        fresh = set(pids(h, path)) - signalled - {0}
        if not fresh:
            return
        for pid in fresh:
            _signal_member(h, path, pid, number)
        signalled |= fresh


def freeze(h: Hierarchy, path: str | bytes, *, timeout_s: float = _FREEZE_S) -> None:
    """Stop every process of the cgroup and below; returns when all stand still.

    TimeoutError, and thawed again, when one of them could not be stopped in time (it waits for a device or an NFS
    server). FileNotFoundError when the cgroup is gone.
    """
    deadline = time.monotonic() + timeout_s
    try:
        frozen = _freeze_v2(h, path, deadline) if h.mount else _freeze_v1(h, path, deadline)
    except BaseException:
        thaw(h, path)
        raise
    if not frozen:
        thaw(h, path)
        raise TimeoutError(errno.ETIMEDOUT, f"not frozen within {timeout_s:g} s", path)


def thaw(h: Hierarchy, path: str | bytes) -> None:
    """Let the processes run again; nothing to do when the cgroup is gone."""
    file, value = (b"/cgroup.freeze", "0") if h.mount else (b"/freezer.state", "THAWED")
    try:
        write(_tree_path(h, path) + file, value)
    except OSError as error:
        if error.errno not in GONE:
            raise


def is_frozen(h: Hierarchy, path: str | bytes) -> bool:
    """Whether somebody froze the cgroup itself and nothing in it runs; False when it is gone."""
    if h.mount:
        return flat_keyed(read_or_none(_tree_path(h, path) + b"/cgroup.events") or b"").get(b"frozen") == 1
    return (read_or_none(_tree_path(h, path) + b"/freezer.state") or b"").strip() == b"FROZEN"


def oom_kills(h: Hierarchy, path: str | bytes) -> int:
    """Processes that the kernel killed for memory in the cgroup and below since it was made; 0 when it is gone."""
    tree = h.controllers.get("memory")
    if tree is None:
        return 0
    directory = join_path(tree, path)
    if h.is_v2("memory"):
        return flat_keyed(read_or_none(directory + b"/memory.events") or b"").get(b"oom_kill", 0)
    # the v1 counter is of one cgroup alone
    texts = (read_or_none(b"memory.oom_control", fd) for fd in walk(directory))
    return sum(flat_keyed(text or b"").get(b"oom_kill", 0) for text in texts)


def _thaw_hybrid(h: Hierarchy, path: str | bytes) -> None:
    """Of a hybrid host: what somebody froze by the v1 freezer does not die, whatever it is sent, until it is thawed."""
    tree = h.controllers.get("freezer")
    if tree is None:
        return
    for fd in walk(join_path(tree, path)):
        if read_or_none(b"freezer.state", fd) not in (b"THAWED\n", None):
            write(b"/proc/self/fd/%d/freezer.state" % fd, "THAWED")


def _tree_path(h: Hierarchy, path: str | bytes) -> bytes:
    """The directory that is asked about processes; an exec leaf of a v1 node is in the freezer tree alone."""
    tree = h.mount or h.controllers.get("freezer") or next(iter(h.controllers.values()))
    return join_path(tree, path)


def _kill_each(h: Hierarchy, path: str | bytes) -> None:
    """Freeze, signal, thaw, until a round meets nobody new: frozen processes cannot fork away from the list."""
    signalled: set[int] = set()
    for _ in range(_KILL_ROUNDS):
        try:
            freeze(h, path, timeout_s=0.5)
        except OSError:
            pass  # one that cannot be stopped hinders nobody from getting the signal
        found = set(pids(h, path)) - {0}
        for pid in found - signalled:
            _signal_member(h, path, pid, signal.SIGKILL)
        thaw(h, path)
        if found <= signalled:
            return
        signalled |= found


def _signal_member(h: Hierarchy, path: str | bytes, pid: int, number: int) -> None:
    """Signal through a pidfd, after a look that the process it means is one of the cgroup: numbers are reused."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if pid in pids(h, path):
            signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)


def _freeze_v2(h: Hierarchy, path: str | bytes, deadline: float) -> bool:
    directory = _tree_path(h, path)
    write(directory + b"/cgroup.freeze", "1")
    events = os.open(directory + b"/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    try:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        while flat_keyed(os.pread(events, 4096, 0)).get(b"frozen") != 1:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            poll.poll(left_s * 1000)
        return True
    finally:
        os.close(events)


def _freeze_v1(h: Hierarchy, path: str | bytes, deadline: float) -> bool:
    """FROZEN is reached by asking again and again; a thaw now and then frees tasks that block each other."""
    file = _tree_path(h, path) + b"/freezer.state"
    tries = 0
    while time.monotonic() < deadline:
        write(file, "FROZEN")
        if read(file).strip() == b"FROZEN":
            return True
        tries += 1
        if tries % _V1_THAW_EVERY == 0:
            write(file, "THAWED")
            time.sleep(0.01)
        else:
            time.sleep(0.0002)
    return False
