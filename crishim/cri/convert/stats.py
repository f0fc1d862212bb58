"""Samples to ContainerStats. What is not known is left out: the kubelet reads a zero as a measurement."""

from __future__ import annotations

from crishim.cri.convert import sandbox
from crishim.cri.convert.container import metadata_to_proto
from crishim.cri.convert.texts import to_wire
from crishim.cri.pb import api_pb2 as pb
from crishim.model.container import Container
from crishim.model.image import FilesystemUsage
from crishim.model.sandbox import Sandbox
from crishim.model.stats import (
    ContainerSample,
    CpuSample,
    InterfaceSample,
    MemorySample,
    NetworkSample,
    Pressure,
    PressureStall,
    SandboxSample,
    SwapSample,
)


def attributes_to_proto(container: Container) -> pb.ContainerStats:
    """The part of an entry that tells whose usage it is; it changes never, the other with every sample."""
    return pb.ContainerStats(
        attributes=pb.ContainerAttributes(
            id=container.id,
            metadata=metadata_to_proto(container.config),
            labels=container.config.labels,
            annotations=container.config.annotations,
        )
    )


def usage_to_proto(sample: ContainerSample) -> pb.ContainerStats:
    """The part of an entry that was measured.

    Filled in place: with nested constructors, which copy, the stats of a hundred containers take twice as long.
    """
    message = pb.ContainerStats()
    if sample.cpu is not None:
        _cpu(message.cpu, sample.cpu)
    if sample.memory is not None:
        _memory(message.memory, sample.memory)
    if sample.writable_layer is not None:
        _filesystem(message.writable_layer, sample.writable_layer)
    if sample.swap is not None:
        _swap(message.swap, sample.swap)
    if sample.io is not None:
        message.io.timestamp = sample.io.timestamp_ns
        _psi(message.io.psi, sample.io.psi)
    return message


def pod_attributes_to_proto(found: Sandbox) -> pb.PodSandboxStats:
    """The part of a pod's entry that tells whose usage it is."""
    return pb.PodSandboxStats(
        attributes=pb.PodSandboxAttributes(
            id=found.id,
            metadata=sandbox.metadata_to_proto(found.config),
            labels=found.config.labels,
            annotations=found.config.annotations,
        )
    )


def pod_usage_to_proto(sample: SandboxSample) -> pb.LinuxPodSandboxStats:
    """The part of a pod's entry that was measured, without its containers."""
    message = pb.LinuxPodSandboxStats()
    if sample.cpu is not None:
        _cpu(message.cpu, sample.cpu)
    if sample.memory is not None:
        _memory(message.memory, sample.memory)
    if sample.network is not None:
        _network(message.network, sample.network)
    if sample.process is not None:
        message.process.timestamp = sample.process.timestamp_ns
        message.process.process_count.value = sample.process.count
    if sample.io is not None:
        message.io.timestamp = sample.io.timestamp_ns
        _psi(message.io.psi, sample.io.psi)
    return message


def _network(message: pb.NetworkUsage, sample: NetworkSample) -> None:
    message.timestamp = sample.timestamp_ns
    if sample.interfaces:
        _interface(message.default_interface, sample.interfaces[0])
    for interface in sample.interfaces[1:]:
        _interface(message.interfaces.add(), interface)


def _interface(message: pb.NetworkInterfaceUsage, sample: InterfaceSample) -> None:
    message.name = to_wire(sample.name)
    message.rx_bytes.value = sample.rx_bytes
    message.rx_errors.value = sample.rx_errors
    message.tx_bytes.value = sample.tx_bytes
    message.tx_errors.value = sample.tx_errors


def _cpu(message: pb.CpuUsage, sample: CpuSample) -> None:
    message.timestamp = sample.timestamp_ns
    message.usage_core_nano_seconds.value = sample.usage_core_ns
    _value(message.usage_nano_cores, sample.usage_nano_cores)
    if sample.psi is not None:
        _psi(message.psi, sample.psi)


def _memory(message: pb.MemoryUsage, sample: MemorySample) -> None:
    message.timestamp = sample.timestamp_ns
    message.working_set_bytes.value = sample.working_set_bytes
    message.usage_bytes.value = sample.usage_bytes
    message.rss_bytes.value = sample.rss_bytes
    _value(message.available_bytes, sample.available_bytes)
    _value(message.page_faults, sample.page_faults)
    _value(message.major_page_faults, sample.major_page_faults)
    if sample.psi is not None:
        _psi(message.psi, sample.psi)


def _swap(message: pb.SwapUsage, sample: SwapSample) -> None:
    message.timestamp = sample.timestamp_ns
    message.swap_usage_bytes.value = sample.usage_bytes
    _value(message.swap_available_bytes, sample.available_bytes)


def _filesystem(message: pb.FilesystemUsage, usage: FilesystemUsage) -> None:
    message.timestamp = usage.timestamp_ns
    message.fs_id.mountpoint = usage.mountpoint
    message.used_bytes.value = usage.used_bytes
    message.inodes_used.value = usage.inodes_used


def _value(message: pb.UInt64Value, number: int | None) -> None:
    if number is not None:
        message.value = number


def _psi(message: pb.PsiStats, stall: PressureStall) -> None:
    _pressure(message.Full, stall.full)
    _pressure(message.Some, stall.some)


def _pressure(message: pb.PsiData, pressure: Pressure) -> None:
    message.Total = pressure.total_ns
    message.Avg10 = pressure.avg10
    message.Avg60 = pressure.avg60
    message.Avg300 = pressure.avg300
