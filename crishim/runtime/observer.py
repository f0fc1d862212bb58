"""Who is told of what happens to processes: the metrics, as `app/metrics.py` brings it. Each method is a past event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Observer(Protocol):
    """Called on the event loop; must be quick and must not raise."""

    def process_started(self, kind: str, phases: Mapping[str, float]) -> None:
        """A process passed execve(2). kind is "init" or "exec"; phases maps a phase's name to its seconds."""
        ...

    def process_start_failed(self, kind: str, outcome: str) -> None:
        """A process never ran; outcome is a word such as "not_found", "denied" or "error"."""
        ...

    def process_exited(self, reason: str) -> None:
        """An init process ended; reason as in ContainerStatus."""
        ...

    def signal_sent(self, signal: str, sender: str) -> None:
        """signal is a name ("SIGTERM"), sender a value of `model.events.Sender`."""
        ...

    def oom_killed(self, container_id: str, count: int) -> None:
        """A container ended, and the kernel had killed `count` of its processes for want of memory."""
        ...

    def exec_ended(self, container_id: str, outcome: str, seconds: float) -> None:
        """An exec is over; outcome is "ok", "nonzero", "timeout" or "failed" (it never ran)."""
        ...

    def pull_ended(self, outcome: str, seconds: float, fetched_bytes: int) -> None:
        """An image pull is over; outcome is "ok" or "failed"."""
        ...

    def leftover_freed(self, kind: str) -> None:
        """Something that belonged to nobody is gone; kind is a value of `model.leftover.LeftoverKind`."""
        ...

    def leftover_failed(self, kind: str) -> None:
        """It could not be freed, and is tried again."""
        ...

    def leftovers_looked_for(self, seconds: float) -> None:
        """The node was compared with what the server knows."""
        ...

    def log_bytes_were_lost(self, container_id: str, count: int) -> None:
        """A container ended, and `count` bytes of its output were dropped as its log could not be written."""
        ...
