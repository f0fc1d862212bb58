"""The units of systemd that cgroups of containers and pods are, when the driver is systemd; nothing otherwise.

A scope begins with a process in it, so a process of ours that does nothing stands in until the container's init is born
there. When the last process of a scope is gone systemd removes it with its cgroup; pods' slices stay until stopped.
Whether a cgroup is a unit shows in its path, so what one driver made the server of another can still remove.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import ParamSpec, TypeVar

from crishim.cgroups import effects, units
from crishim.cgroups.plan import CgroupPlan, plan
from crishim.cgroups.systemd import Systemd
from crishim.errors import StartFailed, Unavailable
from crishim.model.process import ContainerSpec
from crishim.runtime.executor import Executor

#: name of the role that stands in; `app` gives it to the zygote
HOLD_ROLE = "hold"
#: calls at the same time; a manager that does not answer holds no thread of others
_THREADS = 4
#: between looks whether the processes of a cgroup, which were killed, are gone
_PAUSES_S = tuple(0.001 * 2**count for count in range(9))

P = ParamSpec("P")
T = TypeVar("T")


class Units:
    """The units of this server."""

    def __init__(self, systemd: Systemd | None, executor: Executor) -> None:
        """systemd: None on a machine with another init, which has no units."""
        self._systemd = systemd
        self._executor = executor
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="systemd")

    @asynccontextmanager
    async def started(self, spec: ContainerSpec) -> AsyncIterator[None]:
        """A scope for a container that is started in the block; without a process in it afterwards it goes away.

        StartFailed when systemd does not make it. Nothing happens for a cgroup that is no unit.
        """
        if not units.is_unit(spec.cgroup.path):
            yield
            return
        async with self._executor.hold(HOLD_ROLE) as pid:
            try:
                await self._start_scope(spec, pid)
            except Unavailable as error:
                raise StartFailed(f"making the cgroup: {error}") from error
            yield

    async def _start_scope(self, spec: ContainerSpec, pid: int) -> None:
        systemd = self._manager()
        version = await self._run(systemd.version)
        cgroup = spec.cgroup
        planned = plan(cgroup.path, cgroup.resources, cgroup.devices, self._executor.hierarchy)
        parent = units.unit_name(cgroup.path.rpartition("/")[0])
        properties = units.scope(planned, version, parent, f"container {spec.id} of crishim")
        await self._run(systemd.start_scope, units.unit_name(cgroup.path), [pid], properties)

    def check(self, planned: CgroupPlan) -> None:
        """InvalidSpec or Unsupported names what a scope cannot have."""
        if units.is_unit(planned.path):
            units.check(planned)

    async def update(self, planned: CgroupPlan) -> None:
        """Tell systemd of changed limits. Unavailable when it is not reached."""
        if units.is_unit(planned.path) and planned.writes:
            systemd = self._manager()
            version = await self._run(systemd.version)
            await self._run(systemd.set_properties, units.unit_name(planned.path), units.limits(planned, version))

    async def stop(self, path: str) -> bool:
        """End the unit that a cgroup is. False when a process stays in it: systemd would kill, and this only removes.

        A cgroup that is removed beside systemd would leave it with a unit that never ends.
        """
        if self._systemd is None or not units.is_unit(path):
            return True
        hierarchy = self._executor.hierarchy
        if not any(os.path.isdir(directory) for _, directory in effects.directories(hierarchy, path)):
            return True
        for pause_s in _PAUSES_S:
            if effects.is_empty(hierarchy, path):
                await self._run(self._systemd.stop, units.unit_name(path))
                return True
            await asyncio.sleep(pause_s)
        return False

    def close(self) -> None:
        """Take no more work; what runs is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _manager(self) -> Systemd:
        if self._systemd is None:
            raise Unavailable("systemd is not the init of this machine")
        return self._systemd

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: work(*args, **kwargs))
