"""The door to syscall(2): numbers per machine, and one call that raises OSError.

PyDLL keeps the GIL during a call. Callers in zygote, monitor and child have one thread, so nothing waits for it; the
server uses only calls that return at once.
"""

from __future__ import annotations

import ctypes
import errno
import os

libc = ctypes.PyDLL(None, use_errno=True)
#: syscall(2) itself: plain integers are sign-extended to 64 bits, bytes are char *; -1 and `get_errno` on failure
raw = libc.syscall
raw.restype = ctypes.c_long
get_errno = ctypes.get_errno

MACHINE = os.uname().machine

#: numbers that differ between machines: (x86_64, aarch64); 424 and later are the same everywhere
_BY_MACHINE = {
    "chdir": (80, 49),
    "close": (3, 57),
    "dup3": (292, 24),
    "getcwd": (79, 17),
    "ioprio_set": (251, 30),
    "mount": (165, 40),
    "personality": (135, 92),
    "pivot_root": (155, 41),
    "rt_sigaction": (13, 134),
    "prctl": (157, 167),
    "sched_setattr": (314, 274),
    "seccomp": (317, 277),
    "set_mempolicy": (238, 237),
    "setgroups": (116, 159),
    "setresgid": (119, 149),
    "setresuid": (117, 147),
    "setsid": (112, 157),
    "umask": (95, 166),
    "write": (1, 64),
    "setns": (308, 268),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "capget": (125, 90),
    "capset": (126, 91),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "mknodat": (259, 33),
}
_EVERYWHERE = {
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    "fchmodat2": 452,
}


def number(name: str) -> int:
    """The number of a system call on this machine; NotImplementedError for a machine that has no table."""
    if name in _EVERYWHERE:
        return _EVERYWHERE[name]
    if MACHINE not in ("x86_64", "aarch64"):
        raise NotImplementedError(f"no system call table for {MACHINE}")
    return _BY_MACHINE[name][0 if MACHINE == "x86_64" else 1]


def call(nr: int, *args: object) -> int:
    """syscall(2): integers, bytes (as char *) and ctypes values; OSError with errno when the kernel says -1."""
    result: int = raw(nr, *args)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def call_restarting(nr: int, *args: object) -> int:
    """`call`, again after EINTR and EAGAIN (openat2(2): a race with rename or mount), at most 100 times."""
    for _ in range(99):
        result: int = raw(nr, *args)
        if result != -1:
            return result
        code = ctypes.get_errno()
        if code not in (errno.EINTR, errno.EAGAIN):
            raise OSError(code, os.strerror(code))
    return call(nr, *args)


#: an int that the variadic syscall() must see as 64 bits
Long = ctypes.c_long
UnsignedLong = ctypes.c_ulong
