"""What a cgroup can tell beyond `stats`: read only while somebody asks for metrics. Missing files leave values None.

Sources: cgroup-v2.rst, cgroup-v1/memory.rst, cgroup-v1/blkio-controller.rst, cgroup-v1/hugetlb.rst.
"""

from __future__ import annotations

import os
import re

from crishim.cgroups.files import controller_file, flat_keyed, join_path, limit_or_none, number_or_none
from crishim.cgroups.hierarchy import Hierarchy
from crishim.cgroups.processes import oom_kills

_HUGETLB_V1 = re.compile(rb"hugetlb\.([0-9]+[KMG]B)\.usage_in_bytes")
_HUGETLB_V2 = re.compile(rb"hugetlb\.([0-9]+[KMG]B)\.current")


class DeviceIo:
    """Traffic with one block device, named "8:0"."""

    __slots__ = ("device", "read_bytes", "reads", "write_bytes", "writes")

    def __init__(self, device: str) -> None:
        self.device = device
        self.read_bytes = self.write_bytes = self.reads = self.writes = 0


class Details:
    """One reading; every field but `io` and `hugetlb` may be None."""

    __slots__ = (
        "cache_bytes",
        "failcnt",
        "hugetlb",
        "io",
        "kernel_bytes",
        "mapped_file_bytes",
        "max_usage_bytes",
        "oom_kills",
        "reservation_bytes",
        "threads_max",
    )

    def __init__(self) -> None:
        self.cache_bytes: int | None = None
        self.mapped_file_bytes: int | None = None
        self.kernel_bytes: int | None = None
        #: the peak
        self.max_usage_bytes: int | None = None
        #: how often the limit was met
        self.failcnt: int | None = None
        self.oom_kills: int | None = None
        #: memory that is reclaimed last
        self.reservation_bytes: int | None = None
        #: limit of processes and threads, None without one
        self.threads_max: int | None = None
        self.io: list[DeviceIo] = []
        #: (page size "2MB", bytes in use, peak, which v2 does not keep)
        self.hugetlb: list[tuple[str, int, int | None]] = []


def read(h: Hierarchy, path: str | bytes) -> Details:
    """A reading of the cgroup and what is below it. Never raises for what is missing."""
    details = Details()
    try:
        details.oom_kills = oom_kills(h, path)
    except OSError:
        details.oom_kills = None
    details.threads_max = number_or_none(controller_file(h, "pids", path, b"pids.max"))
    if h.is_v2("memory"):
        _memory_v2(h, path, details)
    else:
        _memory_v1(h, path, details)
    if h.is_v2("io"):
        _io_v2(h, path, details)
    else:
        _io_v1(h, path, details)
    _hugetlb(h, path, details)
    return details


def _memory_v2(h: Hierarchy, path: str | bytes, details: Details) -> None:
    values = flat_keyed(controller_file(h, "memory", path, b"memory.stat") or b"")
    details.cache_bytes, details.mapped_file_bytes = values.get(b"file"), values.get(b"file_mapped")
    details.kernel_bytes = values.get(b"kernel")  # Linux 5.18
    details.max_usage_bytes = number_or_none(controller_file(h, "memory", path, b"memory.peak"))  # Linux 5.19
    details.failcnt = flat_keyed(controller_file(h, "memory", path, b"memory.events") or b"").get(b"max")
    details.reservation_bytes = number_or_none(controller_file(h, "memory", path, b"memory.low"))


def _memory_v1(h: Hierarchy, path: str | bytes, details: Details) -> None:
    values = flat_keyed(controller_file(h, "memory", path, b"memory.stat") or b"")
    details.cache_bytes, details.mapped_file_bytes = values.get(b"total_cache"), values.get(b"total_mapped_file")
    details.kernel_bytes = number_or_none(controller_file(h, "memory", path, b"memory.kmem.usage_in_bytes"))
    details.max_usage_bytes = number_or_none(controller_file(h, "memory", path, b"memory.max_usage_in_bytes"))
    details.failcnt = number_or_none(controller_file(h, "memory", path, b"memory.failcnt"))
    soft = number_or_none(controller_file(h, "memory", path, b"memory.soft_limit_in_bytes"))
    details.reservation_bytes = limit_or_none(soft)


def _io_v2(h: Hierarchy, path: str | bytes, details: Details) -> None:
    for line in (controller_file(h, "io", path, b"io.stat") or b"").splitlines():
        device, *pairs = line.split()
        values = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)
        found = DeviceIo(device.decode())
        found.read_bytes, found.write_bytes, found.reads, found.writes = (
            int(values.get(key, 0)) for key in (b"rbytes", b"wbytes", b"rios", b"wios")
        )
        details.io.append(found)


def _io_v1(h: Hierarchy, path: str | bytes, details: Details) -> None:
    devices: dict[bytes, DeviceIo] = {}
    for file, fields in (
        (b"blkio.throttle.io_service_bytes_recursive", ("read_bytes", "write_bytes")),
        (b"blkio.throttle.io_serviced_recursive", ("reads", "writes")),
    ):
        for line in (controller_file(h, "blkio", path, file) or b"").splitlines():
            words = line.split()
            if len(words) == 3 and words[1] in (b"Read", b"Write"):
                found = devices.setdefault(words[0], DeviceIo(words[0].decode()))
                setattr(found, fields[words[1] == b"Write"], int(words[2]))
    details.io = list(devices.values())


def _hugetlb(h: Hierarchy, path: str | bytes, details: Details) -> None:
    if "hugetlb" not in h.controllers:
        return
    pattern = _HUGETLB_V2 if h.is_v2("hugetlb") else _HUGETLB_V1
    try:
        names = os.listdir(join_path(h.controllers["hugetlb"], path))
    except OSError:
        return
    for match in filter(None, map(pattern.fullmatch, sorted(names))):
        usage = number_or_none(controller_file(h, "hugetlb", path, match[0]))
        if usage is not None:
            peak = number_or_none(controller_file(h, "hugetlb", path, b"hugetlb." + match[1] + b".max_usage_in_bytes"))
            details.hugetlb.append((match[1].decode(), usage, peak))
