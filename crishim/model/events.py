"""What happened to a process, in the past tense. The only values that travel up (style: data flows one way)."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Sender(enum.Enum):
    """Who ended a process, as far as we can know it."""

    INSIDE = "inside"  # exited by itself, or killed by a process of its own pod
    STOP = "stop"  # StopContainer, StopPodSandbox, removal
    TIMEOUT = "timeout"  # an exec's deadline
    OOM = "oom"  # the kernel's out-of-memory killer
    RUNTIME = "runtime"  # we ended it because the monitor or the start failed
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ProcessStarted:
    """The init process passed execve(2)."""

    container_id: str
    pid: int
    started_at_ns: int


@dataclass(frozen=True, slots=True)
class ProcessExited:
    """The init process is gone; `reason` is the CamelCase word of ContainerStatus.reason."""

    container_id: str
    started_at_ns: int
    ended_at_ns: int
    code: int
    signal: int | None
    oom_kills: int
    sender: Sender
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class TrackLost:
    """Nobody can tell any more whether the process runs or how it ended."""

    container_id: str
    message: str


ProcessEvent = ProcessStarted | ProcessExited | TrackLost


class LifeEventKind(enum.Enum):
    """CRI `ContainerEventType`; the value is the wire number."""

    CREATED = 0
    STARTED = 1
    STOPPED = 2
    DELETED = 3
