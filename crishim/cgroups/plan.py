"""From limits to files: what is to be written for a cgroup on this node. Pure; runs in the server.

Values are checked here, so that effects only fail on what the kernel alone can know. Order matters: the unified map
comes last and overrides what was derived. Sources: cgroup-v2.rst, cgroup-v1/*.rst, OCI runtime spec (config-linux.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from crishim.cgroups import units
from crishim.cgroups.devices import device_table
from crishim.cgroups.hierarchy import Hierarchy
from crishim.cgroups.planned import CgroupPlan as CgroupPlan
from crishim.cgroups.planned import Write
from crishim.cgroups.weight import weight_of_shares
from crishim.errors import InvalidSpec, Unsupported
from crishim.model.process import DeviceRule
from crishim.model.resources import Resources

_DEFAULT_PERIOD_US = 100000
_CPUSET_CHARACTERS = frozenset("0123456789,-\n ")


def plan(path: str, resources: Resources, devices: Sequence[DeviceRule] | None, hierarchy: Hierarchy) -> CgroupPlan:
    """The plan of the cgroup `path` ("/kubepods/pod1/ID", below the root of each tree).

    devices: None leaves device access as the parent has it (pods, updates); rules, even none, deny what they and the
    usual devices of a container do not allow.
    Raises InvalidSpec naming the field, Unsupported when a limit needs a controller this node lacks.
    """
    parts = path.strip("/").split("/")
    if any(part in ("", ".", "..") or "\0" in part or "\n" in part for part in parts):
        raise InvalidSpec(f"cgroup path {path!r} is not a plain path below the root")
    writes = [
        *_pids(resources, hierarchy),
        *_memory(resources, hierarchy),
        *_cpu(resources, hierarchy),
        *_cpuset(resources, hierarchy),
        *_hugetlb(resources, hierarchy),
        *_unified(resources, hierarchy),
    ]
    if units.is_unit(path):  # what systemd will write back must be what was written
        writes = [(c, f, units.rounded_quota(v) if f == "cpu.max" else v, needed) for c, f, v, needed in writes]
    planned = CgroupPlan("/" + "/".join(parts), writes)
    if devices is not None:
        table = device_table(devices)
        if hierarchy.mode == "v2":
            planned.device_program = table.program()
        elif "devices" in hierarchy.controllers:
            planned.devices_v1 = table.v1_writes()
        else:
            # without it a container could open any device that it can make a node of
            raise Unsupported("device rules: this node has no devices controller")
    return planned


def _need(hierarchy: Hierarchy, controller: str, field: str) -> bool:
    """True when the controller is of v2; Unsupported names the field when it is not there at all."""
    if controller not in hierarchy.controllers:
        raise Unsupported(f"{field}: this node has no {controller} controller")
    return hierarchy.is_v2(controller)


def _pids(resources: Resources, hierarchy: Hierarchy) -> list[Write]:
    limit = resources.pids_limit
    if limit is None or (limit < 0 and "pids" not in hierarchy.controllers):
        return []
    _need(hierarchy, "pids", "pids_limit")
    return [("pids", "pids.max", "max" if limit < 0 else str(max(limit, 1)), True)]


def _memory(resources: Resources, hierarchy: Hierarchy) -> list[Write]:
    limit, total = resources.memory_limit_bytes or 0, resources.memory_swap_limit_bytes or 0
    if not limit and not total:
        return []
    if limit < -1 or total < -1:
        raise InvalidSpec(f"memory limits {limit}, {total}: the only negative value is -1, unlimited")
    if total > 0 and limit == 0:
        raise InvalidSpec(f"memory_swap_limit_bytes {total} is memory and swap together and needs a memory limit")
    if total > 0 and (limit < 0 or total < limit):
        raise InvalidSpec(f"memory_swap_limit_bytes {total} is below the memory limit {limit}")
    if max(limit, total) <= 0 and "memory" not in hierarchy.controllers:
        return []
    total = total or limit  # nothing said about swap: none for a limited container, all for an unlimited one
    if _need(hierarchy, "memory", "memory_limit_bytes"):
        return _memory_v2(limit, total)
    writes: list[Write] = [("memory", "memory.limit_in_bytes", str(limit), True)] if limit else []
    # absent when the kernel does not account swap; then no swap limit can be kept or broken
    return [*writes, ("memory", "memory.memsw.limit_in_bytes", str(total), False)]


def _memory_v2(limit: int, total: int) -> list[Write]:
    writes: list[Write] = [("memory", "memory.max", "max" if limit < 0 else str(limit), True)] if limit else []
    swap = "max" if total < 0 else str(total - limit)
    return [*writes, ("memory", "memory.swap.max", swap, swap not in ("max", "0"))]


def _cpu(resources: Resources, hierarchy: Hierarchy) -> list[Write]:
    shares, quota, period = resources.cpu_shares or 0, resources.cpu_quota_us or 0, resources.cpu_period_us or 0
    if shares < 0 or period < 0:
        raise InvalidSpec(f"cpu_shares {shares} and cpu_period_us {period} must not be negative")
    if not (shares or quota or period):
        return []
    if _need(hierarchy, "cpu", "cpu_shares, cpu_quota_us or cpu_period_us"):
        writes: list[Write] = [("cpu", "cpu.weight", str(weight_of_shares(shares)), True)] if shares else []
        if quota or period:
            allowed = str(quota) if quota > 0 else "max"
            writes.append(("cpu", "cpu.max", f"{allowed} {period or _DEFAULT_PERIOD_US}", True))
        return writes
    pairs = [
        ("cpu.shares", min(max(shares, 2), 262144) if shares else 0),
        ("cpu.cfs_period_us", period),
        ("cpu.cfs_quota_us", max(quota, -1)),
    ]
    return [("cpu", file, str(value), True) for file, value in pairs if value]


def _cpuset(resources: Resources, hierarchy: Hierarchy) -> list[Write]:
    writes: list[Write] = []
    for field, file, value in (
        ("cpuset_cpus", "cpuset.cpus", resources.cpuset_cpus),
        ("cpuset_mems", "cpuset.mems", resources.cpuset_mems),
    ):
        if not value:
            continue
        if not set(value) <= _CPUSET_CHARACTERS:
            raise InvalidSpec(f"{field} {value!r} is not a list of numbers and ranges")
        _need(hierarchy, "cpuset", field)
        writes.append(("cpuset", file, value.strip(), True))
    return writes


def _hugetlb(resources: Resources, hierarchy: Hierarchy) -> list[Write]:
    """The kubelet sends every page size of the node, 0 when not asked for: a missing controller is not an error."""
    if "hugetlb" not in hierarchy.controllers:
        return []
    suffix = "max" if hierarchy.is_v2("hugetlb") else "limit_in_bytes"
    writes: list[Write] = []
    for size, limit in resources.hugepage_limits.items():
        if not (size[:-2].isdigit() and size[-2:] in ("KB", "MB", "GB")):
            raise InvalidSpec(f"hugepage_limits: {size!r} is not a page size like 2MB")
        if limit < 0:
            raise InvalidSpec(f"hugepage_limits: {limit} of {size} is negative")
        writes.append(("hugetlb", f"hugetlb.{size}.{suffix}", str(limit), limit > 0))
        writes.append(("hugetlb", f"hugetlb.{size}.rsvd.{suffix}", str(limit), False))  # Linux 5.7
    return writes


def _unified(resources: Resources, hierarchy: Hierarchy) -> list[Write]:
    writes: list[Write] = []
    for key, value in resources.unified.items():
        controller = key.partition(".")[0]
        # files of the cgroup core move, kill and freeze processes: no limits
        if "/" in key or "\0" in key or controller in ("", key, "cgroup"):
            raise InvalidSpec(f"unified[{key!r}] is not the name of a limit of cgroup v2")
        if hierarchy.mode != "v2":
            raise InvalidSpec(f"unified[{key!r}] needs cgroup v2, and this node is {hierarchy.mode}")
        if controller not in hierarchy.controllers:
            raise Unsupported(f"unified[{key!r}]: this node has no {controller} controller")
        # a kernel that accounts no swap lacks the file; "none" and "all" are then true anyway
        required = not (key == "memory.swap.max" and value.strip() in ("0", "max"))
        writes += [(controller, key, line, required) for line in value.splitlines() or [""]]
    return writes
