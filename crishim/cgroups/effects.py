"""The life of a cgroup directory: make it, limit it, put processes in, remove it.

Works on every tree of the node alike. OSError names the file; nothing here logs, waits for long or imports much, since
monitors do it too. What happens to the processes inside is in `processes`, whose calls are offered here as well.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence

from crishim.cgroups.files import GONE, Writer, join_path, read, read_or_none, walk, write
from crishim.cgroups.hierarchy import Hierarchy
from crishim.cgroups.planned import CgroupPlan
from crishim.cgroups.processes import freeze as freeze
from crishim.cgroups.processes import is_empty as is_empty
from crishim.cgroups.processes import is_frozen as is_frozen
from crishim.cgroups.processes import kill as kill
from crishim.cgroups.processes import oom_kills as oom_kills
from crishim.cgroups.processes import pids as pids
from crishim.cgroups.processes import signal_all as signal_all
from crishim.cgroups.processes import thaw as thaw
from crishim.linux import bpf

_JOIN_TRIES = 5
_JOIN_PAUSE_S = 0.03
_REMOVE_TRIES = 10
_EXEC_LEAF = b"exec."
#: of a cgroup with processes, or among threaded ones, that is to hand down controllers
_POPULATED = (errno.EBUSY, errno.EOPNOTSUPP)


def create(h: Hierarchy, plan: CgroupPlan, *, hand_down: bool = True) -> None:
    """Make the cgroup with its parents in every tree, then its limits, then its device rules.

    A directory that exists is used as it is. On an error every directory made here is removed again. Device rules of
    v1 need a cgroup without children. hand_down=False: controllers of the v2 tree stay where they are, which a cgroup
    below one with processes needs.
    """
    made: list[bytes] = []
    try:
        for tree in h.trees():
            _make(tree, join_path(tree, plan.path), made)
        if h.mount and hand_down:
            _enable_controllers(h, plan)
        if "cpuset" in h.controllers and not h.is_v2("cpuset"):
            _fill_cpusets(h.controllers["cpuset"], join_path(h.controllers["cpuset"], plan.path))
        _write_limits(h, plan, undo=None)
        _restrict_devices(h, plan)
    except BaseException as error:
        for directory in reversed(made):
            try:
                os.rmdir(directory)
            except OSError as failure:
                error.add_note(f"cgroup {os.fsdecode(directory)} is left behind: {failure.strerror}")
        raise


def apply(h: Hierarchy, plan: CgroupPlan) -> list[tuple[bytes, bytes]]:
    """Change the limits of a living cgroup: all of them or, on an error, none. Device rules stay as they are.

    Gives what `revert` needs to take the change back later.
    """
    undo: list[tuple[bytes, bytes]] = []
    try:
        _write_limits(h, plan, undo)
    except BaseException as error:
        for path in revert(undo):
            error.add_note(f"{os.fsdecode(path)} could not be set back")
        raise
    return undo


def revert(undo: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    """Set limits back to what `apply` found; the files that refuse."""
    # twice: an old memory limit above the new memsw limit is refused until that one is back
    failed = [pair for pair in reversed(undo) if not _restore(*pair)]
    return [path for path, value in failed if not _restore(path, value)]


def attach_devices(directory: int, program: bytes) -> None:
    """Make `program` the device filter of an open v2 cgroup directory, in exchange for those attached before."""
    fd = bpf.prog_load(bpf.PROG_TYPE_CGROUP_DEVICE, program)
    try:
        bpf.replace_programs(directory, fd, bpf.ATTACH_CGROUP_DEVICE)
    finally:
        os.close(fd)


def join(h: Hierarchy, path: str | bytes, pid: int, *, unified: bool = True) -> None:
    """Move a process (0: the caller) into the cgroup in every tree; unified=False when it was born in the v2 one.

    For an exec leaf, trees that do not have the leaf take the container's cgroup. Moving all threads, so `pid` may be
    any of the process. ProcessLookupError when it is gone.
    """
    for tree in h.v1_trees():
        _move(_with_leaf(tree, path) + b"/cgroup.procs", pid)
    if unified and h.mount:
        _move(_with_leaf(h.mount, path) + b"/cgroup.procs", pid)


def task_files(h: Hierarchy, path: str | bytes) -> list[bytes]:
    """The files of v1 trees that a process with one thread, born in the v2 cgroup, still writes "0" to, in order.

    "tasks", not "cgroup.procs": a thread that moves itself does not take the kernel's global lock of all thread groups,
    whose first taker waits for an RCU grace period (20 ms measured).
    """
    return [_with_leaf(tree, path) + b"/tasks" for tree in h.v1_trees()]


def birth_files(h: Hierarchy, path: str | bytes) -> list[bytes]:
    """The file of the v2 tree that a process writes "0" to when it was not born in the cgroup; none on a v1 node."""
    return [join_path(h.mount, path) + b"/cgroup.procs"] if h.mount else []


def directories(h: Hierarchy, path: str | bytes) -> list[tuple[bytes, bytes]]:
    """(name, directory) of the cgroup in each tree, named as under /sys/fs/cgroup; the only one of a v2 node is b""."""
    if h.mode == "v2":
        return [(b"", join_path(h.mount, path))]
    return [(os.path.basename(tree), join_path(tree, path)) for tree in h.trees()]


def enter(h: Hierarchy, path: str | bytes) -> None:
    """Make a cgroup without limits in every tree and move the calling process there."""
    create(h, CgroupPlan(os.fsdecode(path), []))
    join(h, path, 0)


def open_dir(h: Hierarchy, path: str | bytes) -> int:
    """Descriptor of the v2 directory, for CLONE_INTO_CGROUP; -1 on a v1 node, which has none."""
    if not h.mount:
        return -1
    return os.open(join_path(h.mount, path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)


def exec_leaf(h: Hierarchy, path: str | bytes, n: int) -> str:
    """Path of the leaf "exec.N" of a container's cgroup, made when it is not there.

    It is a directory of the v2 tree without controllers, so the container's processes may stay in its parent; on a v1
    node it is in the freezer tree alone. Its only use is to find the processes of one exec.
    """
    leaf = f"{os.fsdecode(path)}/exec.{n}"
    tree = h.mount or h.controllers.get("freezer")
    if tree is None:
        raise OSError(errno.EOPNOTSUPP, "neither cgroup v2 nor a freezer controller", path)
    try:
        os.mkdir(join_path(tree, leaf), 0o755)
    except FileExistsError:
        pass
    return leaf


def remove(h: Hierarchy, path: str | bytes, *, tries: int = _REMOVE_TRIES) -> bool:
    """Remove the cgroup and all below it from every tree; True when none of it is left. Safe to repeat.

    A cgroup is busy until its last process has ended, reaped or not, which takes a moment after SIGKILL: it is tried
    `tries` times, with pauses that double from 1 ms.
    """
    pause_s = 0.001
    left = [join_path(tree, path) for tree in h.trees()]
    for attempt in range(tries):
        left = [directory for directory in left if not _remove_tree(directory)]
        if not left:
            return True
        if attempt + 1 < tries:
            time.sleep(pause_s)
            pause_s *= 2
    return False


def _make(tree: bytes, directory: bytes, made: list[bytes]) -> None:
    """mkdir with parents; those that were missing are appended to `made`."""
    try:
        os.mkdir(directory, 0o755)
    except FileExistsError:
        return
    except FileNotFoundError:
        parent = os.path.dirname(directory)
        if len(parent) <= len(tree):
            raise
        _make(tree, parent, made)
        _make(tree, directory, made)
        return
    made.append(directory)


def _enable_controllers(h: Hierarchy, plan: CgroupPlan) -> None:
    """Hand the controllers of the v2 tree down to the cgroup, not below it.

    A v2 node hands down all of them, since stats come from them too; a hybrid node what the plan writes, since
    controllers forbid processes in the cgroups between. A refusal shows later, in the limit that misses its file.
    """
    written = {controller for controller, _, _, _ in plan.writes}
    wanted = [c for c in h.controllers if h.is_v2(c) and (h.mode == "v2" or c in written)]
    leaf = join_path(h.mount, plan.path)
    if not wanted or set(wanted) <= set((read_or_none(leaf + b"/cgroup.controllers") or b"").decode().split()):
        return
    ancestor = h.mount
    for name in leaf[len(h.mount) + 1 :].split(b"/"):
        file = ancestor + b"/cgroup.subtree_control"
        try:
            write(file, " ".join("+" + controller for controller in wanted))
        except OSError as error:
            if error.errno in _POPULATED:
                # it would take some controllers alone, and from then on nothing below it takes processes (cgroups(7),
                # "Creating a threaded cgroup")
                return
            for controller in wanted:
                try:
                    write(file, "+" + controller)
                except OSError:
                    pass
        ancestor += b"/" + name


def _fill_cpusets(tree: bytes, leaf: bytes) -> None:
    """Give each cpuset on the way down its parent's values where it has none: v1 refuses processes before."""
    directory = tree
    inherited = dict.fromkeys((b"/cpuset.cpus", b"/cpuset.mems"), b"")
    for name in [b"", *leaf[len(tree) + 1 :].split(b"/")]:
        directory = directory + b"/" + name if name else directory
        for file in inherited:
            own = read(directory + file).strip()
            if not own and inherited[file]:
                write(directory + file, inherited[file].decode())
                own = inherited[file]
            inherited[file] = own


