"""The reason of an end, its sender, and never a wrong one."""

from __future__ import annotations

import pytest

from crishim.model.events import Sender
from crishim.model.exit import ExitRecord
from crishim.runtime.places import StopNote
from crishim.runtime.verdict import lost, start_failed, verdict


def record(code: int, signal: int | None = None, oom_kills: int = 0, **fields: object) -> ExitRecord:
    values = {"container_id": "c", "pid": 7, "started_at_ns": 10, "ended_at_ns": 100}
    return ExitRecord(**{**values, **fields}, code=code, signal=signal, oom_kills=oom_kills)  # type: ignore[arg-type]


TERM = StopNote(15, "stop", 50)
KILL = StopNote(9, "stop", 50)
LATE_KILL = StopNote(9, "stop", 500)


@pytest.mark.parametrize(
    ("exit_", "note", "own_pid", "reason", "sender"),
    [
        (record(0), None, True, "Completed", Sender.INSIDE),
        (record(3), None, True, "Error", Sender.INSIDE),
        (record(137), None, True, "Error", Sender.INSIDE),
        (record(139, 11), None, True, "Error", Sender.INSIDE),
        # memory
        (record(137, 9, 1), None, True, "OOMKilled", Sender.OOM),
        (record(137, None, 1), None, True, "OOMKilled", Sender.OOM),
        (record(1, None, 3), None, True, "Error", Sender.INSIDE),
        (record(0, None, 3), None, True, "Completed", Sender.INSIDE),
        (record(143, 15, 1), TERM, True, "Error", Sender.STOP),
        (record(137, 9, 1), TERM, True, "OOMKilled", Sender.OOM),
        (record(137, 9, 1), KILL, True, "Error", Sender.STOP),
        (record(137, 9, 1), LATE_KILL, True, "OOMKilled", Sender.OOM),
        # our signals
        (record(137, 9), KILL, True, "Error", Sender.STOP),
        (record(143, 15), TERM, True, "Error", Sender.STOP),
        (record(0), TERM, True, "Completed", Sender.STOP),
        (record(143), TERM, True, "Error", Sender.STOP),
        (record(139, 11), TERM, True, "Error", Sender.INSIDE),
        (record(0), LATE_KILL, True, "Completed", Sender.INSIDE),
        (record(137, 9), StopNote(9, "runtime", 50), True, "Error", Sender.RUNTIME),
        # a kill of nobody we know
        (record(137, 9), None, True, "Error", Sender.UNKNOWN),
        (record(137, 9), None, False, "Error", Sender.INSIDE),
    ],
)
def test_the_matrix(exit_: ExitRecord, note: StopNote | None, own_pid: bool, reason: str, sender: Sender) -> None:
    event = verdict(exit_, note, own_pid)
    assert (event.reason, event.sender) == (reason, sender)
    assert (event.code, event.signal, event.oom_kills) == (exit_.code, exit_.signal, exit_.oom_kills)
    assert (event.started_at_ns, event.ended_at_ns) == (10, 100)


def test_a_start_that_failed_says_how() -> None:
    event = start_failed("c", 5, "exec: not found")
    assert (event.code, event.reason, event.message, event.sender) == (
        128,
        "StartError",
        "exec: not found",
        Sender.RUNTIME,
    )
    recorded = verdict(record(128, start_error="exec: not found"), None, True)
    assert (recorded.reason, recorded.message) == ("StartError", "exec: not found")


def test_an_end_without_a_record_claims_nothing() -> None:
    killed = lost("c", 1, 2, "the monitor died", killed=True)
    assert (killed.code, killed.signal, killed.reason, killed.sender) == (137, 9, "Error", Sender.RUNTIME)
    unknown = lost("c", 1, 2, "nobody knows", killed=False)
    assert (unknown.code, unknown.signal, unknown.reason, unknown.sender) == (255, None, "Unknown", Sender.UNKNOWN)
