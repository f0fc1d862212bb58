"""What a process and a container are to the executor: the fields of libcontainer's `Process`, and what surrounds it.

`ProcessSpec` has a home for every field of libcontainer's Process (shared with init and exec). `ContainerSpec` is what
the pod's monitor needs to start an init process: root, mounts, namespaces, cgroup, filters. Strings that reach the
kernel are `str` here with surrogateescape for bytes that are not UTF-8.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from crishim.model.hook import Hooks
from crishim.model.id_mapping import IdMapping
from crishim.model.resources import Resources

#: sun_path of unix(7) without the terminating zero
_SOCKET_NAME_BYTES = 107


@dataclass(frozen=True, slots=True)
class User:
    """Numbers inside the container's user namespace (libcontainer Process.UID, GID, AdditionalGroups; umask)."""

    uid: int = 0
    gid: int = 0
    #: the complete supplementary list; the primary gid is added by `spec/` (CVE-2022-2995)
    additional_groups: tuple[int, ...] = ()
    #: None: 0022 for init, unchanged for an exec
    umask: int | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Five sets of capability names ("CAP_CHOWN"), as capabilities(7) has them."""

    bounding: frozenset[str] = frozenset()
    effective: frozenset[str] = frozenset()
    permitted: frozenset[str] = frozenset()
    inheritable: frozenset[str] = frozenset()
    ambient: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Rlimit:
    """setrlimit(2); `kind` is "RLIMIT_NOFILE"; -1 is RLIM_INFINITY."""

    kind: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class Scheduler:
    """sched_setattr(2); policy is "SCHED_OTHER", _FIFO, _RR, _BATCH, _IDLE or _DEADLINE."""

    policy: str
    nice: int = 0
    priority: int = 0
    flags: tuple[str, ...] = ()
    runtime_ns: int = 0
    deadline_ns: int = 0
    period_ns: int = 0


@dataclass(frozen=True, slots=True)
class IoPriority:
    """ioprio_set(2); kind is "IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE" or "IOPRIO_CLASS_IDLE"; priority 0..7."""

    kind: str
    priority: int = 0


@dataclass(frozen=True, slots=True)
class CpuAffinity:
    """CPU lists ("0-3,5") before and after the process joins its cgroup.

    Without any it may run on all CPUs of its cpuset; `initial` alone is kept as far as the cpuset allows.
    """

    initial: str | None = None
    final: str | None = None


@dataclass(frozen=True, slots=True)
class MemoryPolicy:
    """set_mempolicy(2): mode is "MPOL_DEFAULT", _PREFERRED, _BIND, _INTERLEAVE, _LOCAL, _PREFERRED_MANY or
    _WEIGHTED_INTERLEAVE; nodes a list of NUMA nodes ("0-1,3"); flags "MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES",
    "MPOL_F_NUMA_BALANCING".
    """

    mode: str
    nodes: str = ""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SeccompListener:
    """Who answers the calls that a filter leaves to it (SECCOMP_RET_USER_NOTIF): OCI's listenerPath, listenerMetadata.

    path: of a unix stream socket of the host, absolute, or "@" and the name of an abstract one.
    """

    path: str
    metadata: str = ""

    def fault(self) -> str:
        """Why the path cannot be that of a socket; "" when it can."""
        if not self.path.startswith(("/", "@")) or self.path == "@" or "\0" in self.path:
            return "is neither an absolute path nor @ and a name"
        if len(self.path.encode("utf-8", "surrogateescape")) > _SOCKET_NAME_BYTES:
            return f"is longer than {_SOCKET_NAME_BYTES} bytes, which is what a socket's name may have"
        return ""


@dataclass(frozen=True, slots=True)
class SeccompFilter:
    """A compiled profile: what goes into the fields `seccomp`, `seccomp_flags` and `seccomp_listener` of a process."""

    program: bytes
    flags: tuple[str, ...] = ()
    listener: SeccompListener | None = None


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process to run; libcontainer's `Process` field by field (`docs/process.md`)."""

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    user: User = User()
    #: None leaves "/" of the root
    cwd: str | None = None
    #: None: no capability handling for a library caller; CRI always sets it
    capabilities: Capabilities | None = None
    apparmor_profile: str | None = None
    #: SELinux context of the process and its keys
    label: str | None = None
    no_new_privileges: bool = False
    rlimits: tuple[Rlimit, ...] = ()
    #: a pseudo terminal becomes stdin, stdout and stderr
    terminal: bool = False
    console_width: int = 0
    console_height: int = 0
    #: descriptors of the caller that become 3, 4, ... (only a library caller in this process can give them)
    extra_files: tuple[int, ...] = ()
    #: descriptor of a connected AF_UNIX stream socket that receives the pty master
    console_socket: int | None = None
    #: descriptor of a connected AF_UNIX socket that receives a pidfd of the process
    pidfd_socket: int | None = None
    init: bool = False
    #: "error", "debug" or another of logrus' levels, by name or number: what of the set-up is told to `log_fd`, one
    #: JSON object a line; "" is nothing
    log_level: str = ""
    #: descriptor of the caller; it stays the caller's, and the process never sees it
    log_fd: int | None = None
    #: v1 controller name (or "" for all, and for v2) to a path below the container's cgroup
    sub_cgroup_paths: Mapping[str, str] = field(default_factory=dict)
    scheduler: Scheduler | None = None
    io_priority: IoPriority | None = None
    cpu_affinity: CpuAffinity | None = None
    memory_policy: MemoryPolicy | None = None
    #: personality(2): "LINUX" or "LINUX32" (32-bit uname); None leaves that of this node
    personality: str | None = None
    oom_score_adj: int | None = None
    #: compiled BPF (`spec/seccomp`), array of struct sock_filter
    seccomp: bytes | None = None
    #: "SECCOMP_FILTER_FLAG_LOG", _SPEC_ALLOW, _WAIT_KILLABLE_RECV (which only matters with a listener; Linux 5.19)
    seccomp_flags: tuple[str, ...] = ()
    seccomp_listener: SeccompListener | None = None


