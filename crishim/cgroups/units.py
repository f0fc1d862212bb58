"""What systemd is told of a cgroup: properties of its unit, made from the same plan that the kernel's files are. Pure.

systemd writes what it knows whenever it looks at a unit again (daemon-reload, a change of a neighbour), so it must know
every limit that it could overwrite. What it cannot say (hugetlb, burst) it leaves alone, and device access is a program
of ours beside systemd's own. cgroup v2 only. Source: org.freedesktop.systemd1(5), systemd.resource-control(5).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from crishim.cgroups.planned import CgroupPlan, Write
from crishim.errors import InvalidSpec, Unsupported

#: name, then the value as D-Bus has it: (signature, value)
Property = tuple[str, tuple[str, Any]]

_INFINITY = (1 << 64) - 1
_SECOND_US = 1_000_000
_DEFAULT_PERIOD_US = 100_000
#: systemd keeps a quota in its unit files as whole percents of a CPU
_PERCENT_US = _SECOND_US // 100
#: more would be a list that nobody has CPUs for
_CPU_LIMIT = 65536
_IDLE_SINCE = 252
_OOM_POLICY_SINCE = 253


def is_unit(path: str) -> bool:
    """Whether a cgroup's path is that of a scope or a slice, which systemd makes and removes."""
    return path.endswith((".scope", ".slice"))


def unit_name(path: str) -> str:
    """Name of the unit whose cgroup is at a path, by systemd's rule its last component."""
    return path.rpartition("/")[2]


def rounded_quota(value: str) -> str:
    """A value of cpu.max as systemd will write it: the quota rounded up to whole percents of a CPU."""
    quota, period = _quota(value)
    return value if quota is None else f"{_per_second(quota, period) * period // _SECOND_US} {period}"


def limits(plan: CgroupPlan, version: int) -> list[Property]:
    """The properties that say what the plan writes, for a systemd of this version; later writes win.

    InvalidSpec names a list of CPUs or memory nodes that is none.
    """
    found: dict[str, Property] = {}
    for write in plan.writes:
        for each in _property(write, version):
            found[each[0]] = each
    return list(found.values())


def scope(plan: CgroupPlan, version: int, slice_name: str, description: str) -> list[Property]:
    """The properties of a container's new scope, without the processes that it starts with."""
    properties: dict[str, Property] = {
        name: (name, value)
        for name, value in (
            ("Description", ("s", description)),
            ("Slice", ("s", slice_name)),
            # the cgroups below are ours, and systemd hands every controller down to it
            ("Delegate", ("b", True)),
            ("DefaultDependencies", ("b", False)),
            # a scope that ended badly is nobody's to look at: containers have exit records
            ("CollectMode", ("s", "inactive-or-failed")),
            ("CPUAccounting", ("b", True)),
            ("MemoryAccounting", ("b", True)),
            ("IOAccounting", ("b", True)),
            ("TasksAccounting", ("b", True)),
            # the manager's default would be a limit that nobody asked for
            ("TasksMax", ("t", _INFINITY)),
        )
    }
    if version >= _OOM_POLICY_SINCE:
        together = ("memory", "memory.oom.group", "1") in [write[:3] for write in plan.writes]
        properties["OOMPolicy"] = ("OOMPolicy", ("s", "kill" if together else "continue"))
    return [*(properties | {each[0]: each for each in limits(plan, version)}).values()]


def check(plan: CgroupPlan) -> None:
    """InvalidSpec or Unsupported names what a scope cannot have."""
    limits(plan, 0)
    if ("pids", "pids.max", "1") in [write[:3] for write in plan.writes]:
        raise Unsupported("pids.max: a limit of one process leaves no room to start in with the systemd cgroup driver")


def _property(write: Write, version: int) -> Iterator[Property]:
    _, file, value, _ = write
    if file in _NUMBERS:
        yield _NUMBERS[file], ("t", _number(file, value))
    elif file in _LISTS:
        yield _LISTS[file], ("ay", _bits(file, value))
    elif file == "cpu.max":
        quota, period = _quota(value)
        yield "CPUQuotaPerSecUSec", ("t", _INFINITY if quota is None else _per_second(quota, period))
        yield "CPUQuotaPeriodUSec", ("t", period)
    elif file == "cpu.idle" and value.strip() == "1" and version >= _IDLE_SINCE:
        yield "CPUWeight", ("t", 0)
    elif file == "io.weight" and ":" not in value:  # that of all devices
        yield "IOWeight", ("t", _number(file, value.removeprefix("default").strip()))


#: files of one number to their properties
_NUMBERS = {
    "cpu.weight": "CPUWeight",
    "memory.high": "MemoryHigh",
    "memory.low": "MemoryLow",
    "memory.max": "MemoryMax",
    "memory.min": "MemoryMin",
    "memory.swap.max": "MemorySwapMax",
    "pids.max": "TasksMax",
}
_LISTS = {"cpuset.cpus": "AllowedCPUs", "cpuset.mems": "AllowedMemoryNodes"}
#: suffixes that the kernel takes (memparse)
_UNITS = {letter: 1 << 10 * power for power, letter in enumerate("KMGTPE", 1)}


def _number(file: str, value: str) -> int:
    text = value.strip()
    if text == "max":
        return _INFINITY
    unit = _UNITS.get(text[-1:].upper(), 1)
    digits = text if unit == 1 else text[:-1]
    if not (digits.isascii() and digits.isdigit()) or int(digits) * unit >= _INFINITY:
        raise InvalidSpec(f"{file}: {value!r} is not a number")
    return int(digits) * unit


def _quota(value: str) -> tuple[int | None, int]:
    """(quota, None for no limit; period) of a value of cpu.max, in microseconds."""
    quota, _, period = value.strip().partition(" ")
    period = period or str(_DEFAULT_PERIOD_US)
    if not (period.isascii() and period.isdigit() and int(period)):
        raise InvalidSpec(f"cpu.max: {value!r} is not a quota and a period in microseconds")
    return (None if quota == "max" else _number("cpu.max", quota)), int(period)


def _per_second(quota: int, period: int) -> int:
    """Microseconds of CPU a second, rounded up to what systemd keeps."""
    return -(-quota * _SECOND_US // period // _PERCENT_US) * _PERCENT_US


def _bits(file: str, value: str) -> bytes:
    """A list like "0-3,8" as a bit mask, the lowest byte first; an empty one is no restriction."""
    mask = 0
    for part in filter(None, (part.strip() for part in value.split(","))):
        first, dash, last = part.partition("-")
        ends = (first.strip(), last.strip() if dash else first.strip())
        if not all(end.isascii() and end.isdigit() for end in ends) or not int(ends[0]) <= int(ends[1]) < _CPU_LIMIT:
            raise InvalidSpec(f"{file}: {value!r} is not a list of numbers and ranges")
        mask |= (1 << int(ends[1]) + 1) - (1 << int(ends[0]))
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")
