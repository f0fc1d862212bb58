"""What a cgroup uses, read once per sample. Each missing file leaves its values None.

Units are those of CRI: nanoseconds and bytes. Sources: cgroup-v2.rst, cgroup-v1/memory.rst and cpuacct.rst, psi.rst.
"""

from __future__ import annotations

import os
import time

from crishim.cgroups.files import controller_file, flat_keyed, join_path, limit_or_none, number_or_none, read_or_none
from crishim.cgroups.hierarchy import Hierarchy

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

#: (total stall ns, percent over 10 s, 60 s, 300 s)
Stall = tuple[int, float, float, float]


class Pressure:
    """One pressure file: stalls of some tasks and of all; `full` is None where the kernel has none."""

    __slots__ = ("full", "some")

    def __init__(self, some: Stall | None = None, full: Stall | None = None) -> None:
        self.some = some
        self.full = full


class Stats:
    """A sample; every field but the time may be None.

    working_set is usage without the inactive page cache; available is the limit minus it, None without a limit.
    """

    __slots__ = (
        "available_bytes",
        "cpu_pressure",
        "cpu_system_ns",
        "cpu_usage_ns",
        "cpu_user_ns",
        "io_pressure",
        "io_read_bytes",
        "io_write_bytes",
        "major_page_faults",
        "memory_limit_bytes",
        "memory_pressure",
        "nr_periods",
        "nr_throttled",
        "page_faults",
        "pids_current",
        "read_at_ns",
        "rss_bytes",
        "swap_limit_bytes",
        "swap_usage_bytes",
        "throttled_ns",
        "usage_bytes",
        "working_set_bytes",
    )

    def __init__(self) -> None:
        self.read_at_ns = time.time_ns()
        self.cpu_usage_ns: int | None = None
        self.cpu_user_ns: int | None = None
        self.cpu_system_ns: int | None = None
        self.nr_periods: int | None = None
        self.nr_throttled: int | None = None
        self.throttled_ns: int | None = None
        self.usage_bytes: int | None = None
        self.working_set_bytes: int | None = None
        self.available_bytes: int | None = None
        self.memory_limit_bytes: int | None = None
        self.rss_bytes: int | None = None
        self.page_faults: int | None = None
        self.major_page_faults: int | None = None
        self.swap_usage_bytes: int | None = None
        self.swap_limit_bytes: int | None = None
        self.pids_current: int | None = None
        self.io_read_bytes: int | None = None
        self.io_write_bytes: int | None = None
        self.cpu_pressure: Pressure | None = None
        self.memory_pressure: Pressure | None = None
        self.io_pressure: Pressure | None = None


def read(h: Hierarchy, path: str | bytes) -> Stats:
    """A sample of the cgroup, those below included as the kernel counts them. Never raises for what is missing."""
    stats = Stats()
    _read_cpu(h, path, stats)
    _read_memory(h, path, stats)
    _read_io(h, path, stats)
    stats.pids_current = number_or_none(controller_file(h, "pids", path, b"pids.current"))
    if h.mount:
        directory = join_path(h.mount, path)
        stats.cpu_pressure = parse_pressure(read_or_none(directory + b"/cpu.pressure"))
        stats.memory_pressure = parse_pressure(read_or_none(directory + b"/memory.pressure"))
        stats.io_pressure = parse_pressure(read_or_none(directory + b"/io.pressure"))
    return stats


def parse_pressure(text: bytes | None) -> Pressure | None:
    """A pressure file as a value; None when it is missing, as with psi=0."""
    if not text:
        return None
    stalls: dict[bytes, Stall] = {}
    for line in text.splitlines():
        kind, *pairs = line.split()
        values = dict(pair.split(b"=", 1) for pair in pairs)
        ten, sixty, long = (float(values[key]) for key in (b"avg10", b"avg60", b"avg300"))
        stalls[kind] = (int(values[b"total"]) * 1000, ten, sixty, long)
    return Pressure(stalls.get(b"some"), stalls.get(b"full"))


