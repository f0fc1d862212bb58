"""Names of namespaces, mount flags and limits, and the kernel's numbers for them."""

from __future__ import annotations

from crishim.linux import mount, process

#: /proc/PID/ns name to clone flag
NAMESPACE_FLAGS = {
    b"mnt": process.CLONE_NEWNS,
    b"pid": process.CLONE_NEWPID,
    b"net": process.CLONE_NEWNET,
    b"ipc": process.CLONE_NEWIPC,
    b"uts": process.CLONE_NEWUTS,
    b"cgroup": process.CLONE_NEWCGROUP,
    b"user": process.CLONE_NEWUSER,
    b"time": process.CLONE_NEWTIME,
}

#: mount flags by name to (bits to set, bits to clear, recursive) of mount_setattr(2)
MOUNT_FLAGS = {
    b"ro": (mount.MOUNT_ATTR_RDONLY, 0, False),
    b"rw": (0, mount.MOUNT_ATTR_RDONLY, False),
    b"rro": (mount.MOUNT_ATTR_RDONLY, 0, True),
    b"nosuid": (mount.MOUNT_ATTR_NOSUID, 0, False),
    b"suid": (0, mount.MOUNT_ATTR_NOSUID, False),
    b"nodev": (mount.MOUNT_ATTR_NODEV, 0, False),
    b"dev": (0, mount.MOUNT_ATTR_NODEV, False),
    b"noexec": (mount.MOUNT_ATTR_NOEXEC, 0, False),
    b"exec": (0, mount.MOUNT_ATTR_NOEXEC, False),
    b"noatime": (mount.MOUNT_ATTR_NOATIME, mount.MOUNT_ATTR_ATIME, False),
    b"relatime": (0, mount.MOUNT_ATTR_ATIME, False),
    b"strictatime": (mount.MOUNT_ATTR_STRICTATIME, mount.MOUNT_ATTR_ATIME, False),
    b"nodiratime": (mount.MOUNT_ATTR_NODIRATIME, 0, False),
    b"nosymfollow": (mount.MOUNT_ATTR_NOSYMFOLLOW, 0, False),
}

_PROPAGATION = {b"rprivate": mount.MS_PRIVATE, b"rslave": mount.MS_SLAVE, b"rshared": mount.MS_SHARED}

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