def _write_limits(h: Hierarchy, plan: CgroupPlan, undo: list[tuple[bytes, bytes]] | None) -> None:
    """Write in order; what the kernel refuses is tried once more after the rest.

    Some pairs are only valid together, and which half must come first depends on the old values (limit and memsw,
    quota and period). undo: takes (file, old value) of each file written.
    """
    again: list[tuple[bytes, str]] = []
    with Writer() as writer:
        for controller, file, value, required in plan.writes:
            path = join_path(h.controllers.get(controller, h.mount), plan.path) + b"/" + file.encode()
            old = None if undo is None else read_or_none(path)
            try:
                writer.write(path, value)
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.EBUSY):
                    again.append((path, value))
                elif required or error.errno != errno.ENOENT:
                    raise
            if undo is not None and old is not None:
                undo.append((path, old))
    for path, value in again:
        try:
            write(path, value)
        except OSError as error:
            raise OSError(error.errno, _why_refused(path, value, error), path) from None


def _why_refused(path: bytes, value: str, error: OSError) -> str:
    """The kernel's word for it, the value, and for a v1 memory limit how much is in use (EBUSY)."""
    text = f"{error.strerror} (value {value!r}"
    if path.endswith(b"/memory.limit_in_bytes"):
        usage, peak = (
            (read_or_none(os.path.dirname(path) + file) or b"?").decode().strip()
            for file in (b"/memory.usage_in_bytes", b"/memory.max_usage_in_bytes")
        )
        text += f", usage {usage}, peak {peak}"
    return text + ")"


