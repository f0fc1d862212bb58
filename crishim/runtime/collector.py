"""Usage of running containers and pods, read while somebody asks and at most every ten seconds.

A sweep reads a few small files per container in a thread, so neither the event loop nor a list waits for the kernel. A
list that comes when the last sweep is too old, or a container has no sample yet, waits for one. What only CRI's metrics
show costs more, and is read while these are asked for.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Protocol

from crishim.cgroups import stats
from crishim.cgroups.hierarchy import Hierarchy
from crishim.errors import NotFound, Unavailable, WrongState
from crishim.model.container import Container, ContainerState
from crishim.model.image import FilesystemUsage
from crishim.model.metric import MetricDescriptor, SandboxMetrics
from crishim.model.sandbox import Sandbox, SandboxState
from crishim.model.stats import ContainerSample, SandboxSample
from crishim.runtime import pod_metrics
from crishim.runtime.helper import Helper
from crishim.runtime.live import Live
from crishim.runtime.operations import Operations
from crishim.runtime.samples import container_sample, sandbox_sample
from crishim.runtime.sandboxes import is_ready
from crishim.runtime.usage import ContainerReading, SandboxReading, read_container, read_sandbox
from crishim.store.store import Store

_PERIOD_S = 10.0
#: reading goes on this long after the last question
_INTEREST_S = 30.0


class Layers(Protocol):
    """Usage of writable layers: `runtime.layers.WritableLayers`."""

    def usage(self, container_id: str) -> FilesystemUsage | None: ...

    async def refresh(self, container_ids: Sequence[str]) -> None: ...


class Collector:
    """The use cases of `cri.use_cases.Stats`, and the samples of the metrics."""

    def __init__(
        self,
        store: Store,
        live: Live,
        hierarchy: Hierarchy,
        operations: Operations,
        helper: Helper,
        layers: Layers,
        disk_path: str,
    ) -> None:
        """disk_path: a path on the file system of the writable layers."""
        self._store = store
        self._live = live
        self._hierarchy = hierarchy
        self._operations = operations
        self._helper = helper
        self._layers = layers
        self._disk_path = disk_path
        self._samples: dict[str, ContainerSample] = {}
        self._pods: dict[str, SandboxSample] = {}
        self._readings: dict[str, ContainerReading] = {}
        self._disk: pod_metrics.Disk | None = None
        self._swept_at = float("-inf")
        self._asked_at = float("-inf")
        #: when CRI's metrics were asked for
        self._metrics_asked_at = float("-inf")
        self._looping = False
        self._sweeping: asyncio.Event | None = None
        #: called with each container id and what its cgroup says, for the metrics
        self.on_sample: Callable[[str, stats.Stats], None] = lambda container_id, raw: None

    async def container(self, container_id: str) -> ContainerSample:
        """NotFound when unknown, WrongState when it never ran."""
        container = self._store.resolve_container(container_id)
        if container.state is ContainerState.RUNNING:
            await self._fresh([container.id], self._samples)
        sample = self._samples.get(container.id)
        if sample is None:
            raise WrongState(f"container {container.id} is {container.state.name} and has no usage")
        return sample

    async def list(self, container_ids: Sequence[str]) -> Sequence[ContainerSample]:
        """Latest samples of these; those that do not run are left out."""
        running = [each for each in container_ids if self._runs(each)]
        await self._fresh(running, self._samples)
        return [self._samples[each] for each in running if each in self._samples]

    async def sandbox(self, sandbox_id: str) -> SandboxSample:
        """NotFound when unknown, Unavailable when it is not READY."""
        sandbox = self._store.resolve_sandbox(sandbox_id)
        if sandbox.state is not SandboxState.READY:
            raise Unavailable(f"sandbox {sandbox.id} is {sandbox.state.name} and has no usage")
        await self._fresh([sandbox.id], self._pods)
        sample = self._pods.get(sandbox.id)
        if sample is None:
            raise Unavailable(f"sandbox {sandbox.id} has no usage yet")
        return sample

    async def list_sandboxes(self, sandbox_ids: Sequence[str]) -> Sequence[SandboxSample]:
        """Latest samples of these; those that are not READY are left out."""
        ready = [each for each in sandbox_ids if is_ready(self._store, each)]
        await self._fresh(ready, self._pods)
        return [self._pods[each] for each in ready if each in self._pods]

    def metric_descriptors(self) -> Sequence[MetricDescriptor]:
        """Constant."""
        return pod_metrics.descriptors()

    async def list_metrics(self) -> Sequence[SandboxMetrics]:
        """Values of every READY sandbox and its running containers."""
        self._metrics_asked_at = time.monotonic()
        running = [each for each in self._store.list_containers() if each.state is ContainerState.RUNNING]
        known = [key for key, reading in self._readings.items() if reading.details is not None]
        await self._fresh([each.id for each in running], known)
        sandboxes = [each for each in self._store.list_sandboxes() if each.state is SandboxState.READY]
        return [self._metrics_of(sandbox) for sandbox in sandboxes]

    def ask(self) -> None:
        """Somebody looks at the usage: read for the next half minute."""
        self._asked_at = time.monotonic()
        if not self._looping:
            with suppress(Unavailable):  # the server is stopping
                self._operations.spawn(self._loop(), "collector")
                self._looping = True

    def forget(self, id: str) -> None:
        """A container or a sandbox is gone."""
        self._samples.pop(id, None)
        self._readings.pop(id, None)
        self._pods.pop(id, None)

    async def _fresh(self, ids: Sequence[str], known: Collection[str]) -> None:
        self.ask()
        missing = any(each not in known for each in ids)
        if missing or time.monotonic() - self._swept_at > _PERIOD_S * 1.5:
            joined = self._sweeping is not None
            await self._sweep()
            if joined and missing:
                await self._sweep()  # the one under way had begun before these ran, or for less

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
            ready = [each for each in self._store.list_sandboxes() if each.state is SandboxState.READY]
            await self._layers.refresh([each.id for each in running])
            readings, pods = await self._helper.run(self._read, running, ready)
            self._take(readings, pods)
            self._swept_at = time.monotonic()
        finally:
            self._sweeping.set()
            self._sweeping = None

    def _read(
        self, containers: Sequence[Container], sandboxes: Sequence[Sandbox]
    ) -> tuple[Sequence[ContainerReading], Sequence[SandboxReading]]:
        detailed = time.monotonic() - self._metrics_asked_at < _INTEREST_S
        if detailed:
            self._disk = _disk(self._disk_path)
        members: dict[str, list[Container]] = {}
        for each in containers:
            members.setdefault(each.sandbox_id, []).append(each)
        return (
            [read_container(self._hierarchy, each, detailed=detailed) for each in containers],
            [read_sandbox(self._hierarchy, each, members.get(each.id, ()), self._live.find) for each in sandboxes],
        )

    def _take(self, readings: Sequence[ContainerReading], pods: Sequence[SandboxReading]) -> None:
        members: dict[str, list[ContainerSample]] = {}
        for reading in readings:
            container_id = reading.container_id
            if self._runs(container_id):
                layer = self._layers.usage(container_id)
                sample = container_sample(container_id, reading.raw, layer, self._samples.get(container_id))
                self._samples[container_id] = sample
                self._readings[container_id] = reading
                members.setdefault(self._store.get_container(container_id).sandbox_id, []).append(sample)
                self.on_sample(container_id, reading.raw)
        for pod in pods:
            id = pod.sandbox_id
            if is_ready(self._store, id):
                before = self._pods.get(id)
                network = pod.network or (before.network if before is not None else None)
                self._pods[id] = sandbox_sample(id, pod.raw, network, pod.process_count, members.get(id, ()), before)

    def _metrics_of(self, sandbox: Sandbox) -> SandboxMetrics:
        pod = self._pods.get(sandbox.id)
        containers = []
        for container in self._store.list_containers(sandbox.id):
            reading = self._readings.get(container.id)
            if reading is not None and container.state is ContainerState.RUNNING:
                layer = self._layers.usage(container.id)
                containers.append((container.id, pod_metrics.container_metrics(container, reading, layer, self._disk)))
        metrics = pod_metrics.sandbox_metrics(sandbox, pod.network if pod is not None else None)
        return SandboxMetrics(sandbox.id, metrics, tuple(containers))

    def _runs(self, container_id: str) -> bool:
        with suppress(NotFound):
            return self._store.get_container(container_id).state is ContainerState.RUNNING
        return False


def _disk(path: str) -> pod_metrics.Disk | None:
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    return pod_metrics.Disk(status.f_blocks * status.f_frsize, status.f_files, status.f_ffree, _device_name)


@lru_cache(maxsize=256)
def _device_name(number: str) -> str:
    """From "8:0" to "/dev/sda"; the number itself when the node does not know it. Source: sysfs-dev-block."""
    try:
        return "/dev/" + os.path.basename(os.readlink(f"/sys/dev/block/{number}"))
    except OSError:
        return number
