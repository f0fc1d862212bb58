"""What a starting server finds: monitors that outlived the last one, records of any age, operations cut half-way.

The kernel is the truth. Monitors are found by their sockets, never only from records; exits that happened meanwhile are
replayed; a reservation without a status is undone; what nobody owns is removed. Until all is done the server answers
Unavailable, because an empty list would tell the kubelet that every pod is gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path

from crishim.cgroups import effects
from crishim.errors import CrishimError, NotFound
from crishim.executor.client import MonitoredContainer
from crishim.images.rootfs import RootFsStore
from crishim.model.container import Container, ContainerState
from crishim.model.sandbox import Sandbox, SandboxConfig, SandboxState
from crishim.network.door import Network
from crishim.runtime import containers as container_use_cases
from crishim.runtime import sandboxes as sandbox_use_cases
from crishim.runtime.answers import MonitorSilent, answered, end_listener, end_monitor, until_gone
from crishim.runtime.executor import Executor, Monitor
from crishim.runtime.exits import Exits, not_ready
from crishim.runtime.helper import Helper
from crishim.runtime.live import Live, LiveContainer
from crishim.runtime.operations import Operations
from crishim.runtime.places import Places
from crishim.runtime.removal import Removal
from crishim.runtime.settings import Settings
from crishim.spec.cgroup import container_cgroup, pod_cgroup
from crishim.store import codec
from crishim.store.durable import DurableStore, SandboxReservation
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
        durable: DurableStore,
        executor: Executor,
        network: Network,
        rootfs: RootFsStore,
        operations: Operations,
        live: Live,
        places: Places,
        exits: Exits,
        removal: Removal,
        helper: Helper,
    ) -> None:
        self._settings = settings
        self._store = store
        self._durable = durable
        self._executor = executor
        self._network = network
        self._rootfs = rootfs
        self._operations = operations
        self._live = live
        self._places = places
        self._exits = exits
        self._removal = removal
        self._helper = helper
        #: sandboxes whose monitor exists but does not answer: they stay as they are until it does
        self._silent: set[str] = set()

    async def run(self, report: LoadReport) -> None:
        """Bring memory, records and kernel into agreement. `report` is what loading the store found."""
        for damaged in report.damaged:
            logger.error("record %s is ignored: %s", damaged.path, damaged.problem)
        await self._find_monitors()
        await self._end_unwatched(report.other_boot)
        for unfinished in report.unfinished:
            with suppress(NotFound):
                sandbox = self._store.get_sandbox(unfinished.sandbox_id)
                cgroup = container_cgroup(sandbox.cgroup_path, unfinished.id)
                await self._attempt(
                    f"the creation of container {unfinished.id}",
                    self._removal.discard(sandbox.id, unfinished.id, cgroup),
                )
                self._store.release_container(unfinished.id)
        for reservation in await self._durable.sandbox_reservations():
            if not self._has_sandbox(reservation.id):
                await self._undo(reservation)
        await self._remove_strays()
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
            self._silent.add(sandbox_id)
            logger.error("%s; its pod is left as it is until it does", error)
            self._operations.spawn(self._adopt_late(directory), f"adoption of {sandbox_id}")
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
        self._silent.discard(sandbox_id)
        with suppress(NotFound):
            await self._end_unwatched_sandbox(self._store.get_sandbox(sandbox_id), rebooted=False)

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
            spec = self._places.read_spec(sandbox_id, found.id)
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
        """Containers that no monitor knows run no more, or are ended; READY without a monitor is NOTREADY."""
        for sandbox in self._store.list_sandboxes():
            if sandbox.id in self._silent:
                continue
            try:
                await self._end_unwatched_sandbox(sandbox, rebooted=sandbox.id in other_boot)
            except CrishimError as error:
                logger.error("what became of sandbox %s cannot be recorded: %s", sandbox.id, error)

    async def _end_unwatched_sandbox(self, sandbox: Sandbox, *, rebooted: bool) -> None:
        for container in self._store.list_containers(sandbox.id):
            if container.state in (ContainerState.RUNNING, ContainerState.UNKNOWN):
                await self._end_unwatched_container(container, rebooted)
        if self._live.find_monitor(sandbox.id) is None and sandbox.state is SandboxState.READY:
            reason = "NodeRebooted" if rebooted else "MonitorLost"
            self._store.update_sandbox(sandbox.id, lambda old: not_ready(old, reason))

    async def _end_unwatched_container(self, container: Container, rebooted: bool) -> None:
        if self._live.find(container.id) is not None:
            return
        if rebooted:
            self._exits.conclude(container.id, "the node was rebooted", killed=False)
            return
        with suppress(OSError):
            await self._helper.run(effects.kill, self._executor.hierarchy, container.cgroup_path)
        await self._helper.run(effects.remove, self._executor.hierarchy, container.cgroup_path)
        self._exits.conclude(container.id, "the monitor of the pod died, so its containers were killed", killed=True)

    # -- what has no status

    def _has_sandbox(self, sandbox_id: str) -> bool:
        try:
            self._store.get_sandbox(sandbox_id)
        except NotFound:
            return False
        return True

    async def _undo(self, reservation: SandboxReservation) -> None:
        """Take back a run that was cut, finish a removal, or end the network of a pod of another boot."""
        sandbox_id = reservation.id
        what = f"sandbox {sandbox_id}"
        deadline_s = self._settings.network_deadline_s
        done = True
        if reservation.netns_path is not None:
            present = reservation.netns_path if os.path.exists(reservation.netns_path) else None
            done &= await self._attempt(
                f"the network of {what}", self._network.detach(sandbox_id, present, deadline_s=deadline_s)
            )
        monitor = self._live.find_monitor(sandbox_id)
        if monitor is not None:
            done &= await self._attempt(f"the monitor of {what}", end_monitor(monitor))
            self._live.drop_monitor(sandbox_id)
        else:
            await end_listener(self._places.sandbox(sandbox_id))
        done &= await self._attempt(f"the namespace of {what}", self._removal.remove_pin(reservation.netns_path))
        config = _config_of(reservation)
        if not config.cgroup_parent or self._places.owns_cgroup(sandbox_id):
            path = pod_cgroup(config.cgroup_parent, self._settings.cgroup_root, sandbox_id)
            done &= await self._attempt(f"the cgroup of {what}", self._removal.remove_cgroup(what, path))
        if done:
            done = await self._attempt(
                f"the directory of {what}", self._helper.run(self._places.remove_sandbox, sandbox_id)
            )
        if done:
            await self._durable.release_sandbox(sandbox_id)
            logger.info("%s was taken back: its run or its removal had been cut", what)
            return
        self._places.make_sandbox(sandbox_id)
        self._store.put_sandbox(
            Sandbox(
                id=sandbox_id,
                config=config,
                state=SandboxState.NOTREADY,
                created_at_ns=1,
                netns_path=reservation.netns_path,
                cgroup_path=pod_cgroup(config.cgroup_parent, self._settings.cgroup_root, sandbox_id),
                reason="NotTakenBack",
            )
        )

    async def _remove_strays(self) -> None:
        """Roots of containers that nobody knows, networks of sandboxes that nobody knows, and their directories."""
        known = {container.id for container in self._store.list_containers()}
        for container_id in self._rootfs.prepared():
            if container_id not in known:
                await self._attempt(f"the root of container {container_id}", self._rootfs.release(container_id))
        live = {sandbox.id for sandbox in self._store.list_sandboxes()}
        for directory in self._places.sandboxes.glob("*/"):
            if directory.name not in live | self._silent:
                await self._attempt(f"sandbox {directory.name}", self._remove_stray(directory))
        try:
            left = await self._network.reconcile(live | self._silent, deadline_s=self._settings.network_deadline_s)
        except CrishimError as error:
            logger.warning("what is left of earlier pod networks cannot be removed: %s", error)
            return
        for sandbox_id in left:
            logger.warning("the network of sandbox %s could not be removed; it is tried again later", sandbox_id)

    async def _remove_stray(self, directory: Path) -> None:
        monitor = self._live.find_monitor(directory.name)
        if monitor is not None:
            await end_monitor(monitor)
            self._live.drop_monitor(directory.name)
        await self._helper.run(self._places.remove_sandbox, directory.name)

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


def _config_of(reservation: SandboxReservation) -> SandboxConfig:
    """The configuration as it was asked for; one that is not understood any more is replaced by its identity."""
    try:
        return codec.from_bytes(SandboxConfig, reservation.config)
    except codec.DecodeError:
        return SandboxConfig(reservation.name, reservation.uid, reservation.namespace, reservation.attempt)
