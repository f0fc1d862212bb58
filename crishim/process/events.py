"""What happens to a container, as an iterator: execs, limits, pauses, the kernel's OOM killer, the end.

Events of our own calls and of exits are put into a queue by whoever sees them; the OOM killer is asked of the cgroup by
the thread that iterates, so that nobody pays for events that nobody reads.
"""

from __future__ import annotations

import enum
import os
import select
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from crishim.cgroups.hierarchy import Hierarchy
from crishim.cgroups.oom import OomWatch
from crishim.process.handle import ExitStatus

#: the kernel tells of an OOM before it has killed: the counter is read again after this, so often
_SETTLE_MS = 20
_SETTLE_TRIES = 50


class EventKind(enum.Enum):
    """What happened."""

    EXEC_STARTED = "exec_started"
    EXEC_EXITED = "exec_exited"
    PAUSED = "paused"
    RESUMED = "resumed"
    UPDATED = "updated"
    OOM = "oom"
    #: the init process ended: the last event
    EXITED = "exited"
    #: the container's monitor died, and the container with it: the last event
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class ContainerEvent:
    """One event. `pid` is 0 where no process is meant; `status` is that of an ended process.

    oom_kills: processes that the kernel killed for memory since the start, of OOM and EXITED.
    """

    kind: EventKind
    pid: int = 0
    status: ExitStatus | None = None
    oom_kills: int = 0
    #: CLOCK_REALTIME
    at_ns: int = field(default_factory=time.time_ns)


class Events(Iterator[ContainerEvent]):
    """The events of one container from the call of `Container.events` on, in order; ends after EXITED or LOST.

    Belongs to one thread. Owns descriptors: exhaust or `close` it, or use it in a `with`.
    """

    def __init__(
        self, hierarchy: Hierarchy, cgroup: str, forget: Callable[[Events], None], timeout_s: float | None
    ) -> None:
        self._timeout_s = timeout_s
        self._forget = forget
        self._queue: deque[ContainerEvent] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._watch = OomWatch(hierarchy, cgroup)
        self._oom_kills = self._watch.count()
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        if self._watch.fd >= 0:
            self._poll.register(self._watch.fd, self._watch.mask)
        self._closed = False
        self._ended = False

    def publish(self, event: ContainerEvent) -> None:
        """Called by any thread; of `Events` that are closed, nobody calls it any more."""
        self._queue.append(event)
        os.eventfd_write(self._wake, 1)

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __next__(self) -> ContainerEvent:
        """The next event; TimeoutError when none comes within the timeout, after which it may be asked again."""
        if self._closed:
            raise StopIteration
        if self._ended:
            self.close()
            raise StopIteration
        deadline = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        while True:
            event = self._queued() or self._wait(deadline)
            if event is not None:
                return event

    def _queued(self) -> ContainerEvent | None:
        if not self._queue:
            return None
        event = self._queue[0]
        if event.oom_kills > self._oom_kills:  # the cgroup went before it could be asked
            self._oom_kills = event.oom_kills
            return ContainerEvent(EventKind.OOM, oom_kills=event.oom_kills, at_ns=event.at_ns)
        self._ended = event.kind in (EventKind.EXITED, EventKind.LOST)
        return self._queue.popleft()

    def _wait(self, deadline: float | None) -> ContainerEvent | None:
        left_ms = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = dict(self._poll.poll(left_ms))
        if not ready:
            raise TimeoutError(f"no event within {self._timeout_s:g} s")
        if self._wake in ready:
            os.eventfd_read(self._wake)
        if self._watch.fd in ready:
            return self._oom()
        return None

    def _oom(self) -> ContainerEvent | None:
        self._watch.consume()
        for _ in range(_SETTLE_TRIES):
            count = self._watch.count()
            if count > self._oom_kills:
                self._oom_kills = count
                return ContainerEvent(EventKind.OOM, oom_kills=count)
            if self._watch.is_exact or self._queue:
                break
            select.select([self._wake], [], [], _SETTLE_MS / 1000)
        return None

    def close(self) -> None:
        """No more events; safe to repeat."""
        if self._closed:
            return
        self._closed = True
        self._forget(self)
        self._watch.close()
        os.close(self._wake)
