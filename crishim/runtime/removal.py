"""Removing containers, and what is left of a pod when its monitor can no longer do it."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import suppress

from crishim.cgroups import effects
from crishim.errors import CrishimError, NotFound, Unavailable
from crishim.images.rootfs import RootFsStore
from crishim.model.container import Container, ContainerState
from crishim.model.process import ContainerSpec
from crishim.runtime.answers import MonitorSilent, answered
from crishim.runtime.executor import Executor
from crishim.runtime.helper import Helper
from crishim.runtime.live import Live
from crishim.runtime.operations import Operation, Operations
from crishim.runtime.places import Places
from crishim.runtime.steps import reached
from crishim.runtime.stopping import Stopping
from crishim.runtime.units import Units
from crishim.store.store import Store

logger = logging.getLogger(__name__)

#: name of the role that detaches a mount and removes its mount point; `app/serve.py` gives it to the zygote
PIN_ROLE = "remove_pin"
#: name of the role that detaches mounts alone
MOUNT_ROLE = "detach_mounts"
_KILL_PAUSE_S = 0.01


class Removal:
    """RemoveContainer, and the netns pin of a sandbox."""

    def __init__(
        self,
        store: Store,
        live: Live,
        places: Places,
        executor: Executor,
        rootfs: RootFsStore,
        operations: Operations,
        helper: Helper,
        stopping: Stopping,
        units: Units,
        kill_wait_s: float,
    ) -> None:
        self._store = store
        self._live = live
        self._places = places
        self._executor = executor
        self._rootfs = rootfs
        self._operations = operations
        self._helper = helper
        self._stopping = stopping
        self._units = units
        self._kill_wait_s = kill_wait_s

    async def remove(self, container_id: str) -> None:
        """Kill, then remove all that is left of a container. Nothing to do when it is unknown; full ids only."""
        try:
            container = self._store.get_container(container_id)
        except NotFound:
            return
        await self._operations.run(
            ("RemoveContainer", container_id),
            lambda operation: self._remove(container, operation),
            stage="remove_container.killed",
        )

    async def _remove(self, container: Container, operation: Operation) -> None:
        await self._stopping.stop(container.id, 0.0)
        reached("remove_container.killed")
        operation.enter("remove_container.forgotten")
        monitor = self._live.find_monitor(container.sandbox_id)
        if monitor is not None:
            try:
                await answered(container.sandbox_id, monitor.forget(container.id))
            except MonitorSilent:
                raise
            except Unavailable:
                pass  # it is gone, and what it knew with it
        reached("remove_container.forgotten")
        operation.enter("remove_container.rootfs")
        if self._store.get_container(container.id).state is ContainerState.CREATED:
            with suppress(OSError):  # what a start has left whose monitor was killed
                await self._helper.run(effects.kill, self._executor.hierarchy, container.cgroup_path)
        await self.discard(container.sandbox_id, container.id, container.cgroup_path)
        reached("remove_container.rootfs")
        self._store.remove_container(container.id)
        reached("remove_container.status")

    async def discard(self, sandbox_id: str, container_id: str, cgroup_path: str) -> None:
        """Remove cgroup, root and files of a container without a process; safe to repeat.

        Unavailable when a process is in its cgroup: its root and its records stay with it.
        """
        if cgroup_path:
            await self.remove_cgroup(f"container {container_id}", cgroup_path)
        try:
            await self._rootfs.release(container_id)
        except OSError as error:
            raise Unavailable(f"the root of container {container_id} cannot be removed: {error.strerror}") from error
        self._places.remove_container(sandbox_id, container_id)

    def run_poststop(self, container: Container) -> None:
        """Begin to run the hooks after the end of a container whose monitor died; nothing to do without hooks."""
        try:
            spec = self._places.read_spec(container.sandbox_id, container.id)
        except CrishimError as error:
            logger.warning("the hooks of container %s are not known any more: %s", container.id, error)
            return
        if spec.hooks:
            with suppress(Unavailable):  # the server is stopping
                self._operations.spawn(self._run_poststop(spec), f"poststop hooks of {container.id}")

    async def _run_poststop(self, spec: ContainerSpec) -> None:
        try:
            await self._executor.run_poststop(spec)
        except CrishimError as error:
            logger.error("container %s: %s", spec.id, error)

    async def remove_cgroup(self, whose: str, path: str) -> None:
        """Remove a cgroup with all below it; Unavailable when a process is in it."""
        if not (
            await self._units.stop(path) and await self._helper.run(effects.remove, self._executor.hierarchy, path)
        ):
            raise Unavailable(f"the cgroup {path} of {whose} cannot be removed: a process is in it")

    async def end_cgroup(self, whose: str, path: str) -> None:
        """Kill what is in a cgroup until nothing is, and remove it; Unavailable when a process does not die."""
        give_up = asyncio.get_running_loop().time() + self._kill_wait_s
        pause_s = _KILL_PAUSE_S
        while True:
            with suppress(OSError):
                await self._helper.run(effects.kill, self._executor.hierarchy, path)
            if await self._units.stop(path) and await self._helper.run(
                effects.remove, self._executor.hierarchy, path, tries=4
            ):
                return
            if asyncio.get_running_loop().time() > give_up:
                left = await self._helper.run(effects.pids, self._executor.hierarchy, path)
                which = f"process {left[0]} does not die" if left else "the kernel keeps it"
                raise Unavailable(f"the cgroup {path} of {whose} cannot be removed: {which}")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 1.0)

    async def detach_mounts(self, path: str) -> None:
        """Detach every mount at this path; Unavailable when one stays."""
        try:
            await self._executor.run_role(MOUNT_ROLE, {"path": os.fsencode(path)}, timeout_s=10.0)
        except CrishimError as error:
            raise Unavailable(f"the mount at {path} cannot be detached: {error}") from error

    async def remove_pin(self, path: str | None) -> None:
        """Remove the pin of a network namespace when it is still there."""
        if path is None or not os.path.lexists(path):
            return
        try:
            await self._executor.run_role(PIN_ROLE, {"path": os.fsencode(path)}, timeout_s=10.0)
        except CrishimError as error:
            raise Unavailable(f"the network namespace {path} cannot be let go: {error}") from error
