"""A full container and process, and what the preparer would have opened for them."""

from __future__ import annotations

from crishim.cgroups.hierarchy import Hierarchy
from crishim.executor import value
from crishim.model.process import (
    Capabilities,
    CgroupSpec,
    ContainerSpec,
    CpuAffinity,
    DeviceNode,
    IoPriority,
    LogTarget,
    MountSpec,
    Namespace,
    NamespaceKind,
    ProcessSpec,
    Propagation,
    Rlimit,
    RootFs,
    Scheduler,
    User,
)

V2 = Hierarchy("v2", b"/cgroups", {})

PROCESS = ProcessSpec(
    args=("prog", "arg"),
    env=("PATH=/bin", "A=1"),
    user=User(uid=1000, gid=2000, additional_groups=(2000, 3000), umask=0o027),
    cwd="/work",
    capabilities=Capabilities(
        bounding=frozenset({"CAP_CHOWN", "CAP_KILL"}),
        effective=frozenset({"CAP_CHOWN"}),
        permitted=frozenset({"CAP_CHOWN"}),
        inheritable=frozenset(),
        ambient=frozenset(),
    ),
    no_new_privileges=True,
    rlimits=(Rlimit("RLIMIT_NOFILE", 10, 20),),
    scheduler=Scheduler("SCHED_BATCH", nice=3),
    io_priority=IoPriority("IOPRIO_CLASS_BE", 4),
    cpu_affinity=CpuAffinity(final="0,2-3"),
    oom_score_adj=500,
    seccomp=b"program",
)

CONTAINER = ContainerSpec(
    id="c1",
    process=PROCESS,
    rootfs=RootFs(
        lowers=("/l2", "/l1"), upper="/u", work="/w", readonly=True, propagation=Propagation.HOST_TO_CONTAINER
    ),
    cgroup=CgroupSpec("/pods/c1"),
    namespaces=(
        Namespace(NamespaceKind.PID),
        Namespace(NamespaceKind.MOUNT),
        Namespace(NamespaceKind.CGROUP),
        Namespace(NamespaceKind.UTS),
        Namespace(NamespaceKind.NETWORK, "/run/netns/x"),
    ),
    mounts=(
        MountSpec("/proc", "proc", flags=("nosuid", "noexec", "nodev")),
        MountSpec("/dev", "tmpfs", flags=("nosuid", "strictatime"), options=("mode=755",)),
        MountSpec("/dev/pts", "devpts", flags=("nosuid", "noexec"), options=("newinstance",)),
        MountSpec("/dev/shm", "shm", flags=("nosuid",)),
        MountSpec("/sys/fs/cgroup", "cgroup", flags=("ro",)),
        MountSpec("/etc/hosts", source="/pods/hosts", flags=("ro",)),
    ),
    device_nodes=(DeviceNode("/dev/null", "c", 1, 3),),
    masked_paths=("/proc/kcore", "/proc/keys", "/proc/kcore"),
    readonly_paths=("/proc/sys",),
    sysctls={"kernel.shmmni": "7"},
    hostname="host",
    domainname="domain",
    log=LogTarget("/logs", "0.log"),
)

#: descriptors by role
OPENED = {
    b"ns:net": 30,
    b"mount:5": 31,
    b"root": 32,
    b"procs:0": 33,
    b"procs:1": 34,
    b"cgroup:4:": 35,
    b"proc": 36,
    b"stdin": -1,
    b"stdout": 37,
    b"stderr": 38,
}


def container_value(spec: ContainerSpec = CONTAINER) -> dict[str, object]:
    """The slim value, as the preparer leaves it: it says of each bind whether its source is a file."""
    made = value.container_value(spec, V2)
    for mount in made["mounts"]:  # type: ignore[attr-defined]
        if mount["kind"] == b"bind":
            mount["source_is_file"] = True
    return made