def _restore(path: bytes, value: bytes) -> bool:
    try:
        for line in value.splitlines() or [b""]:
            write(path, line.decode())
    except OSError:
        return False
    return True


def _restrict_devices(h: Hierarchy, plan: CgroupPlan) -> None:
    if plan.devices_v1:
        directory = join_path(h.controllers["devices"], plan.path)
        for file, line in plan.devices_v1:
            write(directory + b"/" + file.encode(), line)
    if plan.device_program is not None:
        fd = open_dir(h, plan.path)
        try:
            attach_devices(fd, plan.device_program)
        finally:
            os.close(fd)


def _with_leaf(tree: bytes, path: str | bytes) -> bytes:
    directory = join_path(tree, path)
    if os.path.basename(directory).startswith(_EXEC_LEAF) and not os.path.isdir(directory):
        return os.path.dirname(directory)
    return directory


def _move(procs: bytes, pid: int) -> None:
    """EINVAL is retried: the kernel says it of a task that is not fully born (TASK_NEW)."""
    for _ in range(_JOIN_TRIES - 1):
        try:
            return write(procs, str(pid))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        time.sleep(_JOIN_PAUSE_S)
    write(procs, str(pid))


def _remove_tree(directory: bytes) -> bool:
    busy = False

    def leave(parent: int, name: bytes) -> None:
        nonlocal busy
        try:
            os.rmdir(name, dir_fd=parent)
        except OSError as error:
            busy = busy or error.errno not in GONE

    for _ in walk(directory, leave):
        pass
    try:
        os.rmdir(directory)
    except OSError as error:
        return error.errno in GONE
    return not busy
