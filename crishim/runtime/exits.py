"""The only receiver of exits: from a record, or from the lack of one, to the store, the metrics and who waits.

A record comes from the monitor as an event, or from its file when the server was away. A process that is gone while
its monitor says nothing (a hung log disk) is not waited for: its pidfd tells.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any

from crishim.cgroups import effects
from crishim.cgroups.hierarchy import Hierarchy
from crishim.errors import CrishimError, Exhausted, NotFound, Unavailable
from crishim.executor.client import MonitoredContainer, read_exit_record
from crishim.executor.wire import WireError
from crishim.model.container import Container, ContainerState, apply_event
from crishim.model.events import ProcessExited, ProcessStarted, Sender
from crishim.model.exit import ExitRecord
from crishim.model.process import NamespaceKind
from crishim.model.sandbox import Sandbox, SandboxState
from crishim.runtime.executor import Monitor
from crishim.runtime.helper import Helper
from crishim.runtime.live import Live, LiveContainer
from crishim.runtime.observer import Observer
from crishim.runtime.operations import Operations
from crishim.runtime.places import Places, StopNote
from crishim.runtime.verdict import lost, signal_name, verdict
from crishim.store.store import Store

logger = logging.getLogger(__name__)

#: how long a dead process' record is waited for
_RECORD_GRACE_S = 5.0
#: between two tries to record an exit where the state directory is full
_RECORD_AGAIN_S = 1.0


class Exits:
    """Turns what monitors and pidfds say into states."""

    def __init__(
        self,
        store: Store,
        live: Live,
        places: Places,
        hierarchy: Hierarchy,
        operations: Operations,
        helper: Helper,
        observer: Observer,
        *,
        record_again_s: float = _RECORD_AGAIN_S,
    ) -> None:
        self._store = store
        self._live = live
        self._places = places
        self._hierarchy = hierarchy
        self._operations = operations
        self._helper = helper
        self._observer = observer
        self._record_again_s = record_again_s
        #: told of a container that ended without its monitor, which would have run the hooks after the end
        self.on_unwatched_end: Callable[[Container], None] = lambda container: None
        #: ids of containers that ended, which the store could not be told yet
        self._unrecorded: set[str] = set()

    def watch_monitor(self, monitor: Monitor) -> None:
        """Take a monitor's events from now on."""
        sandbox_id = monitor.sandbox_id
        monitor.on_exit = lambda record: self.receive(sandbox_id, record)
        monitor.on_started = lambda found: self._started_late(sandbox_id, found)
        monitor.on_pod_init_exited = lambda: self.pod_init_exited(sandbox_id)
        monitor.on_lost = lambda: self._spawn(self.monitor_lost(sandbox_id), f"monitor of {sandbox_id} lost")
        self._live.add_monitor(monitor)
        if monitor.pod_init_died:
            self.pod_init_exited(sandbox_id)

    def pod_init_exited(self, sandbox_id: str) -> None:
        """Process 1 of a shared PID namespace died: no container can be started in the pod any more."""
        logger.error("the init process of sandbox %s died, and its PID namespace with it", sandbox_id)
        self._not_ready(sandbox_id, "PodInitExited")

    def started(self, container: LiveContainer, started_at_ns: int) -> Container:
        """An init passed execve(2). Its exit may have arrived before: then that stays.

        Exhausted when it cannot be recorded: then it is killed, so that nothing runs of which nobody knows.
        """
        event = ProcessStarted(container.id, container.pid, started_at_ns)
        current = self._store.get_container(container.id)
        if current.state is ContainerState.CREATED:
            self._live.add(container)
            self._watch_pidfd(container)
            try:
                return self._store.update_container(container.id, lambda old: apply_event(old, event))
            except Exhausted:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(container.pidfd, signal.SIGKILL)
                raise
        self._live.add(container)
        self._live.ended(container.id)
        return current

    def _started_late(self, sandbox_id: str, found: MonitoredContainer) -> None:
        """A start that an earlier server had asked for has ended well after it was gone."""
        assert found.pidfd is not None
        try:
            spec = self._places.read_spec(sandbox_id, found.id)
            self._store.get_container(found.id)
        except CrishimError as error:
            logger.warning("container %s of sandbox %s started late, and is ended: %s", found.id, sandbox_id, error)
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(found.pidfd, signal.SIGKILL)
            os.close(found.pidfd)
            return
        try:
            self.started(LiveContainer(sandbox_id, spec, found.pid, found.pidfd), found.started_at_ns)
        except Exhausted as error:
            logger.error("container %s started late, and is ended: %s", found.id, error)

    def adopt(self, container: LiveContainer) -> None:
        """A running init that an earlier server started."""
        self._live.add(container)
        self._watch_pidfd(container)

    def receive(self, sandbox_id: str, record: ExitRecord) -> None:
        """An exit record; one of a container that is EXITED or unknown changes nothing."""
        running = self._live.find(record.container_id)
        own_pid = running is not None and any(each.kind is NamespaceKind.PID for each in running.spec.namespaces)
        note = self._places.read_stop(sandbox_id, record.container_id)
        if self.apply(verdict(record, note, own_pid)) and record.log_bytes_lost:
            self._observer.log_bytes_were_lost(record.container_id, record.log_bytes_lost)

    def apply(self, event: ProcessExited) -> bool:
        """Bring an exit into the store and tell who waits; False when it was known.

        Where the state directory is full that is tried again until it works: the process does not run any more.
        """
        try:
            current = self._store.get_container(event.container_id)
        except NotFound:
            self._live.ended(event.container_id)
            return False
        changed = current.state is not ContainerState.EXITED
        if changed:
            try:
                self._store.update_container(event.container_id, lambda old: apply_event(old, event))
            except Exhausted as error:
                if event.container_id not in self._unrecorded:
                    logger.error("container %s ended, which cannot be recorded yet: %s", event.container_id, error)
                    self._unrecorded.add(event.container_id)
                    self._spawn(self._apply_again(event), f"exit of {event.container_id}")
                return False
            self._observer.process_exited(event.reason)
            if event.oom_kills:
                self._observer.oom_killed(event.container_id, event.oom_kills)
            logger.info(
                "container %s ended: %s, exit code %d, by %s",
                event.container_id,
                event.reason,
                event.code,
                event.sender.value,
            )
        running = self._live.find(event.container_id)
        if running is not None:
            _unwatch(running)
        self._live.ended(event.container_id)
        return changed

    def note(self, container: LiveContainer | Container, number: int, sender: Sender) -> None:
        """We are about to send this signal: the verdict needs to know."""
        note = StopNote(number, sender.value, time.time_ns())
        try:
            self._places.write_stop(container.sandbox_id, container.id, note)
        except Exhausted as error:  # the signal matters more than its note
            logger.error("container %s is signalled, and the exit will not be known as ours: %s", container.id, error)
        self._observer.signal_sent(signal_name(number), sender.value)

    async def monitor_lost(self, sandbox_id: str) -> None:
        """A monitor died: its pod can be watched no more, so it is ended, and the reason says so."""
        self._live.drop_monitor(sandbox_id)
        logger.error("the monitor of sandbox %s died; its containers are killed", sandbox_id)
        sentence = "the monitor of the pod died, so its containers were killed"
        self._not_ready(sandbox_id, "MonitorLost")
        for container in [each for each in self._live.containers() if each.sandbox_id == sandbox_id]:
            try:
                with suppress(OSError):
                    await self._helper.run(effects.kill, self._hierarchy, container.spec.cgroup.path)
                await self._helper.run(effects.remove, self._hierarchy, container.spec.cgroup.path)
                self.conclude(container.id, sentence, killed=True)
            except Exception:  # the others have to be ended all the same
                logger.exception("container %s of sandbox %s", container.id, sandbox_id)

    def conclude(self, container_id: str, sentence: str, *, killed: bool, watched: bool = False) -> None:
        """End a container that runs no more by its record, or by `sentence` when there is none.

        watched: its monitor lives, and runs the hooks after its end.
        """
        container = self._store.get_container(container_id)
        if container.state is ContainerState.EXITED:
            self._live.ended(container_id)
            return
        record = self._record_of(container)
        if record is not None:
            self.receive(container.sandbox_id, record)
            return
        self.apply(lost(container_id, container.started_at_ns, time.time_ns(), sentence, killed=killed))
        if not watched:
            self.on_unwatched_end(container)

    def _record_of(self, container: Container) -> ExitRecord | None:
        with suppress(OSError, WireError):
            return read_exit_record(self._places.sandbox(container.sandbox_id), container.id)
        return None

    def _watch_pidfd(self, container: LiveContainer) -> None:
        if container.pidfd < 0:
            return
        asyncio.get_running_loop().add_reader(container.pidfd, self._gone, container)

    def _gone(self, container: LiveContainer) -> None:
        """The init is dead; its record should be on its way."""
        _unwatch(container)
        self._spawn(self._await_record(container), f"record of {container.id}")

    async def _apply_again(self, event: ProcessExited) -> None:
        try:
            while not self._is_recorded(event.container_id):
                await asyncio.sleep(self._record_again_s)
                self.apply(event)
        finally:
            self._unrecorded.discard(event.container_id)

    def _is_recorded(self, container_id: str) -> bool:
        try:
            return self._store.get_container(container_id).state is ContainerState.EXITED
        except NotFound:
            return True

    def _not_ready(self, sandbox_id: str, reason: str) -> None:
        try:
            self._store.update_sandbox(sandbox_id, lambda old: not_ready(old, reason))
        except NotFound:
            pass
        except Exhausted as error:
            logger.error("sandbox %s is not ready (%s), which cannot be recorded: %s", sandbox_id, reason, error)

    def _spawn(self, work: Coroutine[Any, Any, object], name: str) -> None:
        with suppress(Unavailable):  # the server is stopping: the next one finds what is left to do
            self._operations.spawn(work, name)

    async def _await_record(self, container: LiveContainer) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_RECORD_GRACE_S):
                await container.exited.wait()
                return
        with suppress(NotFound):
            self.conclude(
                container.id, "the process ended, but the pod's monitor does not say how", killed=False, watched=True
            )


def _unwatch(container: LiveContainer) -> None:
    if container.pidfd >= 0:
        asyncio.get_running_loop().remove_reader(container.pidfd)


def not_ready(sandbox: Sandbox, reason: str) -> Sandbox:
    """The sandbox as it is when nothing can run in it any more; `reason` is a word ("MonitorLost")."""
    return replace(sandbox, state=SandboxState.NOTREADY, reason=reason)
