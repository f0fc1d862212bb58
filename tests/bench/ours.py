"""The same figures from our executor, used as a library: zygote, monitor and children without CRI.

CPU is that of the executor's processes and containers (a cgroup of the benchmark's) and of this process, which plays
the server; for the peers it is all that their command line and its children used.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from crishim.cgroups import effects
from crishim.executor.client import ExecSpec, Monitor, PodSpec, StartedContainer
from crishim.executor.client import Executor as Client
from crishim.model.container import ContainerConfig, ContainerSecurity
from crishim.model.exit import ExitRecord
from crishim.model.process import (
    CgroupSpec,
    ContainerSpec,
    DeviceNode,
    LogTarget,
    MountSpec,
    Namespace,
    NamespaceKind,
    ProcessSpec,
    RootFs,
)
from crishim.model.sandbox import NamespaceOptions
from crishim.spec.capabilities import capability_sets
from crishim.spec.cgroup import device_rules
from crishim.spec.container import BASE_NODES
from crishim.spec.facts import PodFiles
from crishim.spec.mounts import container_mounts
from crishim.spec.seccomp import runtime_default
from tests.bench.measure import Sample, cgroup_cpu_s, pss_bytes, repeat
from tests.bench.oci import MASKED_PATHS, READONLY_PATHS

OWN = (NamespaceKind.MOUNT, NamespaceKind.PID, NamespaceKind.CGROUP)
#: of the pod, so its monitor has them and an exec must join them
SHARED = (NamespaceKind.NETWORK, NamespaceKind.IPC, NamespaceKind.UTS)


class Executor:
    """A zygote and one sandbox with its own network, IPC and UTS namespaces; containers are made in it."""

    def __init__(self, directory: Path, rootfs: Path, *, seccomp: bool) -> None:
        self._directory = directory
        self._rootfs = rootfs
        self._cgroup = f"/crishim-bench-{os.getpid()}"
        self._runner = asyncio.Runner()
        self._client = Client.launch(cgroup=f"{self._cgroup}/monitors", roles={})
        node = self._client.node
        capabilities = capability_sets(ContainerSecurity(), node.capabilities)
        bpf = runtime_default(capabilities.bounding, node.kernel, node.machine) if seccomp else None
        self._process = ProcessSpec(args=(), env=("PATH=/bin",), capabilities=capabilities, seccomp=bpf)
        self._made = 0
        self._ended: dict[str, asyncio.Future[ExitRecord]] = {}

    def __enter__(self) -> Executor:
        self._run(self._client.open())
        self._sandbox = self._run(self._start_sandbox())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._sandbox.stop())
        self._run(self._client.close())
        self._runner.close()
        effects.remove(self._client.hierarchy, self._cgroup)
        shutil.rmtree(self._directory, ignore_errors=True)

    def run_true(self, count: int) -> Sample:
        """Start, wait and clean up of a container whose process is `true`, in the sandbox that is there."""
        return repeat(lambda: self._run(self._run_to_end(self._sandbox, "/bin/true")), count, self._cpu_s)

    def run_in_new_sandbox(self, count: int) -> Sample:
        """The same with a sandbox, its monitor and its namespaces made for it and ended after it."""
        return repeat(lambda: self._run(self._sandbox_and_true()), count, self._cpu_s)

    def exec_true(self, count: int) -> Sample:
        """A further process `true` in a running container."""
        spec, started = self._run(self._start(self._sandbox, "/bin/sleep", "1000"))
        effects.exec_leaf(self._client.hierarchy, spec.cgroup.path, 0)
        exec_spec = self._exec_spec(spec, started)
        sample = repeat(lambda: self._run(self._exec(exec_spec)), count, self._cpu_s)
        self._run(self._end(self._sandbox, spec, started))
        return sample

    def monitors_pss_mb(self, count: int) -> float:
        """Memory of one monitor with `count` of them, each after one start, one exec and one log rotation."""
        sandboxes = [self._run(self._busy_sandbox()) for _ in range(count)]
        mean = pss_bytes(monitor.pid for monitor, _, _ in sandboxes) / count / 1e6
        for monitor, spec, started in sandboxes:
            self._run(self._end(monitor, spec, started))
            self._run(monitor.stop())
        return mean

    def log_mb_per_s(self, line_bytes: int, total_bytes: int) -> float:
        """Payload that went from a container's stdout to its log file, in MB a second from start to exit."""
        payload = self._directory / "payload"
        line = b"x" * (line_bytes - 1) + b"\n"
        payload.write_bytes(line * (total_bytes // line_bytes))
        started = time.perf_counter()
        mounts = (MountSpec("/payload", "bind", str(payload), ("ro",)),)
        self._run(self._run_to_end(self._sandbox, "/bin/cat", "/payload", mounts=mounts, log="cat.log"))
        seconds = time.perf_counter() - started
        log = self._directory / "cat.log"
        assert log.stat().st_size > payload.stat().st_size
        log.unlink()
        return payload.stat().st_size / seconds / 1e6

    def _cpu_s(self) -> float:
        return cgroup_cpu_s(self._cgroup) + time.process_time()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(work)

    async def _start_sandbox(self) -> Monitor:
        self._made += 1
        sandbox_id = f"sandbox{self._made}"
        directory = self._directory / sandbox_id
        directory.mkdir(parents=True)
        monitor = await self._client.start_monitor(sandbox_id, directory, PodSpec(network=True))
        monitor.on_exit = lambda record: self._ended[record.container_id].set_result(record)
        return monitor

    async def _sandbox_and_true(self) -> None:
        monitor = await self._start_sandbox()
        await self._run_to_end(monitor, "/bin/true")
        await monitor.stop()

    async def _busy_sandbox(self) -> tuple[Monitor, ContainerSpec, StartedContainer]:
        monitor = await self._start_sandbox()
        spec, started = await self._start(monitor, "/bin/sleep", "1000", log=f"{monitor.sandbox_id}.log")
        effects.exec_leaf(self._client.hierarchy, spec.cgroup.path, 0)
        await self._exec(self._exec_spec(spec, started))
        await monitor.reopen_log(spec.id)
        return monitor, spec, started

    async def _run_to_end(self, monitor: Monitor, *args: str, **fields: Any) -> None:
        spec, started = await self._start(monitor, *args, **fields)
        record = await self._ended[spec.id]
        assert record.code == 0, record
        await self._clean_up(monitor, spec, started)

    async def _start(self, monitor: Monitor, *args: str, **fields: Any) -> tuple[ContainerSpec, StartedContainer]:
        self._made += 1
        spec = self._spec(f"container{self._made}", args, **fields)
        self._ended[spec.id] = asyncio.get_running_loop().create_future()
        return spec, await monitor.start_container(spec)

    async def _end(self, monitor: Monitor, spec: ContainerSpec, started: StartedContainer) -> None:
        effects.kill(self._client.hierarchy, spec.cgroup.path)
        await self._ended[spec.id]
        await self._clean_up(monitor, spec, started)

    async def _clean_up(self, monitor: Monitor, spec: ContainerSpec, started: StartedContainer) -> None:
        os.close(started.pidfd)
        effects.remove(self._client.hierarchy, spec.cgroup.path)
        await monitor.forget(spec.id)
        del self._ended[spec.id]

    async def _exec(self, spec: ExecSpec) -> None:
        process = await self._client.exec(spec)
        ended = await process.wait()
        process.close()
        assert ended.code == 0, ended

    def _exec_spec(self, spec: ContainerSpec, started: StartedContainer) -> ExecSpec:
        process = ProcessSpec(
            args=("/bin/true",),
            env=self._process.env,
            capabilities=self._process.capabilities,
            seccomp=self._process.seccomp,
        )
        kinds = (*OWN, *SHARED)
        return ExecSpec(spec.id, started.pidfd, process, spec.cgroup.path, leaf="exec.0", namespaces=kinds)

    def _spec(
        self, container_id: str, args: tuple[str, ...], *, mounts: tuple[MountSpec, ...] = (), log: str | None = None
    ) -> ContainerSpec:
        files = PodFiles(None, None, None)
        return ContainerSpec(
            id=container_id,
            process=ProcessSpec(
                args=args,
                env=self._process.env,
                capabilities=self._process.capabilities,
                seccomp=self._process.seccomp,
                init=True,
            ),
            rootfs=RootFs(path=str(self._rootfs), readonly=not mounts),
            cgroup=CgroupSpec(f"{self._cgroup}/{container_id}", devices=device_rules((), False)),
            namespaces=tuple(Namespace(kind) for kind in OWN),
            mounts=(*container_mounts(ContainerConfig("bench"), NamespaceOptions(), files), *mounts),
            device_nodes=tuple(DeviceNode(path, "c", major, minor) for path, major, minor in BASE_NODES),
            masked_paths=MASKED_PATHS,
            readonly_paths=READONLY_PATHS,
            log=LogTarget(str(self._directory), log) if log else None,
        )
