"""How running containers end by our will: the stop signal and a grace period, then SIGKILL to the whole cgroup.

It always comes to an end: a caller gets an answer also when a process cannot die (it waits for a dead device), and the
next call goes on. Facts: api.proto StopContainer; a second call never makes the deadline later.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import suppress

from crishim.cgroups import effects
from crishim.cgroups.hierarchy import Hierarchy
from crishim.errors import NotFound, StartFailed, Unavailable
from crishim.model.container import Container, ContainerState
from crishim.model.events import Sender
from crishim.runtime.answers import MonitorSilent, answered
from crishim.runtime.exits import Exits
from crishim.runtime.helper import Helper
from crishim.runtime.live import Live, LiveContainer
from crishim.runtime.operations import Locks, Operation, Operations
from crishim.runtime.settings import Settings
from crishim.runtime.steps import reached
from crishim.store.store import Store

logger = logging.getLogger(__name__)

#: the kill is repeated after this pause, which doubles: a frozen or forking cgroup may need more than one
_REPEAT_S = 0.25
#: a start under way may take this long before a stop without grace ends it
_START_PATIENCE_S = 2.0


class _Deadline:
    """When SIGKILL is due, in the loop's time; may only come nearer."""

    def __init__(self, at: float) -> None:
        self.at = at
        self.changed = asyncio.Event()

    def bring_forward(self, at: float) -> None:
        """Kill at that time of the loop's clock, when that is earlier."""
        if at < self.at:
            self.at = at
            self.changed.set()


