"""What the server holds of pods and containers that exist now: monitors, pidfds, who waits for an exit.

Nothing here is on disk: recovery builds it anew from the monitors. The store says what is, this says how to reach it.
"""

from __future__ import annotations

import asyncio
import os

from crishim.errors import Unavailable, WrongState
from crishim.model.process import ContainerSpec
from crishim.runtime.executor import Monitor


class LiveContainer:
    """A container whose init runs. It owns the pidfd until `ended`."""

    __slots__ = ("busy_leaves", "exited", "held_leaves", "id", "killed_leaves", "pid", "pidfd", "sandbox_id", "spec")

    def __init__(self, sandbox_id: str, spec: ContainerSpec, pid: int, pidfd: int) -> None:
        self.id = spec.id
        self.sandbox_id = sandbox_id
        self.spec = spec
        self.pid = pid
        self.pidfd = pidfd
        #: set when EXITED is in the store
        self.exited = asyncio.Event()
        #: numbers of exec leaves with a running exec, and of those that a finished exec left a process in
        self.busy_leaves: set[int] = set()
        self.held_leaves: set[int] = set()
        #: those that were killed and must be made anew
        self.killed_leaves: set[int] = set()


class Live:
    """Monitors by sandbox id, running containers by id."""

    def __init__(self) -> None:
        self._monitors: dict[str, Monitor] = {}
        self._containers: dict[str, LiveContainer] = {}
        #: sandboxes whose monitor exists but has not answered since the server started, or not in a way that is known:
        #: they stay as they are
        self.silent: set[str] = set()

    def add_monitor(self, monitor: Monitor) -> None:
        """A monitor was started or adopted."""
        self._monitors[monitor.sandbox_id] = monitor

    def monitor(self, sandbox_id: str) -> Monitor:
        """Unavailable when the sandbox has none."""
        monitor = self._monitors.get(sandbox_id)
        if monitor is None:
            raise Unavailable(f"the monitor of sandbox {sandbox_id} is gone")
        return monitor

    def find_monitor(self, sandbox_id: str) -> Monitor | None:
        """The monitor, None when there is none."""
        return self._monitors.get(sandbox_id)

    def monitors(self) -> list[Monitor]:
        """All of them."""
        return list(self._monitors.values())

    def drop_monitor(self, sandbox_id: str) -> None:
        """It was stopped or is lost."""
        self._monitors.pop(sandbox_id, None)

    def add(self, container: LiveContainer) -> None:
        """An init process runs."""
        self._containers[container.id] = container

    def running(self, container_id: str) -> LiveContainer:
        """WrongState when its init does not run."""
        container = self._containers.get(container_id)
        if container is None:
            raise WrongState(f"container {container_id} is not running")
        return container

    def find(self, container_id: str) -> LiveContainer | None:
        """The container, None when its init does not run."""
        return self._containers.get(container_id)

    def containers(self) -> list[LiveContainer]:
        """All that run."""
        return list(self._containers.values())

    def ended(self, container_id: str) -> None:
        """The init is gone and the store says so: let go of the pidfd and wake who waits."""
        container = self._containers.pop(container_id, None)
        if container is not None:
            if container.pidfd >= 0:
                os.close(container.pidfd)
                container.pidfd = -1
            container.exited.set()

    def close(self) -> None:
        """Let go of everything; pods go on."""
        for monitor in self._monitors.values():
            monitor.close()
        for container in self._containers.values():
            if container.pidfd >= 0:
                os.close(container.pidfd)
                container.pidfd = -1