def _read_cpu(h: Hierarchy, path: str | bytes, stats: Stats) -> None:
    if h.mode == "v2":
        values = flat_keyed(read_or_none(join_path(h.mount, path) + b"/cpu.stat") or b"")
        stats.cpu_usage_ns, stats.cpu_user_ns, stats.cpu_system_ns, stats.throttled_ns = (
            values[key] * 1000 if key in values else None
            for key in (b"usage_usec", b"user_usec", b"system_usec", b"throttled_usec")
        )
    else:
        stats.cpu_usage_ns = number_or_none(controller_file(h, "cpuacct", path, b"cpuacct.usage"))
        ticks = flat_keyed(controller_file(h, "cpuacct", path, b"cpuacct.stat") or b"")
        stats.cpu_user_ns, stats.cpu_system_ns = (
            ticks[key] * _TICK_NS if key in ticks else None for key in (b"user", b"system")
        )
        values = flat_keyed(controller_file(h, "cpu", path, b"cpu.stat") or b"")
        stats.throttled_ns = values.get(b"throttled_time")
    stats.nr_periods = values.get(b"nr_periods")
    stats.nr_throttled = values.get(b"nr_throttled")


def _read_memory(h: Hierarchy, path: str | bytes, stats: Stats) -> None:
    values = flat_keyed(controller_file(h, "memory", path, b"memory.stat") or b"")
    if h.is_v2("memory"):
        usage, limit, prefix, rss = b"memory.current", b"memory.max", b"", b"anon"
    else:
        usage, limit, prefix, rss = b"memory.usage_in_bytes", b"memory.limit_in_bytes", b"total_", b"total_rss"
    stats.usage_bytes = number_or_none(controller_file(h, "memory", path, usage))
    stats.memory_limit_bytes = limit_or_none(number_or_none(controller_file(h, "memory", path, limit)))
    stats.rss_bytes = values.get(rss)
    stats.page_faults = values.get(prefix + b"pgfault")
    stats.major_page_faults = values.get(prefix + b"pgmajfault")
    if stats.usage_bytes is not None:
        stats.working_set_bytes = max(0, stats.usage_bytes - values.get(prefix + b"inactive_file", 0))
        if stats.memory_limit_bytes is not None:
            stats.available_bytes = max(0, stats.memory_limit_bytes - stats.working_set_bytes)
    _read_swap(h, path, stats)


def _read_swap(h: Hierarchy, path: str | bytes, stats: Stats) -> None:
    if h.is_v2("memory"):
        stats.swap_usage_bytes = number_or_none(controller_file(h, "memory", path, b"memory.swap.current"))
        stats.swap_limit_bytes = number_or_none(controller_file(h, "memory", path, b"memory.swap.max"))
        return
    both = number_or_none(controller_file(h, "memory", path, b"memory.memsw.usage_in_bytes"))
    if both is not None and stats.usage_bytes is not None:
        stats.swap_usage_bytes = max(0, both - stats.usage_bytes)
    total = limit_or_none(number_or_none(controller_file(h, "memory", path, b"memory.memsw.limit_in_bytes")))
    if total is not None and stats.memory_limit_bytes is not None:
        stats.swap_limit_bytes = max(0, total - stats.memory_limit_bytes)


def _read_io(h: Hierarchy, path: str | bytes, stats: Stats) -> None:
    if h.is_v2("io"):
        text = controller_file(h, "io", path, b"io.stat")
        pairs = [pair.split(b"=", 1) for pair in (text or b"").split() if b"=" in pair]
        sums = {key: sum(int(value) for k, value in pairs if k == key) for key in (b"rbytes", b"wbytes")}
        read_bytes, written_bytes = sums[b"rbytes"], sums[b"wbytes"]
    else:
        text = controller_file(h, "blkio", path, b"blkio.throttle.io_service_bytes_recursive")
        lines = [line.split() for line in (text or b"").splitlines()]
        read_bytes, written_bytes = (
            sum(int(line[2]) for line in lines if len(line) == 3 and line[1] == kind) for kind in (b"Read", b"Write")
        )
    if text is not None:
        stats.io_read_bytes, stats.io_write_bytes = read_bytes, written_bytes
