"""Usage of a container at one moment (api.proto ContainerStats). None is "not known", never zero.

Every part has its own time of reading, CLOCK_REALTIME in ns, as the kubelet wants it. Counters count since the
container's cgroup was made.
"""

from __future__ import annotations

from dataclasses import dataclass

from crishim.model.image import FilesystemUsage


@dataclass(frozen=True, slots=True)
class Pressure:
    """One line of a pressure file (Documentation/accounting/psi.rst); averages are percent."""

    total_ns: int
    avg10: float
    avg60: float
    avg300: float


@dataclass(frozen=True, slots=True)
class PressureStall:
    """Both lines of cpu.pressure, memory.pressure or io.pressure."""

    some: Pressure
    full: Pressure


@dataclass(frozen=True, slots=True)
class CpuSample:
    """CRI `CpuUsage`; usage_nano_cores is the rate since the sample before, None for the first."""

    timestamp_ns: int
    usage_core_ns: int
    usage_nano_cores: int | None = None
    psi: PressureStall | None = None


@dataclass(frozen=True, slots=True)
class MemorySample:
    """CRI `MemoryUsage`. The working set is usage without inactive file pages; available is limit - working set."""

    timestamp_ns: int
    working_set_bytes: int
    usage_bytes: int
    rss_bytes: int
    #: None without a limit
    available_bytes: int | None = None
    page_faults: int | None = None
    major_page_faults: int | None = None
    psi: PressureStall | None = None


@dataclass(frozen=True, slots=True)
class SwapSample:
    """CRI `SwapUsage`."""

    timestamp_ns: int
    usage_bytes: int
    available_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class IoSample:
    """CRI `IoUsage`: only the pressure."""

    timestamp_ns: int
    psi: PressureStall


@dataclass(frozen=True, slots=True)
class ContainerSample:
    """One reading of one container; CRI's attributes are added from the container's configuration."""

    container_id: str
    cpu: CpuSample | None = None
    memory: MemorySample | None = None
    swap: SwapSample | None = None
    io: IoSample | None = None
    #: of the rootfs' upper directory; its mountpoint is a path that statfs(2) takes
    writable_layer: FilesystemUsage | None = None


@dataclass(frozen=True, slots=True)
class InterfaceSample:
    """CRI `NetworkInterfaceUsage`, and what only the metrics show: /proc/net/dev of the pod."""

    name: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


@dataclass(frozen=True, slots=True)
class NetworkSample:
    """CRI `NetworkUsage`: "eth0", or else the first, comes first; loopback is left out."""

    timestamp_ns: int
    interfaces: tuple[InterfaceSample, ...]


@dataclass(frozen=True, slots=True)
class ProcessSample:
    """CRI `ProcessUsage`: processes, not threads."""

    timestamp_ns: int
    count: int


@dataclass(frozen=True, slots=True)
class SandboxSample:
    """One reading of one pod, from the pod's own cgroup; its containers' samples are those of the same time."""

    sandbox_id: str
    cpu: CpuSample | None = None
    memory: MemorySample | None = None
    io: IoSample | None = None
    network: NetworkSample | None = None
    process: ProcessSample | None = None
    containers: tuple[ContainerSample, ...] = ()
