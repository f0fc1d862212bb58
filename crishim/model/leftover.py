"""What a check of the node found: things that belong to nobody, and things that somebody lacks."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class LeftoverKind(enum.Enum):
    """What a finding is, in the order in which such things are freed: what is used comes after its users."""

    #: a process of ours in the cgroup of monitors
    PROCESS = "process"
    MOUNT = "mount"
    #: a sandbox whose run or removal was cut, with all that is left of it
    SANDBOX = "sandbox"
    #: the cgroup of a pod or a container
    CGROUP = "cgroup"
    #: what a pod has in the network: an attachment of CNI, addresses, a device, packet rules
    NETWORK = "network"
    #: the mount that keeps a network namespace
    NETNS = "netns"
    #: a monitor's socket that nobody listens on
    SOCKET = "socket"
    #: files of a container in the directory of its sandbox
    CONTAINER_FILES = "container_files"
    #: a sandbox's directory below the state directory
    SANDBOX_DIRECTORY = "sandbox_directory"
    #: a container's writable layer
    ROOTFS = "rootfs"
    #: a compiled seccomp filter
    FILTER = "filter"
    #: an unpacked layer that no image and no container uses
    LAYER = "layer"
    #: what a pull fetched that nobody asked for again
    BLOB = "blob"
    #: a file of something that was being read
    SPOOL = "spool"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is there and should not be or, with `missing`, should be there and is not."""

    kind: LeftoverKind
    #: the path, or the name that the kernel has for it
    name: str
    #: id of the sandbox or container whose it is or was, "" when that is not known
    owner: str = ""
    #: what is wrong, for people
    problem: str = ""
    missing: bool = False
    #: id of the sandbox in whose directory it is, of container files and sockets
    sandbox_id: str = ""
    #: of a process: its pid, when it was started (clock ticks since boot), and the cgroups of the containers it holds
    pid: int = 0
    started_ticks: int = 0
    cgroups: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[LeftoverKind, str, bool]:
        """The same thing in another check has the same key."""
        return (self.kind, self.name, self.missing)


class Outcome(enum.Enum):
    """What a check did about a finding."""

    #: it was only looked for
    FOUND = "found"
    FREED = "freed"
    FAILED = "failed"
    #: its time has not come: the last attempt failed a short while ago
    WAITING = "waiting"
    #: nothing can be freed: what is missing is only said
    SAID = "said"


@dataclass(frozen=True, slots=True)
class Leftover:
    """A finding and its story, as commands and Status show it."""

    kind: str
    name: str
    owner: str
    problem: str
    missing: bool
    #: CLOCK_REALTIME of the first check that saw it
    since_ns: int
    outcome: str
    #: attempts to free it that failed, and what the last one said
    attempts: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class GarbageReport:
    """The answer to one check that somebody asked for."""

    dry_run: bool
    leftovers: tuple[Leftover, ...]
    #: parts of the node that could not be looked at
    problems: tuple[str, ...]
    seconds: float
