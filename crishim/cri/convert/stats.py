"""Samples to ContainerStats. What is not known is left out: the kubelet reads a zero as a measurement."""

from __future__ import annotations

from crishim.cri.convert.container import metadata_to_proto
from crishim.cri.convert.image import usage_to_proto
from crishim.cri.pb import api_pb2 as pb
from crishim.model.container import Container
from crishim.model.stats import ContainerSample, CpuSample, IoSample, MemorySample, Pressure, PressureStall, SwapSample


def to_proto(container: Container, sample: ContainerSample) -> pb.ContainerStats:
    """One entry of ListContainerStats; the attributes come from the configuration."""
    return pb.ContainerStats(
        attributes=pb.ContainerAttributes(
            id=container.id,
            metadata=metadata_to_proto(container.config),
            labels=container.config.labels,
            annotations=container.config.annotations,
        ),
        cpu=None if sample.cpu is None else _cpu(sample.cpu),
        memory=None if sample.memory is None else _memory(sample.memory),
        writable_layer=None if sample.writable_layer is None else usage_to_proto(sample.writable_layer),
        swap=None if sample.swap is None else _swap(sample.swap),
        io=None if sample.io is None else _io(sample.io),
    )


def _value(number: int | None) -> pb.UInt64Value | None:
    return None if number is None else pb.UInt64Value(value=number)


def _cpu(sample: CpuSample) -> pb.CpuUsage:
    return pb.CpuUsage(
        timestamp=sample.timestamp_ns,
        usage_core_nano_seconds=_value(sample.usage_core_ns),
        usage_nano_cores=_value(sample.usage_nano_cores),
        psi=_psi(sample.psi),
    )


def _memory(sample: MemorySample) -> pb.MemoryUsage:
    return pb.MemoryUsage(
        timestamp=sample.timestamp_ns,
        working_set_bytes=_value(sample.working_set_bytes),
        available_bytes=_value(sample.available_bytes),
        usage_bytes=_value(sample.usage_bytes),
        rss_bytes=_value(sample.rss_bytes),
        page_faults=_value(sample.page_faults),
        major_page_faults=_value(sample.major_page_faults),
        psi=_psi(sample.psi),
    )


def _swap(sample: SwapSample) -> pb.SwapUsage:
    return pb.SwapUsage(
        timestamp=sample.timestamp_ns,
        swap_available_bytes=_value(sample.available_bytes),
        swap_usage_bytes=_value(sample.usage_bytes),
    )


def _io(sample: IoSample) -> pb.IoUsage:
    return pb.IoUsage(timestamp=sample.timestamp_ns, psi=_psi(sample.psi))


def _psi(stall: PressureStall | None) -> pb.PsiStats | None:
    return None if stall is None else pb.PsiStats(Full=_pressure(stall.full), Some=_pressure(stall.some))


def _pressure(pressure: Pressure) -> pb.PsiData:
    return pb.PsiData(Total=pressure.total_ns, Avg10=pressure.avg10, Avg60=pressure.avg60, Avg300=pressure.avg300)
