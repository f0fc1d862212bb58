"""From the model's dataclasses to the slim values that zygote and monitor see (part of the executor's door).

Names become numbers and strings become bytes here, once, so that nothing between clone3(2) and execve(2) looks a name
up. A name that the kernel does not have is refused here, with the field and the value.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from crishim.cgroups import resctrl
from crishim.cgroups.hierarchy import Hierarchy
from crishim.cgroups.plan import plan as cgroup_plan
from crishim.errors import InvalidSpec, Unsupported
from crishim.executor import tables
from crishim.executor.listener_values import seccomp_flags
from crishim.linux import selinux
from crishim.model.capabilities import CAPABILITIES
from crishim.model.process import (
    PROC_FILES,
    ContainerSpec,
    CpuAffinity,
    IntelRdt,
    MemoryPolicy,
    MountSpec,
    Namespace,
    NamespaceKind,
    ProcessSpec,
    Propagation,
)

_POLICIES = {
    "SCHED_OTHER": 0, "SCHED_FIFO": 1, "SCHED_RR": 2, "SCHED_BATCH": 3, "SCHED_ISO": 4, "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}  # fmt: skip
_SCHED_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 1, "SCHED_FLAG_RECLAIM": 2, "SCHED_FLAG_DL_OVERRUN": 4, "SCHED_FLAG_KEEP_POLICY": 8,
    "SCHED_FLAG_KEEP_PARAMS": 16, "SCHED_FLAG_UTIL_CLAMP_MIN": 32, "SCHED_FLAG_UTIL_CLAMP_MAX": 64,
}  # fmt: skip
_MEMORY_MODES = {
    "MPOL_DEFAULT": 0, "MPOL_PREFERRED": 1, "MPOL_BIND": 2, "MPOL_INTERLEAVE": 3, "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5, "MPOL_WEIGHTED_INTERLEAVE": 6,
}  # fmt: skip
_MEMORY_FLAGS = {"MPOL_F_STATIC_NODES": 1 << 15, "MPOL_F_RELATIVE_NODES": 1 << 14, "MPOL_F_NUMA_BALANCING": 1 << 13}
_PERSONALITIES = {"LINUX": 0, "LINUX32": 8}
_CLOCKS = ("monotonic", "boottime")
_IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
_LEVELS = ("panic", "fatal", "error", "warning", "info", "debug", "trace")
ERROR, DEBUG = 2, 5
#: ids are 32 bits, and the last one means "no change" to setresuid(2)
_ID_LIMIT = 0xFFFFFFFE
_LONG_LIMIT = (1 << 63) - 1
#: ids that a list of CPUs may name, as runc has it; and of nodes, of which no kernel has more (CONFIG_NODES_SHIFT)
_CPU_LIMIT = 65536
_NODE_LIMIT = 1024
_FILE_SYSTEMS = frozenset({"bind", "image", "shm", "cgroup", "proc", "sysfs", "tmpfs", "devpts", "mqueue"})


def container_value(spec: ContainerSpec, hierarchy: Hierarchy) -> dict[str, object]:
    """The body of START_CONTAINER. InvalidSpec names the field that cannot be honoured."""
    rootfs = spec.rootfs
    if not rootfs.lowers and rootfs.path is None:
        raise InvalidSpec("rootfs has neither layers nor a path")
    return {
        "id": _bytes("id", spec.id),
        "process": process_value(spec.process),
        "rootfs": {
            "lowers": [os.fsencode(lower) for lower in rootfs.lowers],
            "upper": rootfs.upper and os.fsencode(rootfs.upper),
            "work": rootfs.work and os.fsencode(rootfs.work),
            "path": rootfs.path and os.fsencode(rootfs.path),
            "readonly": rootfs.readonly,
            "propagation": rootfs.propagation.value.encode(),
        },
        "cgroup": spec.cgroup.path,
        "cgroup_plan": cgroup_plan(spec.cgroup.path, spec.cgroup.resources, spec.cgroup.devices, hierarchy).to_value(),
        "new_namespaces": [ns.kind.value.encode() for ns in spec.namespaces if ns.path is None],
        "joined_namespaces": {
            ns.kind.value.encode(): os.fsencode(ns.path) for ns in spec.namespaces if ns.path is not None
        },
        "clock_offsets": _clock_offsets(spec),
        "mounts": [_mount_value(index, mount) for index, mount in enumerate(spec.mounts)],
        "device_nodes": [
            [os.fsencode(node.path), node.kind.encode(), node.major, node.minor, node.mode, node.uid, node.gid]
            for node in spec.device_nodes
        ],
        "device_sources": [_bytes("device_nodes", node.source or node.path) for node in spec.device_nodes],
        "masked_paths": [_bytes("masked_paths", path) for path in dict.fromkeys(spec.masked_paths)],
        "readonly_paths": [_bytes("readonly_paths", path) for path in dict.fromkeys(spec.readonly_paths)],
        "sysctls": {_bytes("sysctls", key): os.fsencode(value) for key, value in spec.sysctls.items()},
        "hostname": None if spec.hostname is None else _bytes("hostname", spec.hostname),
        "domainname": None if spec.domainname is None else _bytes("domainname", spec.domainname),
        "log": spec.log and [os.fsencode(spec.log.directory), os.fsencode(spec.log.path)],
        "stdin": spec.stdin,
        "stdin_once": spec.stdin_once,
        "make_missing_sources": spec.make_missing_sources,
        "mount_label": _label("mount_label", spec.mount_label),
        "directories": [_normal(f"directories[{index}]", path) for index, path in enumerate(spec.directories)],
        "net_devices": _net_devices(spec),
        "rdt": rdt_value(spec.intel_rdt, spec.id),
        "hooks": None,  # `hook_values.py` makes them, of who knows where they run
    }


def _net_devices(spec: ContainerSpec) -> list[list[bytes]]:
    pairs = [[_device_name(name), _device_name(inside or name)] for name, inside in spec.net_devices.items()]
    for index, (_, inside) in enumerate(pairs):
        if inside in [other for _, other in pairs[:index]]:
            raise InvalidSpec(f"net_devices: {os.fsdecode(inside)!r} would be the name of two devices")
    return pairs


def rdt_value(rdt: IntelRdt | None, container_id: str) -> dict[str, object] | None:
    """Of `cgroups.resctrl`, with its mount point as "root". InvalidSpec and Unsupported name the field."""
    if rdt is None:
        return None
    name = rdt.clos_id or container_id
    if "/" in name or "\0" in name or "\n" in name or name in (".", "..", "info", "mon_groups", "mon_data"):
        raise InvalidSpec(f"intel_rdt.clos_id: {name!r} cannot be the name of a class of service")
    for line in rdt.schemata:
        if ":" not in line or "\n" in line or "\0" in line:
            raise InvalidSpec(f"intel_rdt.schemata: {line!r} is not a line like 'L3:0=f'")
    root = resctrl.find()
    if not root:
        raise Unsupported("intel_rdt: resctrl is not mounted on this node")
    monitor = container_id if rdt.monitoring else ""
    own = not rdt.clos_id
    return {"root": root, "group": name, "own": own, "schemata": list(rdt.schemata), "monitor": monitor}


def _device_name(name: str) -> bytes:
    """As the kernel takes it (dev_valid_name)."""
    text = _bytes("net_devices", name)
    if not 0 < len(text) < 16 or name in (".", "..") or any(letter in "/:" or letter.isspace() for letter in name):
        raise InvalidSpec(f"net_devices: {name!r} is not the name of a network device")
    if "%" in name:
        raise InvalidSpec(f"net_devices: {name!r} has a %, which the kernel would replace by a number")
    return text


def process_value(process: ProcessSpec) -> dict[str, object]:
    """A process as zygote and monitor see it; descriptors travel beside it."""
    if not process.args:
        raise InvalidSpec("args is empty")
    capabilities = process.capabilities
    scheduler = process.scheduler
    affinity = process.cpu_affinity or CpuAffinity()
    if scheduler is not None and scheduler.policy not in _POLICIES:
        raise InvalidSpec(f"scheduler.policy: {scheduler.policy!r} is not a scheduling policy")
    for flag in scheduler.flags if scheduler else ():
        if flag not in _SCHED_FLAGS:
            raise InvalidSpec(f"scheduler.flags: {flag!r} is not a flag of sched_setattr(2)")
    for name, number, lowest, highest in _numbers(process):
        if not lowest <= number <= highest:
            raise InvalidSpec(f"{name}: {number} is not within {lowest}..{highest}")
    io = process.io_priority
    if io is not None and (io.kind not in _IO_CLASSES or not 0 <= io.priority <= 7):
        raise InvalidSpec(f"io_priority: {io.kind!r} {io.priority} is not a class with a priority of 0..7")
    for limit in process.rlimits:
        if limit.kind.encode() not in tables.RLIMITS:
            raise InvalidSpec(f"rlimits: {limit.kind!r} is not a resource limit")
        if limit.hard != -1 and (limit.soft == -1 or limit.soft > limit.hard):
            raise InvalidSpec(f"rlimits: {limit.kind} soft {limit.soft} is above hard {limit.hard}")
    return {
        "args": [_bytes("args", arg) for arg in process.args],
        "env": _environment(process.env),
        "uid": process.user.uid,
        "gid": process.user.gid,
        "groups": list(process.user.additional_groups),
        "umask": process.user.umask,
        "cwd": None if process.cwd is None else _bytes("cwd", process.cwd),
        "capabilities": capabilities
        and [
            capability_mask(names)
            for names in (
                capabilities.bounding,
                capabilities.effective,
                capabilities.permitted,
                capabilities.inheritable,
                capabilities.ambient,
            )
        ],
        "apparmor_profile": process.apparmor_profile and _bytes("apparmor_profile", process.apparmor_profile),
        "label": _label("label", process.label),
        "no_new_privileges": process.no_new_privileges,
        "rlimits": [[limit.kind.encode(), limit.soft, limit.hard] for limit in process.rlimits],
        "terminal": process.terminal,
        "console_width": process.console_width,
        "console_height": process.console_height,
        "scheduler": scheduler
        and [
            _POLICIES[scheduler.policy],
            sum(_SCHED_FLAGS[flag] for flag in scheduler.flags),
            scheduler.nice,
            scheduler.priority,
            scheduler.runtime_ns,
            scheduler.deadline_ns,
            scheduler.period_ns,
        ],
        "io_priority": io and _IO_CLASSES[io.kind] << 13 | io.priority if io else None,
        "initial_affinity": _affinity(affinity.initial),
        "affinity": _affinity(affinity.final),
        "log": log_level(process) >= DEBUG and process.log_fd is not None,
        "memory_policy": _memory_policy(process.memory_policy),
        "personality": _personality(process.personality),
        # never ours: the zygote's is as low as it may be, and a child would inherit it
        "oom_score_adj": process.oom_score_adj or 0,
        "seccomp": process.seccomp,
        "seccomp_flags": seccomp_flags(process),
    }


def _numbers(process: ProcessSpec) -> Iterator[tuple[str, int, int, int]]:
    """(field, number, smallest, largest) of what the kernel takes as an integer."""
    yield "uid", process.user.uid, 0, _ID_LIMIT
    yield "gid", process.user.gid, 0, _ID_LIMIT
    yield from (("additional_groups", group, 0, _ID_LIMIT) for group in process.user.additional_groups)
    for limit in process.rlimits:
        yield f"rlimits: soft {limit.kind}", limit.soft, -1, _LONG_LIMIT
        yield f"rlimits: hard {limit.kind}", limit.hard, -1, _LONG_LIMIT
    yield "console_width", process.console_width, 0, 0xFFFF
    yield "console_height", process.console_height, 0, 0xFFFF
    if process.oom_score_adj is not None:
        yield "oom_score_adj", process.oom_score_adj, -1000, 1000
    if process.scheduler is not None:
        for name in ("runtime_ns", "deadline_ns", "period_ns"):
            yield f"scheduler.{name}", getattr(process.scheduler, name), 0, _LONG_LIMIT


def capability_mask(names: frozenset[str]) -> int:
    """Bit mask by capability number; InvalidSpec for a name that is none."""
    mask = 0
    for name in names:
        try:
            mask |= 1 << CAPABILITIES.index(name)
        except ValueError:
            raise InvalidSpec(f"capabilities: {name!r} is not a capability") from None
    return mask


def _bytes(field: str, text: str) -> bytes:
    if "\0" in text:
        raise InvalidSpec(f"{field}: {text!r} holds a NUL character")
    return os.fsencode(text)


def _label(field: str, label: str | None) -> bytes | None:
    """An SELinux context that this node has; a label that nobody would enforce is no label."""
    if not label:
        return None
    context = _bytes(field, label)
    why = selinux.why_refused(label)
    if why:
        raise InvalidSpec(f"{field}: {label!r}: {why}")
    return context


def _environment(entries: tuple[str, ...]) -> list[bytes]:
    """NAME=value entries; the last of equal names wins, in the place of the first."""
    seen: dict[bytes, bytes] = {}
    for entry in entries:
        name, mark, value = _bytes("env", entry).partition(b"=")
        if not name or not mark:
            raise InvalidSpec(f"env: {entry!r} is not NAME=value")
        seen[name] = value
    return [name + b"=" + value for name, value in seen.items()]


def _affinity(text: str | None) -> list[int]:
    return _numbers_of("cpu_affinity", text, "CPUs", _CPU_LIMIT) if text else []


def log_level(process: ProcessSpec) -> int:
    """The level as a number, -1 for none. InvalidSpec for one that is no level."""
    text = process.log_level.lower()
    if not text:
        return -1
    if text not in _LEVELS and text not in map(str, range(len(_LEVELS))):
        raise InvalidSpec(f"log_level: {process.log_level!r} is not one of {', '.join(_LEVELS)}, or its number")
    return int(text) if text.isdigit() else _LEVELS.index(text)


def _memory_policy(policy: MemoryPolicy | None) -> list[object] | None:
    """[mode with flags, mask of nodes] as set_mempolicy(2) takes them."""
    if policy is None:
        return None
    if policy.mode not in _MEMORY_MODES:
        raise InvalidSpec(f"memory_policy.mode: {policy.mode!r} is not a mode of set_mempolicy(2)")
    mode = _MEMORY_MODES[policy.mode]
    for flag in policy.flags:
        if flag not in _MEMORY_FLAGS:
            raise InvalidSpec(f"memory_policy.flags: {flag!r} is not a flag of set_mempolicy(2)")
        mode |= _MEMORY_FLAGS[flag]
    mask = 0
    for node in _numbers_of("memory_policy.nodes", policy.nodes, "NUMA nodes", _NODE_LIMIT) if policy.nodes else ():
        mask |= 1 << node
    return [mode, mask.to_bytes((mask.bit_length() + 63) // 64 * 8, "little")]


def _personality(name: str | None) -> int | None:
    if name is None:
        return None
    if name not in _PERSONALITIES:
        raise InvalidSpec(f"personality: {name!r} is neither LINUX nor LINUX32")
    return _PERSONALITIES[name]


def _clock_offsets(spec: ContainerSpec) -> bytes:
    """Lines for /proc/PID/timens_offsets."""
    if spec.clock_offsets and Namespace(NamespaceKind.TIME) not in spec.namespaces:
        raise InvalidSpec("clock_offsets: they need a new time namespace")
    lines = []
    for clock, offset in spec.clock_offsets.items():
        if clock not in _CLOCKS:
            raise InvalidSpec(f"clock_offsets: {clock!r} is neither monotonic nor boottime")
        if not 0 <= offset.nanoseconds < 10**9 or abs(offset.seconds) > _LONG_LIMIT:
            raise InvalidSpec(f"clock_offsets: {offset.seconds} s {offset.nanoseconds} ns is not an offset")
        lines.append(b"%b %d %d\n" % (clock.encode(), offset.seconds, offset.nanoseconds))
    return b"".join(lines)


def _numbers_of(field: str, text: str, what: str, limit: int) -> list[int]:
    """The numbers of a list such as "0-3,5"."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not _is_number(first) or (dash and not _is_number(last)):
            raise InvalidSpec(f"{field}: {text!r} is not a list of {what}")
        low, high = int(first), int(last or first)
        if low > high or high >= limit:
            raise InvalidSpec(f"{field}: {part!r} is no range of {what} below {limit}")
        numbers.extend(range(low, high + 1))
    return numbers


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _mount_value(index: int, mount: MountSpec) -> dict[str, object]:
    where = f"mounts[{index}]"
    if mount.kind not in _FILE_SYSTEMS:
        raise InvalidSpec(f"{where}.kind: {mount.kind!r} is not one of {', '.join(sorted(_FILE_SYSTEMS))}")
    target = _normal(where, mount.target)
    on_proc = mount.kind != "proc" and (target + b"/").startswith(b"/proc/")
    if target == b"/" or (on_proc and (mount.kind != "bind" or target.decode(errors="replace") not in PROC_FILES)):
        # a fake /proc would let a container forge what we write there (CVE-2019-16884)
        raise InvalidSpec(f"{where}.target: {mount.target!r} cannot be mounted over")
    for flag in mount.flags:
        if flag.encode() not in tables.MOUNT_FLAGS:
            raise InvalidSpec(f"{where}.flags: {flag!r} is not a mount flag")
    if mount.kind == "bind" and not mount.source.startswith("/"):
        raise InvalidSpec(f"{where}.source: {mount.source!r} is not an absolute path")
    if (mount.kind == "image") != bool(mount.layers):
        raise InvalidSpec(f"{where}.layers: an image has layers, and nothing else has")
    if mount.copy_up and (mount.kind != "tmpfs" or target == b"/dev"):
        raise InvalidSpec(f"{where}.copy_up: only a tmpfs, and not that of /dev, begins with what it covers")
    return {
        "target": target,
        "kind": mount.kind.encode(),
        "source": _bytes(where + ".source", mount.source),
        "flags": [flag.encode() for flag in mount.flags],
        "options": [_bytes(where + ".options", option) for option in mount.options],
        "propagation": mount.propagation.value.encode(),
        "private": mount.propagation is Propagation.PRIVATE,
        "recursive": mount.recursive,
        "idmap": mount.idmap,
        "copy_up": mount.copy_up,
        "layers": [os.fsencode(layer) for layer in mount.layers],
    }


def _normal(where: str, path: str) -> bytes:
    if not path.startswith("/"):
        raise InvalidSpec(f"{where}.target: {path!r} is not an absolute path")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidSpec(f"{where}.target: {path!r} has a .. component")
    return _bytes(where + ".target", "/" + "/".join(parts))
