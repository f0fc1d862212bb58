"""The containers that are looked at; each is a `ContainerSpec`, from which the peers' configuration is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crishim.executor.probe import NodeFacts
from crishim.model.process import (
    Capabilities,
    ContainerSpec,
    DeviceNode,
    DeviceRule,
    IoPriority,
    MountSpec,
    Namespace,
    NamespaceKind,
    ProcessSpec,
    Propagation,
    Rlimit,
    Scheduler,
    User,
)
from crishim.model.resources import Resources
from crishim.process import isolated
from crishim.spec.capabilities import DEFAULT
from crishim.spec.seccomp import compile_oci, runtime_default
from tests.support.observer import profiles

#: looked at in every container, masked, read-only or neither
PATHS = (
    *("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/proc/kpagecount"),
    *("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/proc/self/environ"),
    *("/sys/devices/virtual/powercap", "/sys/firmware", "/sys/kernel", "/sys/fs/cgroup", "/sys/kernel/debug"),
    *("/dev/null", "/dev/console", "/dev/core", "/dev/shm", "/dev/mqueue", "/dev/pts", "/dev/kmsg"),
    *("/masked-file", "/masked-directory", "/readonly-file", "/readonly-directory", "/nothing", "/private", "/tmp"),
)
_ENVIRONMENT = ("PATH=/usr/bin:/bin", "HOME=/root", "NAME=two words", "EMPTY=")
_POD_NAMESPACES = (NamespaceKind.NETWORK, NamespaceKind.IPC, NamespaceKind.UTS)


@dataclass(frozen=True)
class Observed:
    """A container, and the filter of its process as the OCI runtime specification writes it."""

    spec: ContainerSpec
    seccomp: dict[str, Any] | None
    #: host id of uid and gid 0 of a user namespace, 0 without one
    host_id: int = 0


def plain(root: Path, node: NodeFacts) -> Observed:
    """What the library gives whoever asks for nothing, with the filter of RuntimeDefault."""
    spec = isolated(root, id="plain")
    filter_ = runtime_default(DEFAULT, node.kernel, node.machine)
    return Observed(replace(spec, process=_process(seccomp=filter_)), profiles.runtime_default(DEFAULT, node.machine))


def terminal(root: Path, node: NodeFacts) -> Observed:
    """The same with a terminal, for another user."""
    observed = plain(root, node)
    process = replace(
        observed.spec.process,
        user=User(1000, 1000, (1000,)),
        terminal=True,
        console_width=100,
        console_height=40,
    )
    return replace(observed, spec=replace(observed.spec, id="terminal", process=process))


def user(root: Path, node: NodeFacts) -> Observed:
    """A user without privileges, and something in nearly every field."""
    seccomp = profiles.with_arguments(node.machine)
    process = _process(
        env=("PATH=/usr/bin:/bin", "TWICE=first", "LAST=1", "TWICE=second"),
        user=User(1000, 1000, (1000, 100, 65534), umask=0o027),
        cwd="/made/for/it",
        capabilities=Capabilities(
            bounding=frozenset({"CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"}),
            permitted=frozenset({"CAP_KILL", "CAP_NET_RAW"}),
            effective=frozenset({"CAP_KILL"}),
            inheritable=frozenset({"CAP_NET_RAW"}),
            ambient=frozenset({"CAP_NET_RAW"}),
        ),
        no_new_privileges=True,
        rlimits=(
            Rlimit("RLIMIT_NOFILE", 500, 600),
            Rlimit("RLIMIT_CORE", 0, 0),
            Rlimit("RLIMIT_NPROC", 200, 300),
            Rlimit("RLIMIT_STACK", 4 << 20, 8 << 20),
            Rlimit("RLIMIT_MEMLOCK", 32768, 65536),
        ),
        scheduler=Scheduler("SCHED_BATCH", nice=5),
        io_priority=IoPriority("IOPRIO_CLASS_BE", 6),
        oom_score_adj=500,
        seccomp=compile_oci(seccomp, kernel=node.kernel, machine=node.machine).program,
    )
    spec = isolated(root, id="user", hostname="observed")
    shared = str(root.parent / "shared")
    spec = replace(
        spec,
        process=process,
        rootfs=replace(spec.rootfs, readonly=True),
        domainname="example.test",
        mounts=(
            *spec.mounts,
            MountSpec("/tmp", "tmpfs", "tmpfs", ("nosuid", "nodev", "noexec"), ("mode=1770", "size=1024k", "uid=1000")),
            MountSpec("/mounted/read-only", "bind", shared, ("ro", "nosuid", "nodev")),
            MountSpec("/mounted/slave", "bind", shared, ("noexec", "noatime"), (), Propagation.HOST_TO_CONTAINER),
            MountSpec("/mounted/file", "bind", f"{shared}/file"),
        ),
        device_nodes=(*spec.device_nodes, DeviceNode("/dev/fuse", "c", 10, 229, 0o660, 1000, 5)),
        masked_paths=(*spec.masked_paths, "/masked-file", "/masked-directory", "/nothing"),
        readonly_paths=(*spec.readonly_paths, "/readonly-file", "/readonly-directory", "/nothing"),
        sysctls={
            "kernel.shm_rmid_forced": "1",
            "kernel.msgmax": "4096",
            "fs.mqueue.queues_max": "64",
            "net.ipv4.ping_group_range": "0 1000",
            "net.ipv4.ip_unprivileged_port_start": "80",
        },
        cgroup=replace(
            spec.cgroup,
            devices=(DeviceRule(False), DeviceRule(True, "c", 10, 229, "rw")),
            resources=Resources(
                cpu_shares=512,
                cpu_quota_us=50_000,
                cpu_period_us=100_000,
                memory_limit_bytes=256 << 20,
                pids_limit=100,
                cpuset_cpus="0",
            ),
        ),
    )
    return Observed(spec, seccomp)


def bare(root: Path, node: NodeFacts) -> Observed:
    """Every capability, no filter, nothing hidden, and the host's network, IPC and UTS namespaces."""
    names = frozenset(node.capabilities)
    spec = isolated(root, id="bare", network="host")
    spec = replace(
        spec,
        process=_process(capabilities=Capabilities(bounding=names, effective=names, permitted=names)),
        namespaces=tuple(Namespace(ns.kind) for ns in spec.namespaces if ns.kind not in _POD_NAMESPACES),
        mounts=tuple(_writable(mount) for mount in spec.mounts if mount.kind != "shm"),
        masked_paths=(),
        readonly_paths=(),
        hostname=None,
        cgroup=replace(spec.cgroup, devices=(DeviceRule(True),)),
    )
    return Observed(spec, None)


def mapped(root: Path, node: NodeFacts) -> Observed:
    """The plain one in a user namespace."""
    observed = plain(root, node)
    return replace(observed, spec=replace(observed.spec, id="mapped"), host_id=200_000)


CONTAINERS: tuple[Callable[[Path, NodeFacts], Observed], ...] = (plain, terminal, user, bare, mapped)


def _process(**fields: Any) -> ProcessSpec:
    default = Capabilities(bounding=DEFAULT, effective=DEFAULT, permitted=DEFAULT)
    usual = {"env": _ENVIRONMENT, "cwd": "/", "capabilities": default}
    return ProcessSpec(args=("/bin/observe", *PATHS), init=True, **{**usual, **fields})


def _writable(mount: MountSpec) -> MountSpec:
    return replace(mount, flags=tuple(flag for flag in mount.flags if flag != "ro"))
