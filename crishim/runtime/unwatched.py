"""Pods without a monitor: what is to be said of them, and the end of what runs in them.

Nobody would reap their processes or record how they end, so containers that no monitor knows run no more, or are ended;
READY without a monitor is NOTREADY.
"""

from __future__ import annotations

from contextlib import suppress

from crishim.cgroups import effects
from crishim.cgroups.hierarchy import Hierarchy
from crishim.cgroups.units import is_unit
from crishim.model.container import Container, ContainerState
from crishim.model.sandbox import Sandbox, SandboxState
from crishim.runtime.exits import Exits, not_ready
from crishim.runtime.helper import Helper
from crishim.runtime.live import Live
from crishim.store.store import Store


class Unwatched:
    """Brings the store to what is true."""

    def __init__(self, store: Store, live: Live, exits: Exits, hierarchy: Hierarchy, helper: Helper) -> None:
        self._store = store
        self._live = live
        self._exits = exits
        self._hierarchy = hierarchy
        self._helper = helper

    async def end_sandbox(self, sandbox: Sandbox, *, rebooted: bool) -> None:
        """End what no monitor watches. rebooted: the node was since, so nothing of it can run."""
        for container in self._store.list_containers(sandbox.id):
            if container.state in (ContainerState.RUNNING, ContainerState.UNKNOWN):
                await self._end_container(container, rebooted)
        if self._live.find_monitor(sandbox.id) is None and sandbox.state is SandboxState.READY:
            reason = "NodeRebooted" if rebooted else "MonitorLost"
            self._store.update_sandbox(sandbox.id, lambda old: not_ready(old, reason))

    async def _end_container(self, container: Container, rebooted: bool) -> None:
        if self._live.find(container.id) is not None:
            return
        if rebooted:
            self._exits.conclude(container.id, "the node was rebooted", killed=False)
            return
        with suppress(OSError):
            await self._helper.run(effects.kill, self._hierarchy, container.cgroup_path)
        if not is_unit(container.cgroup_path):  # systemd removes a scope when nothing runs in it
            await self._helper.run(effects.remove, self._hierarchy, container.cgroup_path)
        self._exits.conclude(container.id, "the monitor of the pod died, so its containers were killed", killed=True)
