"""Why a process ended, from what the monitor recorded and what we did ourselves. Pure.

OOMKilled is said when the container ended with 137 that was not our signal and its cgroup had an OOM kill; never for a
child's OOM kill that the container survived or ended otherwise.
"""

from __future__ import annotations

import signal

from crishim.model.events import ProcessExited, Sender
from crishim.model.exit import ExitRecord
from crishim.runtime.places import StopNote

START_ERROR_CODE = 128


def verdict(record: ExitRecord, note: StopNote | None, own_pid_namespace: bool) -> ProcessExited:
    """The event of an exit record. `note` is the last signal that we sent to the init, None when we sent none."""
    ours = note is not None and record.ended_at_ns >= note.at_ns and record.signal in (None, note.signal)
    reason, message = "Error", ""
    if record.start_error is not None:
        reason, message = "StartError", record.start_error
    elif _out_of_memory(record, ours):
        reason, message = "OOMKilled", f"{record.oom_kills} processes of the container were killed for want of memory"
    elif record.code == 0:
        reason = "Completed"
    return ProcessExited(
        container_id=record.container_id,
        started_at_ns=record.started_at_ns,
        ended_at_ns=record.ended_at_ns,
        code=record.code,
        signal=record.signal,
        oom_kills=record.oom_kills,
        sender=_sender(record, note if ours else None, reason, own_pid_namespace),
        reason=reason,
        message=message,
    )


def _out_of_memory(record: ExitRecord, ours: bool) -> bool:
    if record.code != 128 + signal.SIGKILL or not record.oom_kills:
        return False
    return record.signal is None or not ours


def _sender(record: ExitRecord, note: StopNote | None, reason: str, own_pid_namespace: bool) -> Sender:
    if reason == "OOMKilled":
        return Sender.OOM
    if reason == "StartError":
        return Sender.RUNTIME
    if note is not None:
        return Sender(note.sender)
    if record.signal == signal.SIGKILL and own_pid_namespace:
        return Sender.UNKNOWN  # nobody inside can kill process 1 of its own namespace (pid_namespaces(7))
    return Sender.INSIDE


def signal_name(number: int) -> str:
    """ASCII name ("SIGTERM"), "signal N" for one that has none (signal(7), real-time signals)."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def outcome_of(sentence: str) -> str:
    """A word for the metrics from the sentence of a StartFailed: most of them are a wrong command."""
    if "no such file" in sentence or "not found" in sentence:
        return "not_found"
    return "denied" if "permission denied" in sentence else "error"


def lost(container_id: str, started_at_ns: int, ended_at_ns: int, message: str, *, killed: bool) -> ProcessExited:
    """The event of an init whose record nobody has. killed: we ended it; else all that is known is that it is gone."""
    return ProcessExited(
        container_id=container_id,
        started_at_ns=started_at_ns,
        ended_at_ns=ended_at_ns,
        code=128 + signal.SIGKILL if killed else 255,
        signal=int(signal.SIGKILL) if killed else None,
        oom_kills=0,
        sender=Sender.RUNTIME if killed else Sender.UNKNOWN,
        reason="Error" if killed else "Unknown",
        message=message,
    )


def start_failed(container_id: str, at_ns: int, message: str) -> ProcessExited:
    """The event of a container that never reached execve(2)."""
    return ProcessExited(
        container_id=container_id,
        started_at_ns=0,
        ended_at_ns=at_ns,
        code=START_ERROR_CODE,
        signal=None,
        oom_kills=0,
        sender=Sender.RUNTIME,
        reason="StartError",
        message=message,
    )
