"""Names of namespaces, mount flags and limits, and the kernel's numbers for them."""

from __future__ import annotations

#: /proc/PID/ns name to clone flag
NAMESPACE_FLAGS = {
    b"mnt": 0x20000,
    b"pid": 0x20000000,
    b"net": 0x40000000,
    b"ipc": 0x8000000,
    b"uts": 0x4000000,
    b"cgroup": 0x2000000,
    b"user": 0x10000000,
    b"time": 0x80,
}

#: mount flags by name to (bits to set, bits to clear, recursive) of mount_setattr(2)
MOUNT_FLAGS = {
    b"ro": (0x1, 0, False),
    b"rw": (0, 0x1, False),
    b"rro": (0x1, 0, True),
    b"nosuid": (0x2, 0, False),
    b"suid": (0, 0x2, False),
    b"nodev": (0x4, 0, False),
    b"dev": (0, 0x4, False),
    b"noexec": (0x8, 0, False),
    b"exec": (0, 0x8, False),
    b"noatime": (0x10, 0x70, False),
    b"relatime": (0, 0x70, False),
    b"strictatime": (0x20, 0x70, False),
    b"nodiratime": (0x80, 0, False),
    b"nosymfollow": (0x200000, 0, False),
}

_PROPAGATION = {b"rprivate": 1 << 18, b"rslave": 1 << 19, b"rshared": 1 << 20}

RLIMITS = {
    b"RLIMIT_CPU": 0,
    b"RLIMIT_FSIZE": 1,
    b"RLIMIT_DATA": 2,
    b"RLIMIT_STACK": 3,
    b"RLIMIT_CORE": 4,
    b"RLIMIT_RSS": 5,
    b"RLIMIT_NPROC": 6,
    b"RLIMIT_NOFILE": 7,
    b"RLIMIT_MEMLOCK": 8,
    b"RLIMIT_AS": 9,
    b"RLIMIT_LOCKS": 10,
    b"RLIMIT_SIGPENDING": 11,
    b"RLIMIT_MSGQUEUE": 12,
    b"RLIMIT_NICE": 13,
    b"RLIMIT_RTPRIO": 14,
    b"RLIMIT_RTTIME": 15,
}


def attributes(flags: list[bytes]) -> tuple[int, int, bool]:
    """(set, clear, recursive) of mount_setattr(2) for names of MOUNT_FLAGS; KeyError for another name."""
    set_ = clear = 0
    recursive = False
    for name in flags:
        one_set, one_clear, one_recursive = MOUNT_FLAGS[name]
        set_ = set_ & ~one_clear | one_set
        clear = clear | one_clear
        recursive = recursive or one_recursive
    return set_, clear, recursive


def propagation(name: bytes) -> int:
    """The propagation bit of mount_setattr(2) for "rprivate", "rslave" or "rshared"."""
    return _PROPAGATION[name]
