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
from contextlib import suppress
from dataclasses import replace

from crishim.cgroups import effects
from crishim.cgroups.hierarchy import Hierarchy
from crishim.errors import CrishimError, NotFound
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
from crishim.runtime.verdict import lost, verdict
from crishim.store.store import Store

logger = logging.getLogger(__name__)

#: how long a dead process' record is waited for
_RECORD_GRACE_S = 5.0


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
    ) -> None:
        self._store = store
        self._live = live
        self._places = places
        self._hierarchy = hierarchy
        self._operations = operations
        self._helper = helper
        self._observer = observer

    def watch_monitor(self, monitor: Monitor) -> None:
        """Take a monitor's events from now on."""
        sandbox_id = monitor.sandbox_id
        monitor.on_exit = lambda record: self.receive(sandbox_id, record)
        monitor.on_started = lambda found: self._started_late(sandbox_id, found)
        monitor.on_pod_init_exited = lambda: self.pod_init_exited(sandbox_id)
        monitor.on_lost = lambda: self._operations.spawn(self.monitor_lost(sandbox_id), f"monitor of {sandbox_id} lost")
        self._live.add_monitor(monitor)
        if monitor.pod_init_died:
            self.pod_init_exited(sandbox_id)

    def pod_init_exited(self, sandbox_id: str) -> None:
        """Process 1 of a shared PID namespace died: no container can be started in the pod any more."""
        logger.error("the init process of sandbox %s died, and its PID namespace with it", sandbox_id)
        with suppress(NotFound):
            self._store.update_sandbox(sandbox_id, lambda old: not_ready(old, "PodInitExited"))

    def started(self, container: LiveContainer, started_at_ns: int) -> Container:
        """An init passed execve(2). Its exit may have arrived before: then that stays."""
        event = ProcessStarted(container.id, container.pid, started_at_ns)
        current = self._store.get_container(container.id)
        if current.state is ContainerState.CREATED:
            self._live.add(container)
            self._watch_pidfd(container)
            return self._store.update_container(container.id, lambda old: apply_event(old, event))
        self._live.add(container)
        self._live.ended(container.id)
        return current

    def _started_late(self, sandbox_id: str, found: MonitoredContainer) -> None:
        """A start that an earlier server had asked for has ended well after it was gone."""
        assert found.pidfd is not None
        try:
            spec = self._places.read_spec(sandbox_id, found.id)
            self.started(LiveContainer(sandbox_id, spec, found.pid, found.pidfd), found.started_at_ns)
        except CrishimError as error:
            logger.warning("container %s of sandbox %s started late, and is ended: %s", found.id, sandbox_id, error)
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(found.pidfd, signal.SIGKILL)
            os.close(found.pidfd)

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
        """Bring an exit into the store and tell who waits; False when it was known."""
        try:
            current = self._store.get_container(event.container_id)
        except NotFound:
            self._live.ended(event.container_id)
            return False
        changed = current.state is not ContainerState.EXITED
        if changed:
            self._store.update_container(event.container_id, lambda old: apply_event(old, event))
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
        self._places.write_stop(container.sandbox_id, container.id, note)
        self._observer.signal_sent(_signal_name(number), sender.value)

    async def monitor_lost(self, sandbox_id: str) -> None:
        """A monitor died: its pod can be watched no more, so it is ended, and the reason says so."""
        self._live.drop_monitor(sandbox_id)
        logger.error("the monitor of sandbox %s died; its containers are killed", sandbox_id)
        sentence = "the monitor of the pod died, so its containers were killed"
        for container in [each for each in self._live.containers() if each.sandbox_id == sandbox_id]:
            with suppress(OSError):
                await self._helper.run(effects.kill, self._hierarchy, container.spec.cgroup.path)
            await self._helper.run(effects.remove, self._hierarchy, container.spec.cgroup.path)
            self.conclude(container.id, sentence, killed=True)
        with suppress(NotFound):
            self._store.update_sandbox(sandbox_id, lambda old: not_ready(old, "MonitorLost"))

    def conclude(self, container_id: str, sentence: str, *, killed: bool) -> None:
        """End a container that runs no more by its record, or by `sentence` when there is none."""
        container = self._store.get_container(container_id)
        if container.state is ContainerState.EXITED:
            self._live.ended(container_id)
            return
        record = self._record_of(container)
        if record is not None:
            self.receive(container.sandbox_id, record)
            return
        self.apply(lost(container_id, container.started_at_ns, time.time_ns(), sentence, killed=killed))

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
        self._operations.spawn(self._await_record(container), f"record of {container.id}")

    async def _await_record(self, container: LiveContainer) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_RECORD_GRACE_S):
                await container.exited.wait()
                return
        with suppress(NotFound):
            self.conclude(container.id, "the process ended, but the pod's monitor does not say how", killed=False)


def _unwatch(container: LiveContainer) -> None:
    if container.pidfd >= 0:
        asyncio.get_running_loop().remove_reader(container.pidfd)


def not_ready(sandbox: Sandbox, reason: str) -> Sandbox:
    """The sandbox as it is when nothing can run in it any more; `reason` is a word ("MonitorLost")."""
    return replace(sandbox, state=SandboxState.NOTREADY, reason=reason)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