class NamespaceKind(enum.Enum):
    """namespaces(7); the value is the name under /proc/PID/ns."""

    MOUNT = "mnt"
    PID = "pid"
    NETWORK = "net"
    IPC = "ipc"
    UTS = "uts"
    CGROUP = "cgroup"
    USER = "user"
    TIME = "time"


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace of a container: new when `path` is None, else the one at `path`. Kinds not listed are the host's.

    That of users without a path is the pod's: a library's container is a pod of its own, with the spec's mappings.
    """

    kind: NamespaceKind
    path: str | None = None


class Propagation(enum.Enum):
    """Mount propagation as CRI names it: PRIVATE (rprivate), HOST_TO_CONTAINER (rslave), BIDIRECTIONAL (rshared)."""

    PRIVATE = "rprivate"
    HOST_TO_CONTAINER = "rslave"
    BIDIRECTIONAL = "rshared"


#: the files of /proc that may be bound over, as lxcfs does: nothing that sets a process up relies on them. runc's list
#: has net/dev too, but that is in the directory of one process, and would be covered for it alone
PROC_FILES = frozenset(
    "/proc/" + name
    for name in (
        "cpuinfo",
        "diskstats",
        "loadavg",
        "meminfo",
        "slabinfo",
        "stat",
        "swaps",
        "sys/crypto/fips_enabled",
        "sys/kernel/ns_last_pid",
        "uptime",
    )
)


@dataclass(frozen=True, slots=True)
class MountSpec:
    """One mount inside the container, in the order given.

    kind: "bind" (source is a host path), "image" (`layers` of an image, topmost first; source is what is shown of it,
    "" for all), or a file system type: "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup".
    options: file system data ("mode=755", "size=65536k"); flags: "ro", "nosuid", "nodev", "noexec", "rro", "relatime",
    "strictatime", "noatime". A bind is recursive unless `recursive` is False, and with `idmap` its files belong to whom
    the container's user namespace maps their owners. A tmpfs without a mode has that of the directory that it covers;
    with `copy_up` it begins with what that holds (OCI's tmpcopyup).
    """

    target: str
    kind: str = "bind"
    source: str = ""
    flags: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    propagation: Propagation = Propagation.PRIVATE
    recursive: bool = True
    idmap: bool = False
    layers: tuple[str, ...] = ()
    copy_up: bool = False


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A device node to make in the container's /dev; kind is "c" or "b".

    In a user namespace no node can be made: that of the host at `source` ("" is `path`) is bound, as it is.
    """

    path: str
    kind: str
    major: int
    minor: int
    mode: int = 0o666
    uid: int = 0
    gid: int = 0
    source: str = ""


@dataclass(frozen=True, slots=True)
class DeviceRule:
    """One rule of the devices cgroup: kind "a", "b", "c"; None is any; access is a subset of "rwm"."""

    allow: bool
    kind: str = "a"
    major: int | None = None
    minor: int | None = None
    access: str = "rwm"


@dataclass(frozen=True, slots=True)
class RootFs:
    """The container's root: an overlay of `lowers` (topmost first), `upper` and `work`, or a directory `path`."""

    lowers: tuple[str, ...] = ()
    upper: str | None = None
    work: str | None = None
    path: str | None = None
    readonly: bool = False
    #: propagation of the container's "/" (rootfsPropagation of OCI)
    propagation: Propagation = Propagation.PRIVATE


@dataclass(frozen=True, slots=True)
class LogTarget:
    """Where the output of a container goes: a CRI log file, opened below `directory` without leaving it by a symlink.

    directory: absolute log directory of the pod; path: relative to it, as CRI's `log_path`. None of both: no log.
    """

    directory: str
    path: str


@dataclass(frozen=True, slots=True)
class CgroupSpec:
    """The cgroup of a container: `path` below the hierarchy root ("/kubepods/pod1/ID"), limits and device rules."""

    path: str
    resources: Resources = Resources()
    devices: tuple[DeviceRule, ...] = ()


@dataclass(frozen=True, slots=True)
class IntelRdt:
    """A class of service of resctrl (OCI's linux.intelRdt). clos_id: its name, "" is one of the container's own.

    schemata: its lines ("L3:0=f;1=f0", "MB:0=50"); monitoring: the container has a monitoring group.
    """

    clos_id: str = ""
    schemata: tuple[str, ...] = ()
    monitoring: bool = False


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """What is added to a clock in a time namespace of the container's own (time_namespaces(7)); may be negative."""

    seconds: int
    nanoseconds: int = 0


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """All that the monitor needs to start a container's init process."""

    id: str
    process: ProcessSpec
    rootfs: RootFs
    cgroup: CgroupSpec
    namespaces: tuple[Namespace, ...] = ()
    #: of the new user namespace of a library's container; CRI's are those of the sandbox
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    mounts: tuple[MountSpec, ...] = ()
    device_nodes: tuple[DeviceNode, ...] = ()
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    hostname: str | None = None
    domainname: str | None = None
    #: "monotonic", "boottime"; needs a new time namespace
    clock_offsets: Mapping[str, ClockOffset] = field(default_factory=dict)
    log: LogTarget | None = None
    #: keep a pipe to stdin open (CRI `stdin`); otherwise /dev/null
    stdin: bool = False
    stdin_once: bool = False
    #: a missing host source of a bind is made as a directory 0755, as containerd and CRI-O do
    make_missing_sources: bool = True
    #: made in the root when they are missing, before it may turn read-only
    directories: tuple[str, ...] = ()
    #: network devices of the host that the container gets while it lives, to their names inside ("" is the same)
    net_devices: Mapping[str, str] = field(default_factory=dict)
    intel_rdt: IntelRdt | None = None
    hooks: Hooks = Hooks()
    #: what hooks are told of the container: its annotations, and a directory with `config.json`
    annotations: Mapping[str, str] = field(default_factory=dict)
    bundle: str = ""
    #: SELinux context of the files of the root's overlay and of what is mounted new in it; None leaves them their own
    mount_label: str | None = None
