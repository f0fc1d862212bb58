"""Processes: clone3(2), namespaces, prctl(2), capabilities, scheduling. For single-threaded callers only.

`clone3` runs no fork hook of Python: its child must end in execve(2) or `os._exit` (design: how a child is born).
"""

from __future__ import annotations

import ctypes
import os
import struct

from crishim.linux.syscall import call, libc, number

CLONE_NEWTIME = 0x80
CLONE_PIDFD = 0x1000
CLONE_PARENT = 0x8000
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 1 << 33

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4
SECCOMP_FILTER_FLAG_NEW_LISTENER = 8

_SECCOMP_SET_MODE_FILTER = 1

SIGCHLD = 17

_CLONE3 = number("clone3")
_RT_SIGACTION = number("rt_sigaction")
_SETNS = number("setns")
_UNSHARE = number("unshare")
_PRCTL = number("prctl")
_CAPSET = number("capset")
_CAPGET = number("capget")
_GETCWD = number("getcwd")
_PIDFD_GETFD = number("pidfd_getfd")
_SECCOMP = number("seccomp")
_CLOSE_RANGE = number("close_range")
_IOPRIO_SET = number("ioprio_set")
_SCHED_SETATTR = number("sched_setattr")
_SET_MEMPOLICY = number("set_mempolicy")
_PERSONALITY = number("personality")


def clone3(flags: int, cgroup: int = -1) -> tuple[int, int]:
    """(pid, pidfd) in the parent, (0, -1) in the child; CLONE_PIDFD is always set.

    With CLONE_PARENT the child is a sibling: the caller's parent reaps it.
    cgroup: descriptor of a cgroup v2 directory the child is born in, or -1. The child shares nothing and must not
    return into the caller's loop. Source: clone3(2), Linux 5.3 (5.7 for the cgroup).
    """
    pidfd = ctypes.c_int(-1)
    flags |= CLONE_PIDFD | (CLONE_INTO_CGROUP if cgroup >= 0 else 0)
    exit_signal = 0 if flags & CLONE_PARENT else SIGCHLD  # a sibling has its creator's
    into = cgroup if cgroup >= 0 else 0
    args = struct.pack("=11Q", flags, ctypes.addressof(pidfd), 0, 0, exit_signal, 0, 0, 0, 0, 0, into)
    pid = call(_CLONE3, args, len(args))
    return pid, pidfd.value if pid else -1


def setns(fd: int, kinds: int) -> None:
    """Join the namespace of an open /proc/PID/ns file, or those of `kinds` of the process of a pidfd (Linux 5.8)."""
    call(_SETNS, fd, kinds)


def unshare(kinds: int) -> None:
    """Leave the namespaces of `kinds` for new ones."""
    call(_UNSHARE, kinds)


def prctl(option: int, arg2: int = 0, arg3: int = 0) -> int:
    """prctl(2) with integer arguments."""
    return call(_PRCTL, option, arg2, arg3, 0, 0)


def default_signals() -> None:
    """Default action for the signals from 32 on, those that the C library keeps for itself (32, 33) among them.

    Whoever started us may have ignored them, and execve(2) keeps that. Source: rt_sigaction(2).
    """
    action = bytes(32)  # SIG_DFL, no flags, empty mask
    for signal in range(32, 65):
        call(_RT_SIGACTION, signal, action, None, 8)


def set_name(name: bytes) -> None:
    """Name of the calling thread, at most 15 bytes (PR_SET_NAME)."""
    call(_PRCTL, PR_SET_NAME, name, 0, 0, 0)


def load_seccomp(program: bytes, flags: int = 0) -> int:
    """Load a compiled filter (array of struct sock_filter) for the calling thread.

    Gives the descriptor of its listener, close-on-exec, with SECCOMP_FILTER_FLAG_NEW_LISTENER, and 0 without.
    Needs no_new_privs or CAP_SYS_ADMIN (EACCES). Source: seccomp(2), struct sock_fprog.
    """
    filters = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(filters))
    return call(_SECCOMP, _SECCOMP_SET_MODE_FILTER, flags, fprog)


def pidfd_getfd(pidfd: int, number: int) -> int:
    """A copy of a descriptor of another process, close-on-exec. Needs the right to trace it (EPERM), Linux 5.6."""
    return call(_PIDFD_GETFD, pidfd, number, 0)


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the three sets of the calling thread, each a bit mask by capability number (capset(2), version 3)."""
    header = struct.pack("=Ii", 0x20080522, 0)
    low = 0xFFFFFFFF
    data = struct.pack(
        "=6I", effective & low, permitted & low, inheritable & low, effective >> 32, permitted >> 32, inheritable >> 32
    )
    call(_CAPSET, header, data)


def capget() -> tuple[int, int, int]:
    """(effective, permitted, inheritable) of the calling thread as bit masks."""
    header = struct.pack("=Ii", 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    call(_CAPGET, header, data)
    e0, p0, i0, e1, p1, i1 = struct.unpack("=6I", data.raw)
    return e0 | e1 << 32, p0 | p1 << 32, i0 | i1 << 32


def bounding_set() -> int:
    """The capability bounding set of the calling thread as a bit mask."""
    mask = 0
    for capability in range(64):
        try:
            mask |= prctl(PR_CAPBSET_READ, capability) << capability
        except OSError:  # EINVAL: beyond the last capability of this kernel
            break
    return mask


def all_capabilities() -> int:
    """Every capability of this kernel, whoever we are, as a bit mask."""
    mask = 0
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_READ, capability)
        except OSError:  # EINVAL: beyond the last one
            break
        mask |= 1 << capability
    return mask


def getcwd() -> bytes:
    """The kernel's idea of the working directory, without the library's search: "(unreachable)/..." stays visible."""
    buffer = ctypes.create_string_buffer(4096)
    length = call(_GETCWD, buffer, 4096)
    return buffer.raw[: length - 1]


def close_range(first: int, last: int = 0xFFFFFFFF) -> None:
    """Close every descriptor from `first` to `last` (close_range(2), Linux 5.9)."""
    call(_CLOSE_RANGE, first, last, 0)


def ioprio_set(value: int) -> None:
    """I/O priority of the calling process: class << 13 | priority."""
    call(_IOPRIO_SET, 1, 0, value)


def sched_setattr(
    policy: int, flags: int, nice: int, priority: int, runtime: int, deadline: int, period: int, *, pid: int = 0
) -> None:
    """Scheduling attributes of a thread, 0 is the calling one (sched_setattr(2))."""
    attr = struct.pack("=IIQiIQQQ", 48, policy, flags, nice, priority, runtime, deadline, period)
    call(_SCHED_SETATTR, pid, attr, 0)


def set_mempolicy(mode: int, nodes: bytes) -> None:
    """NUMA policy of the calling thread: mode with its flags, and a bit mask of nodes (set_mempolicy(2))."""
    # the kernel counts one bit less than it is told
    call(_SET_MEMPOLICY, mode, nodes or None, len(nodes) * 8 + 1 if nodes else 0)


def personality(domain: int) -> None:
    """Execution domain of the calling process (personality(2))."""
    call(_PERSONALITY, domain)


def sethostname(name: bytes) -> None:
    """Host name of the calling thread's UTS namespace."""
    if libc.sethostname(name, len(name)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def setdomainname(name: bytes) -> None:
    """NIS domain name of the calling thread's UTS namespace."""
    if libc.setdomainname(name, len(name)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
