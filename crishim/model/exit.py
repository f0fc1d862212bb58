"""How a process ended: the record the monitor writes, and the facts the reason is made from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """One ended init process. `code` is 0..255 or 128 + signal; times are CLOCK_REALTIME in ns."""

    container_id: str
    pid: int
    started_at_ns: int
    ended_at_ns: int
    code: int
    #: the signal that ended it, None when it called exit
    signal: int | None = None
    #: oom kills in the container's cgroup during its life
    oom_kills: int = 0
    #: cause it never ran: a sentence, with the failing step
    start_error: str | None = None
    #: bytes of output lost because the log could not be written
    log_bytes_lost: int = 0
