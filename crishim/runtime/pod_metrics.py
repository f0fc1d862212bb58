"""CRI's metrics from readings: which there are, and their values for a container and a pod. Pure.

Names and meaning follow cAdvisor, whose series the kubelet's /metrics/cadvisor had. Values are whole: seconds and
stalls lose their fractions, as CRI has no others. A value that is not known makes no series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from crishim.cgroups.details import Details
from crishim.cgroups.stats import Pressure, Stats
from crishim.model.container import Container
from crishim.model.image import FilesystemUsage
from crishim.model.metric import Metric, MetricDescriptor, MetricType
from crishim.model.sandbox import Sandbox
from crishim.model.stats import NetworkSample
from crishim.runtime.usage import ContainerReading

_NS: Final = 1_000_000_000
_BASE: Final = ("id", "name", "image")
_DESCRIPTORS: dict[str, MetricDescriptor] = {}

#: (name without "container_", labels after the base, value); None makes no series
Value = tuple[str, tuple[str, ...], int | None]


def _counter(name: str, help: str, *labels: str) -> None:
    _define(name, help, labels, MetricType.COUNTER)


def _gauge(name: str, help: str, *labels: str) -> None:
    _define(name, help, labels, MetricType.GAUGE)


def _define(name: str, help: str, labels: tuple[str, ...], kind: MetricType) -> None:
    _DESCRIPTORS[name] = MetricDescriptor(f"container_{name}", help, (*_BASE, *labels), kind)


_counter("cpu_usage_seconds_total", "CPU time used, in seconds", "cpu")
_counter("cpu_user_seconds_total", "CPU time used outside of the kernel, in seconds")
_counter("cpu_system_seconds_total", "CPU time used in the kernel, in seconds")
_counter("cpu_cfs_periods_total", "periods in which the quota was counted")
_counter("cpu_cfs_throttled_periods_total", "periods in which the quota was used up")
_counter("cpu_cfs_throttled_seconds_total", "time spent waiting for the next period, in seconds")
_gauge("memory_usage_bytes", "memory in use, page cache included")
_gauge("memory_working_set_bytes", "memory in use without inactive pages of files")
_gauge("memory_rss", "anonymous memory, in bytes")
_gauge("memory_cache", "page cache, in bytes")
_gauge("memory_mapped_file", "mapped pages of files, in bytes")
_gauge("memory_kernel_usage", "memory that the kernel uses for the container, in bytes")
_gauge("memory_swap", "swap in use, in bytes")
_gauge("memory_max_usage_bytes", "the most memory that was in use")
_counter("memory_failcnt", "times that the memory limit was met")
_counter("memory_failures_total", "page faults", "failure_type", "scope")
_counter("oom_events_total", "processes that the kernel killed for want of memory")
_gauge("hugetlb_usage_bytes", "huge pages in use", "pagesize")
_gauge("hugetlb_max_usage_bytes", "the most huge pages that were in use", "pagesize")
_gauge("fs_usage_bytes", "bytes written into the container's root", "device")
_gauge("fs_limit_bytes", "size of the file system of the container's root", "device")
_gauge("fs_inodes_total", "inodes of the file system of the container's root", "device")
_gauge("fs_inodes_free", "free inodes of the file system of the container's root", "device")
_counter("fs_reads_total", "reads from the device", "device")
_counter("fs_reads_bytes_total", "bytes read from the device", "device")
_counter("fs_writes_total", "writes to the device", "device")
_counter("fs_writes_bytes_total", "bytes written to the device", "device")
_counter(
    "blkio_device_usage_total",
    "bytes moved between the container and the device",
    "device",
    "major",
    "minor",
    "operation",
)
_gauge("processes", "processes")
_gauge("threads", "processes and their threads")
_gauge("threads_max", "limit of processes and threads, 0 without one")
_gauge("file_descriptors", "open descriptors of all processes")
_gauge("sockets", "open sockets of all processes")
_gauge("ulimits_soft", "soft limit of the first process", "ulimit")
_counter("pressure_cpu_waiting_seconds_total", "time in which some thread waited for a CPU, in seconds")
_counter("pressure_cpu_stalled_seconds_total", "time in which every thread waited for a CPU, in seconds")
_counter("pressure_memory_waiting_seconds_total", "time in which some thread waited for memory, in seconds")
_counter("pressure_memory_stalled_seconds_total", "time in which every thread waited for memory, in seconds")
_counter("pressure_io_waiting_seconds_total", "time in which some thread waited for a device, in seconds")
_counter("pressure_io_stalled_seconds_total", "time in which every thread waited for a device, in seconds")
_gauge("spec_cpu_period", "period of the CPU quota, in microseconds")
_gauge("spec_cpu_quota", "CPU time in each period, in microseconds")
_gauge("spec_cpu_shares", "CPU shares")
_gauge("spec_memory_limit_bytes", "memory limit, 0 without one")
_gauge("spec_memory_reservation_limit_bytes", "memory that is reclaimed last, 0 without any")
_gauge("spec_memory_swap_limit_bytes", "swap limit, 0 without one")
_gauge("start_time_seconds", "when the container was started, in seconds since 1970")
_gauge("last_seen", "when the container was looked at, in seconds since 1970")
for _direction, _verb in (("receive", "received"), ("transmit", "sent")):
    _counter(f"network_{_direction}_bytes_total", f"bytes {_verb} by the pod", "interface")
    _counter(f"network_{_direction}_packets_total", f"packets {_verb} by the pod", "interface")
    _counter(f"network_{_direction}_packets_dropped_total", f"packets dropped instead of {_verb}", "interface")
    _counter(f"network_{_direction}_errors_total", f"errors while packets were {_verb}", "interface")

#: what a container without limits has (Documentation/scheduler/sched-bwc.rst, cgroup-v1/cpu shares)
_PERIOD_US: Final = 100_000
_SHARES: Final = 1024


def descriptors() -> tuple[MetricDescriptor, ...]:
    """All of them; constant."""
    return tuple(_DESCRIPTORS.values())


class Disk:
    """The file system of the writable layers, and names of block devices; read by the caller."""

    def __init__(self, size_bytes: int, inodes: int, inodes_free: int, device_name: Callable[[str], str]) -> None:
        self.size_bytes = size_bytes
        self.inodes = inodes
        self.inodes_free = inodes_free
        #: "8:0" to "/dev/sda"
        self.device_name = device_name


def container_metrics(
    container: Container, reading: ContainerReading, layer: FilesystemUsage | None, disk: Disk | None
) -> tuple[Metric, ...]:
    """Values of one container."""
    base = (container.cgroup_path, container.id, container.image_name)
    values = [*_cpu(reading.raw), *_memory(reading.raw), *_pressures(reading.raw), *_spec(container, reading)]
    if reading.details is not None:
        values += [*_memory_details(reading.details), *_io(reading.details, disk)]
    values += [*_filesystem(layer, disk), *_processes(reading)]
    values.append(("start_time_seconds", (), container.started_at_ns // _NS))
    values.append(("last_seen", (), reading.raw.read_at_ns // _NS))
    return _metrics(base, values, reading.raw.read_at_ns)


def sandbox_metrics(sandbox: Sandbox, network: NetworkSample | None) -> tuple[Metric, ...]:
    """Values of the pod as a whole: its network. The rest is that of its containers, and would be counted twice."""
    if network is None:
        return ()
    values: list[Value] = []
    for each in network.interfaces:
        labels = (each.name,)
        values += [
            ("network_receive_bytes_total", labels, each.rx_bytes),
            ("network_receive_packets_total", labels, each.rx_packets),
            ("network_receive_packets_dropped_total", labels, each.rx_dropped),
            ("network_receive_errors_total", labels, each.rx_errors),
            ("network_transmit_bytes_total", labels, each.tx_bytes),
            ("network_transmit_packets_total", labels, each.tx_packets),
            ("network_transmit_packets_dropped_total", labels, each.tx_dropped),
            ("network_transmit_errors_total", labels, each.tx_errors),
        ]
    return _metrics((sandbox.cgroup_path, sandbox.id, ""), values, network.timestamp_ns)


def _metrics(base: tuple[str, str, str], values: list[Value], at_ns: int) -> tuple[Metric, ...]:
    return tuple(
        Metric(_DESCRIPTORS[name], (*base, *labels), value, at_ns)
        for name, labels, value in values
        if value is not None
    )


def _seconds(ns: int | None) -> int | None:
    return None if ns is None else ns // _NS


def _cpu(raw: Stats) -> Iterator[Value]:
    yield "cpu_usage_seconds_total", ("total",), _seconds(raw.cpu_usage_ns)
    yield "cpu_user_seconds_total", (), _seconds(raw.cpu_user_ns)
    yield "cpu_system_seconds_total", (), _seconds(raw.cpu_system_ns)
    yield "cpu_cfs_periods_total", (), raw.nr_periods
    yield "cpu_cfs_throttled_periods_total", (), raw.nr_throttled
    yield "cpu_cfs_throttled_seconds_total", (), _seconds(raw.throttled_ns)


def _memory(raw: Stats) -> Iterator[Value]:
    yield "memory_usage_bytes", (), raw.usage_bytes
    yield "memory_working_set_bytes", (), raw.working_set_bytes
    yield "memory_rss", (), raw.rss_bytes
    yield "memory_swap", (), raw.swap_usage_bytes
    for scope in ("container", "hierarchy"):
        yield "memory_failures_total", ("pgfault", scope), raw.page_faults
        yield "memory_failures_total", ("pgmajfault", scope), raw.major_page_faults


def _memory_details(details: Details) -> Iterator[Value]:
    yield "memory_cache", (), details.cache_bytes
    yield "memory_mapped_file", (), details.mapped_file_bytes
    yield "memory_kernel_usage", (), details.kernel_bytes
    yield "memory_max_usage_bytes", (), details.max_usage_bytes
    yield "memory_failcnt", (), details.failcnt
    yield "oom_events_total", (), details.oom_kills
    yield "threads_max", (), details.threads_max or 0
    for size, usage, peak in details.hugetlb:
        yield "hugetlb_usage_bytes", (size,), usage
        yield "hugetlb_max_usage_bytes", (size,), peak


def _pressures(raw: Stats) -> Iterator[Value]:
    pressures = (("cpu", raw.cpu_pressure), ("memory", raw.memory_pressure), ("io", raw.io_pressure))
    for kind, pressure in pressures:
        yield from _pressure(kind, pressure)


def _pressure(kind: str, pressure: Pressure | None) -> Iterator[Value]:
    if pressure is not None:
        for word, stall in (("waiting", pressure.some), ("stalled", pressure.full)):
            yield f"pressure_{kind}_{word}_seconds_total", (), None if stall is None else stall[0] // _NS


def _filesystem(layer: FilesystemUsage | None, disk: Disk | None) -> Iterator[Value]:
    if layer is None or disk is None:
        return
    device = (layer.mountpoint,)
    yield "fs_usage_bytes", device, layer.used_bytes
    yield "fs_limit_bytes", device, disk.size_bytes
    yield "fs_inodes_total", device, disk.inodes
    yield "fs_inodes_free", device, disk.inodes_free


def _io(details: Details, disk: Disk | None) -> Iterator[Value]:
    for each in details.io:
        device = each.device if disk is None else disk.device_name(each.device)
        major, _, minor = each.device.partition(":")
        yield "fs_reads_total", (device,), each.reads
        yield "fs_reads_bytes_total", (device,), each.read_bytes
        yield "fs_writes_total", (device,), each.writes
        yield "fs_writes_bytes_total", (device,), each.write_bytes
        yield "blkio_device_usage_total", (device, major, minor, "Read"), each.read_bytes
        yield "blkio_device_usage_total", (device, major, minor, "Write"), each.write_bytes


def _processes(reading: ContainerReading) -> Iterator[Value]:
    yield "threads", (), reading.raw.pids_current
    files = reading.files
    if files is not None:
        yield "processes", (), files.processes
        yield "file_descriptors", (), files.descriptors
        yield "sockets", (), files.sockets
        yield "ulimits_soft", ("max_open_files",), files.nofile_soft


def _spec(container: Container, reading: ContainerReading) -> Iterator[Value]:
    limits = container.resources
    yield "spec_cpu_period", (), limits.cpu_period_us or _PERIOD_US
    yield "spec_cpu_quota", (), limits.cpu_quota_us if (limits.cpu_quota_us or 0) > 0 else None
    yield "spec_cpu_shares", (), limits.cpu_shares or _SHARES
    yield "spec_memory_limit_bytes", (), reading.raw.memory_limit_bytes or 0
    yield "spec_memory_swap_limit_bytes", (), reading.raw.swap_limit_bytes or 0
    if reading.details is not None:
        yield "spec_memory_reservation_limit_bytes", (), reading.details.reservation_bytes or 0