class Stopping:
    """StopContainer, and the kills of StopPodSandbox and of removals."""

    def __init__(
        self,
        store: Store,
        live: Live,
        exits: Exits,
        hierarchy: Hierarchy,
        operations: Operations,
        helper: Helper,
        locks: Locks,
        settings: Settings,
    ) -> None:
        self._store = store
        self._live = live
        self._exits = exits
        self._hierarchy = hierarchy
        self._operations = operations
        self._helper = helper
        #: by container id; a start holds its own
        self._locks = locks
        self._settings = settings
        self._deadlines: dict[str, _Deadline] = {}

    async def stop(self, container_id: str, grace_s: float) -> None:
        """Returns when EXITED is in the store. Nothing to do for a container that does not run."""
        await self._wait_for_start(container_id, grace_s)
        try:
            stored = self._store.get_container(container_id)
        except NotFound:
            return
        if stored.state is ContainerState.UNKNOWN:
            self._exits.conclude(container_id, "the process was lost sight of", killed=False)
        container = self._live.find(container_id)
        if container is None and stored.state is ContainerState.RUNNING:
            await self._operations.run(
                ("StopContainer", container_id), lambda _: self._stop_unwatched(stored), stage="stop_container.killed"
            )
        if container is None:
            return
        at = asyncio.get_running_loop().time() + max(grace_s, 0.0)
        known = self._deadlines.get(container_id)
        if known is not None:
            known.bring_forward(at)
        await self._operations.run(
            ("StopContainer", container_id),
            lambda operation: self._stop(container, at, operation),
            stage="stop_container.noted",
        )

    async def _wait_for_start(self, container_id: str, grace_s: float) -> None:
        """A start under way ends first: there is a process afterwards, or there never will be.

        One that hangs (a source on a file server that does not answer) is cancelled after the grace period.
        """
        patience_s = min(max(grace_s, _START_PATIENCE_S), self._settings.kill_wait_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s), self._locks.of(container_id):
                await self._cancel_start(container_id)  # that of an earlier server, which holds no lock here
                return
        await self._cancel_start(container_id)
        try:
            async with asyncio.timeout(self._settings.kill_wait_s), self._locks.of(container_id):
                return
        except TimeoutError:
            raise Unavailable(f"container {container_id} is still being started, or its limits changed") from None

    async def _cancel_start(self, container_id: str) -> None:
        try:
            container = self._store.get_container(container_id)
            if container.state is ContainerState.CREATED:
                monitor = self._live.monitor(container.sandbox_id)
                await answered(monitor.sandbox_id, monitor.cancel_start(container_id), self._settings.kill_wait_s)
        except MonitorSilent:
            raise
        except (NotFound, Unavailable, StartFailed):
            pass

    async def kill_all(self, sandbox_id: str) -> None:
        """End every container of a sandbox by force; returns when all that ran are EXITED.

        A start that a silent monitor cannot be asked to end is left to the end of that monitor, which comes next.
        """
        grace_s = self._settings.sandbox_grace_s
        stops = [self.stop(container.id, grace_s) for container in self._store.list_containers(sandbox_id)]
        for outcome in await asyncio.gather(*stops, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, MonitorSilent):
                raise outcome  # after all of them were tried

    async def _stop(self, container: LiveContainer, at: float, operation: Operation) -> None:
        deadline = self._deadlines[container.id] = _Deadline(at)
        try:
            if deadline.at > asyncio.get_running_loop().time():
                number = self._store.get_container(container.id).stop_signal
                self._exits.note(container, number, Sender.STOP)
                reached("stop_container.noted")
                operation.enter("stop_container.signalled")
                with suppress(ProcessLookupError):
                    if container.pidfd >= 0:
                        signal.pidfd_send_signal(container.pidfd, number)
                reached("stop_container.signalled")
                await self._grace(container, deadline)
            if not container.exited.is_set():
                operation.enter("stop_container.killed")
                await self._kill(container)
        finally:
            del self._deadlines[container.id]

    async def _grace(self, container: LiveContainer, deadline: _Deadline) -> None:
        """Until it ended or the deadline, which may come nearer, has passed."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            ended = group.create_task(container.exited.wait())
            while not ended.done() and (left := deadline.at - loop.time()) > 0:
                deadline.changed.clear()
                changed = group.create_task(deadline.changed.wait())
                await asyncio.wait({ended, changed}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
            ended.cancel()

    async def _stop_unwatched(self, container: Container) -> None:
        """Of a pod whose monitor does not answer: no pidfd is at hand, and nobody will say how the process ended."""
        self._exits.note(container, signal.SIGKILL, Sender.STOP)
        give_up = asyncio.get_running_loop().time() + self._settings.kill_wait_s
        pause = _REPEAT_S / 16
        while True:
            try:
                await self._helper.run(effects.kill, self._hierarchy, container.cgroup_path)
                if effects.is_empty(self._hierarchy, container.cgroup_path):
                    break
            except OSError as error:
                logger.warning("the cgroup of container %s refuses to be killed: %s", container.id, error)
            if asyncio.get_running_loop().time() > give_up:
                raise Unavailable(f"container {container.id} was killed but does not die, and its monitor is silent")
            await asyncio.sleep(pause)
            pause = min(pause * 2, 4.0)
        sentence = "the monitor of the pod did not answer, so the container was killed to stop it"
        self._exits.conclude(container.id, sentence, killed=True)

    async def _kill(self, container: LiveContainer) -> None:
        self._exits.note(container, signal.SIGKILL, Sender.STOP)
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._settings.kill_wait_s
        pause = _REPEAT_S
        while not container.exited.is_set():
            with suppress(ProcessLookupError):
                if container.pidfd >= 0:
                    signal.pidfd_send_signal(container.pidfd, signal.SIGKILL)
            try:
                await self._helper.run(effects.kill, self._hierarchy, container.spec.cgroup.path)
            except OSError as error:
                logger.warning("the cgroup of container %s refuses to be killed: %s", container.id, error)
            reached("stop_container.killed")
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await container.exited.wait()
            pause = min(pause * 2, 4.0)
            if not container.exited.is_set() and loop.time() > give_up:
                raise Unavailable(
                    f"container {container.id}: process {container.pid} was killed but does not die; it may wait for a"
                    " device or a file server that does not answer"
                )
