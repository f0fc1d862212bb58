"""From what cgroups and /proc say to samples of containers and pods. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from crishim.cgroups import stats
from crishim.model.image import FilesystemUsage
from crishim.model.stats import (
    ContainerSample,
    CpuSample,
    InterfaceSample,
    IoSample,
    MemorySample,
    NetworkSample,
    Pressure,
    PressureStall,
    ProcessSample,
    SandboxSample,
    SwapSample,
)

#: no rate is told from samples closer than this
_RATE_NS = 500_000_000
#: columns of /proc/net/dev: 8 of what came in, then 8 of what went out
_COLUMNS = 16


def container_sample(
    container_id: str, raw: stats.Stats, layer: FilesystemUsage | None, before: ContainerSample | None
) -> ContainerSample:
    """A container's sample; `before` is the former one, for the rate of its CPU time."""
    at = raw.read_at_ns
    return ContainerSample(
        container_id=container_id,
        cpu=_cpu(raw, before.cpu if before is not None else None),
        memory=_memory(raw),
        swap=None if raw.swap_usage_bytes is None else SwapSample(at, raw.swap_usage_bytes, _swap_left(raw)),
        io=_io(raw),
        writable_layer=layer,
    )


def sandbox_sample(
    sandbox_id: str,
    raw: stats.Stats,
    network: NetworkSample | None,
    process_count: int | None,
    containers: Sequence[ContainerSample],
    before: SandboxSample | None,
) -> SandboxSample:
    """A pod's sample; `raw` is of the pod's own cgroup."""
    return SandboxSample(
        sandbox_id=sandbox_id,
        cpu=_cpu(raw, before.cpu if before is not None else None),
        memory=_memory(raw),
        io=_io(raw),
        network=network,
        process=None if process_count is None else ProcessSample(raw.read_at_ns, process_count),
        containers=tuple(containers),
    )


def network_sample(text: str, at_ns: int) -> NetworkSample:
    """From the text of /proc/PID/net/dev, without loopback; lines of another shape are left out. Source: proc(5)."""
    found = []
    for line in text.splitlines():
        name, colon, rest = line.rpartition(":")
        numbers = rest.split()
        if not colon or name.strip() == "lo" or len(numbers) < _COLUMNS or not all(map(str.isdigit, numbers)):
            continue
        rx_bytes, rx_packets, rx_errors, rx_dropped = map(int, numbers[:4])
        tx_bytes, tx_packets, tx_errors, tx_dropped = map(int, numbers[8:12])
        found.append(
            InterfaceSample(
                name=name.strip(),
                rx_bytes=rx_bytes,
                rx_packets=rx_packets,
                rx_errors=rx_errors,
                rx_dropped=rx_dropped,
                tx_bytes=tx_bytes,
                tx_packets=tx_packets,
                tx_errors=tx_errors,
                tx_dropped=tx_dropped,
            )
        )
    return NetworkSample(at_ns, tuple(sorted(found, key=lambda interface: interface.name != "eth0")))


def _cpu(raw: stats.Stats, old: CpuSample | None) -> CpuSample | None:
    if raw.cpu_usage_ns is None:
        return None
    rate = None
    if old is not None:
        elapsed = raw.read_at_ns - old.timestamp_ns
        rate = old.usage_nano_cores
        if elapsed >= _RATE_NS:
            rate = max(0, (raw.cpu_usage_ns - old.usage_core_ns) * 1_000_000_000 // elapsed)
    return CpuSample(raw.read_at_ns, raw.cpu_usage_ns, rate, _stall(raw.cpu_pressure))


def _memory(raw: stats.Stats) -> MemorySample | None:
    if raw.usage_bytes is None:
        return None
    return MemorySample(
        timestamp_ns=raw.read_at_ns,
        working_set_bytes=raw.working_set_bytes or 0,
        usage_bytes=raw.usage_bytes,
        rss_bytes=raw.rss_bytes or 0,
        available_bytes=raw.available_bytes,
        page_faults=raw.page_faults,
        major_page_faults=raw.major_page_faults,
        psi=_stall(raw.memory_pressure),
    )


def _io(raw: stats.Stats) -> IoSample | None:
    stall = _stall(raw.io_pressure)
    return None if stall is None else IoSample(raw.read_at_ns, stall)


def _swap_left(raw: stats.Stats) -> int | None:
    if raw.swap_limit_bytes is None or raw.swap_usage_bytes is None:
        return None
    return max(0, raw.swap_limit_bytes - raw.swap_usage_bytes)


def _stall(pressure: stats.Pressure | None) -> PressureStall | None:
    if pressure is None or pressure.some is None:
        return None
    return PressureStall(Pressure(*pressure.some), Pressure(*(pressure.full or (0, 0.0, 0.0, 0.0))))
