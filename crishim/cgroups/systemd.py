"""Units of the system's manager over D-Bus: start a scope, change and stop units. Blocking, from any thread.

A connection lives for one call and its job: an idle one would collect the signals of every job of the node. Source:
org.freedesktop.systemd1(5), "The Manager Object".
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from jeepney import DBusAddress, HeaderFields, MatchRule, Message, MessageType, message_bus, new_method_call
from jeepney.io.blocking import DBusConnection, open_dbus_connection

from crishim.cgroups.units import Property
from crishim.errors import Unavailable

_MANAGER = DBusAddress(
    "/org/freedesktop/systemd1", bus_name="org.freedesktop.systemd1", interface="org.freedesktop.systemd1.Manager"
)
_ERROR = "org.freedesktop.systemd1."
_BOOTED = "/run/systemd/system"
_BUS = "/run/dbus/system_bus_socket"
_DEADLINE_S = 30.0
#: arguments of StartTransientUnit: name, mode, properties, auxiliary units
_START = "ssa(sv)a(sa(sv))"

Connect = Callable[[], DBusConnection]


class UnitError(Exception):
    """systemd refused; `name` is the D-Bus error without systemd's prefix ("UnitExists")."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}" if text else name)
        self.name = name


def is_booted() -> bool:
    """Whether systemd is this machine's init. Source: sd_booted(3)."""
    return os.path.isdir(_BOOTED)


def has_bus() -> bool:
    """Whether the system bus listens where it always does; a node may have systemd without it."""
    return os.path.exists(_BUS)


def _connect() -> DBusConnection:
    return open_dbus_connection(bus="SYSTEM")


class Systemd:
    """The manager. Every call raises Unavailable, with a sentence, when it cannot be reached or refuses."""

    def __init__(self, connect: Connect = _connect, *, deadline_s: float = _DEADLINE_S) -> None:
        """connect: a new connection to the bus where the manager is; deadline_s: of a call with its job."""
        self._connect = connect
        self._deadline_s = deadline_s
        self._version: int | None = None

    def version(self) -> int:
        """252 of "252.39-1~deb12u2"; 0 of a version that does not begin with a number. Asked once."""
        if self._version is None:
            with self._asking("its version") as call:
                body = (_MANAGER.interface, "Version")
                properties = _MANAGER.with_interface("org.freedesktop.DBus.Properties")
                ((_, text),) = call.reply(new_method_call(properties, "Get", "ss", body))
            digits = text.removeprefix("v").partition(".")[0].partition("~")[0].partition("-")[0]
            self._version = int(digits) if digits.isdigit() else 0
        return self._version

    def start_scope(self, name: str, pids: Sequence[int], properties: Sequence[Property]) -> None:
        """Make a scope and move the processes into it; returns when its cgroup is there. Its slice is made with it.

        A unit of this name that has ended badly is cleared away.
        """
        body: tuple[Any, ...] = (name, "fail", [*properties, ("PIDs", ("au", list(pids)))], [])
        with self._asking(f"the scope {name}") as call:
            try:
                call.job("StartTransientUnit", _START, body)
            except UnitError as error:
                if error.name != "UnitExists":
                    raise
                with suppress(UnitError):
                    call.reply(new_method_call(_MANAGER, "ResetFailedUnit", "s", (name,)))
                call.job("StartTransientUnit", _START, body)

    def join(self, name: str, pid: int, properties: Sequence[Property]) -> None:
        """Move a process into a scope that exists, or make it with the process in it."""
        with self._asking(f"the scope {name}") as call:
            try:
                call.reply(new_method_call(_MANAGER, "AttachProcessesToUnit", "ssau", (name, "", [pid])))
                return
            except UnitError:
                pass  # it is not there, or about to end
        self.start_scope(name, [pid], properties)

    def set_properties(self, name: str, properties: Sequence[Property]) -> None:
        """Change limits of a unit until the machine's end; nothing to do without any, or for a unit that is gone."""
        if not properties:
            return
        with self._asking(f"the limits of {name}") as call:
            try:
                body = (name, True, list(properties))
                call.reply(new_method_call(_MANAGER, "SetUnitProperties", "sba(sv)", body))
            except UnitError as error:
                if error.name != "NoSuchUnit":
                    raise

    def stop(self, name: str) -> None:
        """End a unit and what is in it; nothing to do for one that is not there. No trace of it is left."""
        with self._asking(f"the end of {name}") as call:
            try:
                call.job("StopUnit", "ss", (name, "replace"))
            except UnitError as error:
                if error.name != "NoSuchUnit":
                    raise
            with suppress(UnitError):
                call.reply(new_method_call(_MANAGER, "ResetFailedUnit", "s", (name,)))

    @contextmanager
    def _asking(self, what: str) -> Iterator[_Call]:
        """A connection for one question, whose errors say what was wanted."""
        try:
            with self._connect() as connection:
                yield _Call(connection, self._deadline_s)
        except TimeoutError:
            raise Unavailable(f"systemd: {what}: no answer within {self._deadline_s:g} s") from None
        except UnitError as error:
            raise Unavailable(f"systemd: {what}: {error}") from None
        except (OSError, EOFError) as error:
            reason = (getattr(error, "strerror", None) or str(error) or "the connection was closed").lower()
            raise Unavailable(f"systemd: {what}: it cannot be reached over D-Bus: {reason}") from None


class _Call:
    """A connection while one thing is asked of the manager."""

    def __init__(self, connection: DBusConnection, deadline_s: float) -> None:
        self._connection = connection
        self._deadline = time.monotonic() + deadline_s

    def _left_s(self) -> float:
        return max(self._deadline - time.monotonic(), 0.0)

    def reply(self, message: Message) -> tuple[Any, ...]:
        """The body of the answer; UnitError when it is an error."""
        answer = self._connection.send_and_get_reply(message, timeout=self._left_s())
        if answer.header.message_type is MessageType.error:
            name = str(answer.header.fields[HeaderFields.error_name])
            text = str(answer.body[0]) if answer.body else ""
            raise UnitError(name.removeprefix(_ERROR), text)
        return tuple(answer.body)

    def job(self, member: str, signature: str, body: tuple[Any, ...]) -> None:
        """Call what starts a job and wait for its end; UnitError when it did not end well."""
        rule = MatchRule(type="signal", sender=_MANAGER.bus_name, interface=_MANAGER.interface, member="JobRemoved")
        ended: deque[Message] = deque()
        # before the job: it may end before its number is told
        self.reply(message_bus.AddMatch(rule))
        with self._connection.filter(MatchRule(type="signal", member="JobRemoved"), queue=ended):
            (path,) = self.reply(new_method_call(_MANAGER, member, signature, body))
            while True:
                _, job, _, result = self._connection.recv_until_filtered(ended, timeout=self._left_s()).body
                if job == path:
                    break
        if result not in ("done", "skipped"):
            raise UnitError(result, "its job came to nothing")
