"""The conversation with the system's manager, with a bus that plays its part."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from jeepney import Message, MessageType
from jeepney.low_level import Header, HeaderFields

from crishim.cgroups.systemd import Systemd
from crishim.errors import Unavailable

#: answers a call: the body of its reply, or a D-Bus error
Play = Callable[[str, tuple[Any, ...]], tuple[Any, ...] | Exception]


class Refused(Exception):
    """(error name, text) of a D-Bus error."""


def message(kind: MessageType, body: tuple[Any, ...], **fields: str) -> Message:
    header = Header(0, kind, 0, 1, 0, 1, {HeaderFields[name]: value for name, value in fields.items()})
    return Message(header, body)


class Bus:
    """A connection; every job ends with `result`, told before its number is known, beside another job's end."""

    def __init__(self, play: Play, result: str = "done") -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.connections = 0
        self._play = play
        self._result = result
        self._signals: deque[Message] = deque()
        self._queues: list[deque[Message]] = []

    def __call__(self) -> Bus:
        self.connections += 1
        return self

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, *error: object) -> None:
        self._queues.clear()

    def send_and_get_reply(self, call: Message, *, timeout: float) -> Message:
        member = call.header.fields[HeaderFields.member]
        if member == "AddMatch":
            return message(MessageType.method_return, ())
        call.serialise(serial=1)  # values and signature fit
        self.calls.append((member, call.body))
        answer = self._play(member, call.body)
        if isinstance(answer, Refused):
            return message(MessageType.error, (answer.args[1],), error_name=answer.args[0])
        if isinstance(answer, Exception):
            raise answer
        if answer and str(answer[0]).startswith("/job/"):
            for job, result in (("/job/other", "failed"), (answer[0], self._result)):
                ended = message(MessageType.signal, (1, job, "unit", result), member="JobRemoved")
                for queue in self._queues:
                    queue.append(ended)
        return message(MessageType.method_return, answer)

    @contextmanager
    def filter(self, rule: object, *, queue: deque[Message]) -> Iterator[None]:
        self._queues.append(queue)
        yield
        self._queues.remove(queue)

    def recv_until_filtered(self, queue: deque[Message], *, timeout: float) -> Message:
        if not queue:
            raise TimeoutError
        return queue.popleft()


def unit_error(name: str) -> Refused:
    return Refused(f"org.freedesktop.systemd1.{name}", "told so")


def well(member: str, body: tuple[Any, ...]) -> tuple[Any, ...]:
    return ("/job/7",) if member in ("StartTransientUnit", "StopUnit") else ()


def systemd(bus: Bus) -> Systemd:
    return Systemd(bus, deadline_s=3.0)  # type: ignore[arg-type]


def test_a_scope_is_started_with_its_processes_and_waited_for() -> None:
    bus = Bus(well)
    systemd(bus).start_scope("a.scope", [42], [("Delegate", ("b", True))])
    properties = [("Delegate", ("b", True)), ("PIDs", ("au", [42]))]
    assert bus.calls == [("StartTransientUnit", ("a.scope", "fail", properties, []))]


def test_a_job_that_fails_is_told() -> None:
    with pytest.raises(Unavailable, match=r"systemd: the scope a\.scope: failed: its job came to nothing"):
        systemd(Bus(well, "failed")).start_scope("a.scope", [1], [])


def test_a_unit_that_ended_badly_is_cleared_away_once() -> None:
    exists = [True]

    def play(member: str, body: tuple[Any, ...]) -> tuple[Any, ...] | Exception:
        if member == "StartTransientUnit" and exists[0]:
            return unit_error("UnitExists")
        exists[0] = exists[0] and member != "ResetFailedUnit"
        return well(member, body)

    bus = Bus(play)
    systemd(bus).start_scope("a.scope", [1], [])
    assert [member for member, _ in bus.calls] == ["StartTransientUnit", "ResetFailedUnit", "StartTransientUnit"]
    bus = Bus(lambda member, body: unit_error("UnitExists"))
    with pytest.raises(Unavailable, match="UnitExists: told so"):
        systemd(bus).start_scope("a.scope", [1], [])


def test_a_process_joins_a_scope_that_is_there_or_founds_it() -> None:
    bus = Bus(well)
    systemd(bus).join("m.scope", 5, [])
    assert bus.calls == [("AttachProcessesToUnit", ("m.scope", "", [5]))]
    bus = Bus(
        lambda member, body: unit_error("NoSuchUnit") if member == "AttachProcessesToUnit" else well(member, body)
    )
    systemd(bus).join("m.scope", 5, [])
    assert [member for member, _ in bus.calls] == ["AttachProcessesToUnit", "StartTransientUnit"]


def test_limits_last_until_the_machine_ends() -> None:
    bus = Bus(well)
    systemd(bus).set_properties("a.scope", [("TasksMax", ("t", 5))])
    assert bus.calls == [("SetUnitProperties", ("a.scope", True, [("TasksMax", ("t", 5))]))]


def test_what_is_gone_is_stopped_and_needs_no_limits() -> None:
    bus = Bus(lambda member, body: unit_error("NoSuchUnit"))
    systemd(bus).stop("a.scope")
    systemd(bus).set_properties("a.scope", [("TasksMax", ("t", 5))])
    systemd(bus).set_properties("a.scope", [])
    assert [member for member, _ in bus.calls] == ["StopUnit", "ResetFailedUnit", "SetUnitProperties"]


def test_a_unit_is_stopped_without_a_trace() -> None:
    bus = Bus(well)
    systemd(bus).stop("a.scope")
    assert bus.calls == [("StopUnit", ("a.scope", "replace")), ("ResetFailedUnit", ("a.scope",))]


@pytest.mark.parametrize(("text", "number"), [("252.39-1~deb12u2", 252), ("v257", 257), ("258~rc1", 258), ("x", 0)])
def test_the_version_is_asked_once(text: str, number: int) -> None:
    bus = Bus(lambda member, body: (("s", text),))
    manager = systemd(bus)
    assert manager.version() == manager.version() == number
    assert bus.connections == 1


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (FileNotFoundError(2, "No such file or directory"), "cannot be reached over D-Bus: no such file or directory"),
        (ConnectionResetError("the connection was reset"), "cannot be reached over D-Bus: the connection was reset"),
        (EOFError(), "cannot be reached over D-Bus: the connection was closed"),
        (TimeoutError(), "no answer within 3 s"),
        (Refused("org.freedesktop.DBus.Error.AccessDenied", "not for you"), "AccessDenied: not for you"),
    ],
)
def test_a_manager_that_is_away_is_named(error: Exception, sentence: str) -> None:
    with pytest.raises(Unavailable, match=sentence):
        systemd(Bus(lambda member, body: error)).stop("a.scope")


def test_a_job_that_never_ends_is_given_up() -> None:
    with pytest.raises(Unavailable, match="no answer within 3 s"):
        systemd(Bus(lambda member, body: ("/never/9",))).stop("a.scope")
