"""From steps to instructions: what can be a bare system call becomes one, computed by the parent.

A child copies every page it writes to, and running a Python function for the first time writes to many. A bare call
needs one line of the child's loop and nothing else, so most of an exec is lowered; steps that must look at results
stay functions of `child.py`.
"""

from __future__ import annotations

import struct

from crishim.executor.sentences import label
from crishim.linux import process
from crishim.linux.syscall import number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crishim.executor.plan import Step

    #: (index of the step, function of child.py or None for a bare call, its arguments, errno that is no failure)
    Instruction = tuple[int, "str | None", tuple[object, ...], int]

_EACCES = 13
_ENOSYS = 38
_KEYCTL_JOIN_SESSION_KEYRING, _KEYCTL_SETPERM = 1, 5
_SESSION_KEYRING = -3
#: everything to who possesses it; to its user view, read, link and, for execs that join by its name, search
_KEYRING_PERMISSIONS = 0x3F1B0000
_O_CLOEXEC = 0o2000000
_CAPSET_HEADER = struct.pack("=Ii", 0x20080522, 0)

_PRCTL = number("prctl")
_CAPSET = number("capset")
_CHDIR = number("chdir")
_CLOSE = number("close")
_CLOSE_RANGE = number("close_range")
_KEYCTL = number("keyctl")
_DUP3 = number("dup3")
_SETGROUPS = number("setgroups")
_SETNS = number("setns")
_SETRESGID = number("setresgid")
_SETRESUID = number("setresuid")
_SETSID = number("setsid")
_UMASK = number("umask")
_UNSHARE = number("unshare")
_WRITE = number("write")

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_CAPBSET_DROP = 1, 4, 8, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4


class Privileges:
    """The capabilities of the process that clones, as masks: what a child can keep and what it must drop."""

    __slots__ = ("bounding", "permitted")

    def __init__(self, bounding: int, permitted: int) -> None:
        self.bounding = bounding
        self.permitted = permitted

    def in_user_namespace(self) -> Privileges:
        """Those of a process that joined a user namespace of ours: every capability that the kernel has."""
        return Privileges(process.all_capabilities(), process.all_capabilities())


def lower(steps: list[Step], privileges: Privileges, report: int, log: int = -1) -> list[Instruction]:
    """Instructions of a plan. `report` is the descriptor of the report socket, above every standard descriptor.

    log: a descriptor that is told of every step, closed before the last one; -1 for none.
    """
    if log >= 0:
        return _logged(steps, privileges, report, log)
    program: list[Instruction] = []
    for index, step in enumerate(steps):
        calls = _calls(step, privileges, report)
        if calls is None:
            program.append((index, str(step[0]), step[1:], 0))
        else:
            program.extend((index, None, call, tolerated) for call, tolerated in calls)
        if step[0] == "keep_descriptors" and calls is not None:
            program.append((index, "report_on", (3,), 0))
    return program


def _logged(steps: list[Step], privileges: Privileges, report: int, log: int) -> list[Instruction]:
    program: list[Instruction] = []
    for index, step in enumerate(steps):
        program.append((index, "tell", (log, label(step)), 0))
        if index == len(steps) - 1:
            program.append((index, None, (_CLOSE, log), 0))
        if step[0] == "keep_descriptors":
            program.append((index, "keep_descriptors", (step[1], log), 0))
            log = 4 + len(step[1])  # type: ignore[arg-type]
        else:
            program += [(index, *rest) for _, *rest in lower([step], privileges, report)]  # type: ignore[misc]
    return program


def _calls(step: Step, privileges: Privileges, report: int) -> list[tuple[tuple[object, ...], int]] | None:
    """The bare calls of one step with the errno that each may fail with, None for a step that stays a function."""
    name = step[0]
    if name == "join_cgroup":
        return [((_WRITE, step[1], b"0", 1), 0)]
    if name == "become_root":
        return _change_user(0, 0, ())
    if name == "join_keyring":
        calls: list[tuple[tuple[object, ...], int]] = [((_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING, step[1]), _ENOSYS)]
        if step[2]:
            calls.append(((_KEYCTL, _KEYCTL_SETPERM, _SESSION_KEYRING, _KEYRING_PERMISSIONS), _ENOSYS))
        return calls
    if name == "new_session":
        return [((_SETSID,), 0)]
    if name == "set_dumpable":
        return [((_PRCTL, _PR_SET_DUMPABLE, step[1], 0, 0, 0), 0)]
    if name == "join_namespace":
        return [((_SETNS, step[1], step[2]), 0)]
    if name == "unshare":
        return [((_UNSHARE, step[1]), 0)]
    if name == "set_umask":
        return [((_UMASK, step[1]), 0)]
    if name == "set_stdio":
        fds, terminal = step[1], step[2]
        if terminal:
            return []
        if min(fds) > 2:  # type: ignore[call-overload]
            return [((_DUP3, fd, place, 0), 0) for place, fd in enumerate(fds)]  # type: ignore[arg-type, var-annotated]
        return None
    if name == "set_no_new_privileges":
        return [((_PRCTL, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0)]
    if name == "keep_descriptors" and not step[1]:
        return [((_DUP3, report, 3, _O_CLOEXEC), 0), ((_CLOSE_RANGE, 4, 0xFFFFFFFF, 0), 0)]
    if name == "enter_cwd_as_root":
        return [((_CHDIR, step[1]), _EACCES)]
    if name == "drop_bounding":
        drop = privileges.bounding & ~step[1]  # type: ignore[operator]
        return [((_PRCTL, _PR_CAPBSET_DROP, bit, 0, 0, 0), 0) for bit in range(drop.bit_length()) if drop >> bit & 1]
    if name == "set_user":
        uid, gid, groups, keep = step[1:]
        return [((_PRCTL, _PR_SET_KEEPCAPS, int(bool(keep)), 0, 0, 0), 0), *_change_user(uid, gid, groups)]  # type: ignore[arg-type]
    if name == "set_capabilities" and not step[5]:
        held = [mask & privileges.permitted for mask in step[2:5]]  # type: ignore[operator]
        return [
            ((_PRCTL, _PR_SET_KEEPCAPS, 0, 0, 0, 0), 0),
            ((_CAPSET, _CAPSET_HEADER, _capset_data(*held)), 0),
            ((_PRCTL, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), 0),
        ]
    if name == "die_with_parent":
        return [((_PRCTL, _PR_SET_PDEATHSIG, 9, 0, 0, 0), 0)]
    return None


def _change_user(uid: int, gid: int, groups: tuple[int, ...]) -> list[tuple[tuple[object, ...], int]]:
    """All three of its numbers each, the user last: it takes the right to change the others with it."""
    return [
        ((_SETGROUPS, len(groups), struct.pack(f"={len(groups)}I", *groups)), 0),
        ((_SETRESGID, gid, gid, gid), 0),
        ((_SETRESUID, uid, uid, uid), 0),
    ]


def _capset_data(effective: int, permitted: int, inheritable: int) -> bytes:
    masks = (effective, permitted, inheritable)
    return struct.pack("=6I", *(mask & 0xFFFFFFFF for mask in masks), *(mask >> 32 for mask in masks))
