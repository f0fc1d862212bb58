"""Usage samples of running containers, taken while somebody asks and at most every ten seconds.

A sweep reads a few small files per container in a thread, so neither the event loop nor a list waits for the kernel. A
list that comes when the last sweep is too old, or a container has no sample yet, waits for one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from crishim.cgroups import stats
from crishim.cgroups.hierarchy import Hierarchy
from crishim.errors import NotFound, WrongState
from crishim.model.container import Container, ContainerState
from crishim.model.image import FilesystemUsage
from crishim.model.stats import (
    ContainerSample,
    CpuSample,
    IoSample,
    MemorySample,
    Pressure,
    PressureStall,
    SwapSample,
)
from crishim.runtime.helper import Helper
from crishim.runtime.operations import Operations
from crishim.store.store import Store

_PERIOD_S = 10.0
#: sampling goes on this long after the last question
_INTEREST_S = 30.0
#: no rate is told from samples closer than this
_RATE_NS = 500_000_000

#: (container id, what its cgroup says, its writable layer)
Found = list[tuple[str, stats.Stats, FilesystemUsage | None]]
#: usage of a container's writable layer by its id, None when it is not known; blocking
LayerUsage = Callable[[str], FilesystemUsage | None]


class Collector:
    """The use cases of `cri.use_cases.Stats`, and the samples of the metrics."""

    def __init__(
        self, store: Store, hierarchy: Hierarchy, operations: Operations, helper: Helper, layer_usage: LayerUsage
    ) -> None:
        self._store = store
        self._hierarchy = hierarchy
        self._operations = operations
        self._helper = helper
        self._layer_usage = layer_usage
        self._samples: dict[str, ContainerSample] = {}
        self._swept_at = float("-inf")
        self._asked_at = float("-inf")
        self._looping = False
        self._sweeping: asyncio.Event | None = None
        #: called with each container id and what its cgroup says, for the metrics
        self.on_sample: Callable[[str, stats.Stats], None] = lambda container_id, raw: None

    async def container(self, container_id: str) -> ContainerSample:
        """NotFound when unknown, WrongState when it never ran."""
        container = self._store.resolve_container(container_id)
        if container.state is ContainerState.RUNNING:
            await self._fresh([container.id])
        sample = self._samples.get(container.id)
        if sample is None:
            raise WrongState(f"container {container.id} is {container.state.name} and has no usage")
        return sample

    async def list(self, container_ids: Sequence[str]) -> Sequence[ContainerSample]:
        """Latest samples of these; those that do not run are left out."""
        running = [each for each in container_ids if self._runs(each)]
        await self._fresh(running)
        return [self._samples[each] for each in running if each in self._samples]

    def ask(self) -> None:
        """Somebody looks at the usage: sample for the next half minute."""
        self._asked_at = time.monotonic()
        if not self._looping:
            self._looping = True
            self._operations.spawn(self._loop(), "collector")

    def forget(self, container_id: str) -> None:
        """A container is gone."""
        self._samples.pop(container_id, None)

    async def _fresh(self, container_ids: Sequence[str]) -> None:
        self.ask()
        missing = any(each not in self._samples for each in container_ids)
        if missing or time.monotonic() - self._swept_at > _PERIOD_S * 1.5:
            await self._sweep()

    async def _loop(self) -> None:
        try:
            while time.monotonic() - self._asked_at < _INTEREST_S:
                await self._sweep()
                await asyncio.sleep(_PERIOD_S)
        finally:
            self._looping = False

    async def _sweep(self) -> None:
        """One sweep at a time; who comes meanwhile waits for its end."""
        if self._sweeping is not None:
            await self._sweeping.wait()
            return
        self._sweeping = asyncio.Event()
        try:
            running = [each for each in self._store.list_containers() if each.state is ContainerState.RUNNING]
            found = await self._helper.run(self._read, running)
            for container_id, raw, layer in found:
                if self._runs(container_id):
                    self._samples[container_id] = _sample(container_id, raw, layer, self._samples.get(container_id))
                    self.on_sample(container_id, raw)
            self._swept_at = time.monotonic()
        finally:
            self._sweeping.set()
            self._sweeping = None

    def _read(self, containers: Sequence[Container]) -> Found:
        return [
            (each.id, stats.read(self._hierarchy, each.cgroup_path), self._layer_usage(each.id)) for each in containers
        ]

    def _runs(self, container_id: str) -> bool:
        with suppress(NotFound):
            return self._store.get_container(container_id).state is ContainerState.RUNNING
        return False


def _sample(
    container_id: str, raw: stats.Stats, layer: FilesystemUsage | None, before: ContainerSample | None
) -> ContainerSample:
    at = raw.read_at_ns
    io = _stall(raw.io_pressure)
    return ContainerSample(
        container_id=container_id,
        cpu=_cpu(raw, before),
        memory=_memory(raw),
        swap=None if raw.swap_usage_bytes is None else SwapSample(at, raw.swap_usage_bytes, _swap_left(raw)),
        io=None if io is None else IoSample(at, io),
        writable_layer=layer,
    )


def _cpu(raw: stats.Stats, before: ContainerSample | None) -> CpuSample | None:
    if raw.cpu_usage_ns is None:
        return None
    rate = None
    old = before.cpu if before is not None else None
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


def _swap_left(raw: stats.Stats) -> int | None:
    if raw.swap_limit_bytes is None or raw.swap_usage_bytes is None:
        return None
    return max(0, raw.swap_limit_bytes - raw.swap_usage_bytes)


def _stall(pressure: stats.Pressure | None) -> PressureStall | None:
    if pressure is None or pressure.some is None:
        return None
    return PressureStall(Pressure(*pressure.some), Pressure(*(pressure.full or (0, 0.0, 0.0, 0.0))))
