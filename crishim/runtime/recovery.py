"""What a starting server finds: monitors that outlived the last one, records of any age, operations cut half-way.

The kernel is the truth. Monitors are found by their sockets, never only from records; exits that happened meanwhile are
replayed; a reservation without a status is undone, and what nobody owns is removed, as at any later time (`garbage`).
Until all is done the server answers Unavailable, because an empty list would tell the kubelet that every pod is gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from pathlib import Path

from crishim.cgroups import effects
from crishim.errors import CrishimError, NotFound, Unsupported
from crishim.executor.client import MonitoredContainer
from crishim.model.container import ContainerState
from crishim.model.process import ContainerSpec
from crishim.model.sandbox import SandboxState
from crishim.runtime import containers as container_use_cases
from crishim.runtime import sandboxes as sandbox_use_cases
from crishim.runtime.answers import MonitorSilent, answered, end_listener, end_monitor, until_gone
from crishim.runtime.executor import Executor, Monitor
from crishim.runtime.exits import Exits
from crishim.runtime.garbage.collection import Garbage
from crishim.runtime.helper import Helper
from crishim.runtime.live import Live, LiveContainer
from crishim.runtime.operations import Operations
from crishim.runtime.places import Places
from crishim.runtime.removal import Removal
from crishim.runtime.settings import Settings
from crishim.runtime.unwatched import Unwatched
from crishim.spec.cgroup import container_cgroup
from crishim.store.store import LoadReport, Store

logger = logging.getLogger(__name__)

#: monitors asked at the same time
_AT_ONCE = 32


class Recovery:
    """Run once, before the first call is answered."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        executor: Executor,
        operations: Operations,
        live: Live,
        places: Places,
        exits: Exits,
        removal: Removal,
        unwatched: Unwatched,
        garbage: Garbage,
        helper: Helper,
    ) -> None:
        self._settings = settings
        self._store = store
        self._executor = executor
        self._operations = operations
        self._live = live
        self._places = places
        self._exits = exits
        self._removal = removal
        self._unwatched = unwatched
        self._garbage = garbage
        self._helper = helper
        self._specs: Mapping[str, ContainerSpec] = {}

    async def run(self, report: LoadReport, specs: Mapping[str, ContainerSpec]) -> None:
        """Bring memory, records and kernel into agreement.

        `report` is what loading the store found, `specs` are those that were read, by container id.
        """
        self._specs = specs
        for damaged in report.damaged:
            logger.error("record %s is ignored: %s", damaged.path, damaged.problem)
        await self._find_monitors()
        await self._end_unwatched(report.other_boot)
        for unfinished in report.unfinished:
            with suppress(NotFound):
                sandbox = self._store.get_sandbox(unfinished.sandbox_id)
                cgroup = container_cgroup(sandbox.cgroup_path, unfinished.id, self._settings.cgroup_driver)
                await self._attempt(
                    f"the creation of container {unfinished.id}",
                    self._removal.discard(sandbox.id, unfinished.id, cgroup),
                )
                self._store.release_container(unfinished.id)
        self._specs = {}
        await self._garbage.collect_at_start()
        self._park()

    # -- monitors

    async def _find_monitors(self) -> None:
        gate = asyncio.Semaphore(_AT_ONCE)

        async def adopt(directory: Path) -> None:
            async with gate:
                await self._adopt(directory)

        async with asyncio.TaskGroup() as group:
            for path in sorted(self._places.sandboxes.glob("*/monitor.sock")):
                group.create_task(adopt(path.parent))

    async def _adopt(self, directory: Path) -> None:
        sandbox_id = directory.name
        try:
            monitor = await answered(sandbox_id, self._executor.adopt_monitor(sandbox_id, directory))
            await self._take_over(monitor)
        except NotFound:
            with suppress(FileNotFoundError):
                os.unlink(directory / "monitor.sock")
        except MonitorSilent as error:
            self._live.silent.add(sandbox_id)
            logger.error("%s; its pod is left as it is until it does", error)
            self._operations.spawn(self._adopt_late(directory), f"adoption of {sandbox_id}")
        except Unsupported as error:
            self._live.silent.add(sandbox_id)
            logger.error(
                "the monitor of sandbox %s is of another crishim: %s; its pod is left as it is, for a server that"
                " understands it", sandbox_id, error,
            )  # fmt: skip
        except CrishimError as error:
            logger.error("the monitor of sandbox %s cannot be adopted: %s", sandbox_id, error)
            await end_listener(directory)

    async def _adopt_late(self, directory: Path) -> None:
        """The answer may come at any time, or never; then stop and removal of the pod kill the monitor."""
        sandbox_id = directory.name
        try:
            monitor = await self._executor.adopt_monitor(sandbox_id, directory)
            await self._take_over(monitor)
            logger.warning("the monitor of sandbox %s answers again", sandbox_id)
            if not self._has_sandbox(sandbox_id):
                self._live.drop_monitor(sandbox_id)
                await end_monitor(monitor)
        except CrishimError as error:
            logger.error("the monitor of sandbox %s cannot be adopted: %s", sandbox_id, error)
            await end_listener(directory)
        self._live.silent.discard(sandbox_id)
        with suppress(NotFound):
            await self._unwatched.end_sandbox(self._store.get_sandbox(sandbox_id), rebooted=False)

    async def _take_over(self, monitor: Monitor) -> None:
        if not self._has_sandbox(monitor.sandbox_id):
            self._live.add_monitor(monitor)
            await self._end_containers(monitor)
            return
        self._exits.watch_monitor(monitor)
        for found in monitor.containers.values():
            try:
                await self._adopt_container(monitor, found)
            except CrishimError as error:
                logger.error("container %s of sandbox %s: %s", found.id, monitor.sandbox_id, error)

    async def _adopt_container(self, monitor: Monitor, found: MonitoredContainer) -> None:
        sandbox_id = monitor.sandbox_id
        try:
            container = self._store.get_container(found.id)
            spec = self._specs.get(found.id) or self._places.read_spec(sandbox_id, found.id)
        except CrishimError as error:
            logger.warning("container %s of sandbox %s is ended: %s", found.id, sandbox_id, error)
            await self._end_container(monitor, found)
            return
        if found.exit is not None or found.pidfd is None:
            self._exits.conclude(found.id, "the process ended while no server ran", killed=False)
            return
        running = LiveContainer(sandbox_id, spec, found.pid, found.pidfd)
        running.killed_leaves = self._old_leaves(container.cgroup_path)
        if container.state is ContainerState.CREATED:
            self._exits.started(running, found.started_at_ns)
        else:
            self._exits.adopt(running)

    def _old_leaves(self, cgroup: str) -> set[int]:
        """Numbers of the exec leaves that are there: each may have been killed with its server, so it is made anew.

        One with a daemon in it, of an exec that ended before, stays as long as the daemon.
        """
        numbers: set[int] = set()
        for _, directory in effects.directories(self._executor.hierarchy, cgroup):
            with suppress(OSError):
                for name in os.listdir(os.fsdecode(directory)):
                    number = name.removeprefix("exec.")
                    if number != name and number.isdigit():
                        numbers.add(int(number))
        return numbers

    async def _end_containers(self, monitor: Monitor) -> None:
        """Of a pod that has no status: its run was cut before the answer, or its removal after the status went."""
        for found in monitor.containers.values():
            await self._end_container(monitor, found)

    async def _end_container(self, monitor: Monitor, found: MonitoredContainer) -> None:
        if found.pidfd is not None:
            with suppress(CrishimError, OSError):
                spec = self._places.read_spec(monitor.sandbox_id, found.id)
                await self._helper.run(effects.kill, self._executor.hierarchy, spec.cgroup.path)
            try:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(found.pidfd, signal.SIGKILL)
                async with asyncio.timeout(self._settings.kill_wait_s):
                    await until_gone(found.pidfd)
            except TimeoutError:
                logger.error("container %s was killed but does not die", found.id)
            finally:
                os.close(found.pidfd)
        await answered(monitor.sandbox_id, monitor.forget(found.id))

    # -- what has no monitor

    async def _end_unwatched(self, other_boot: frozenset[str]) -> None:
        """Pods whose monitor is gone, but not those whose monitor may still answer."""
        for sandbox in self._store.list_sandboxes():
            if sandbox.id in self._live.silent:
                continue
            try:
                await self._unwatched.end_sandbox(sandbox, rebooted=sandbox.id in other_boot)
            except CrishimError as error:
                logger.error("what became of sandbox %s cannot be recorded: %s", sandbox.id, error)

    # -- what has no status

    def _has_sandbox(self, sandbox_id: str) -> bool:
        try:
            self._store.get_sandbox(sandbox_id)
        except NotFound:
            return False
        return True

    async def _attempt(self, what: str, work: Awaitable[object]) -> bool:
        """Whether `work` ended well; a failure is logged, and recovery goes on."""
        try:
            await work
        except (CrishimError, OSError) as error:
            logger.warning("%s could not be taken back: %s", what, error)
            return False
        return True

    # -- answers that may never have arrived

    def _park(self) -> None:
        """A caller whose server died before the answer comes again with the same request: it gets what was made."""
        for sandbox in self._store.list_sandboxes():
            if sandbox.state is SandboxState.READY:
                self._operations.park(sandbox_use_cases.operation_key(sandbox.config), sandbox.config, sandbox.id)
        for container in self._store.list_containers():
            if container.state is ContainerState.CREATED:
                key = container_use_cases.operation_key(container.sandbox_id, container.config)
                self._operations.park(key, container.config, container.id)
