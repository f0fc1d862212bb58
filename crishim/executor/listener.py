"""Seccomp listeners: whoever answers the calls that a filter leaves to it gets the descriptor of the filter.

The kernel gives that descriptor to the process which loads the filter. The process says its number by a plain write
and stands still; it is fetched from there (pidfd_getfd(2)) and sent over the listener's socket, so that the filter may
have an opinion about connect and sendmsg. That is done by a process of its own, which ends then: neither monitor nor
zygote ever has the descriptor, since a listener that dies must be the last to have held it, or calls would wait for
ever. Sources: seccomp(2), OCI runtime spec ("The Container Process State").
"""

from __future__ import annotations

import array
import os
import struct
from _socket import AF_UNIX, SCM_RIGHTS, SO_SNDTIMEO, SOCK_CLOEXEC, SOCK_STREAM, SOL_SOCKET, socket

from crishim.executor.companion import Companion
from crishim.executor.prepare import StepFailed
from crishim.linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crishim.executor.wire import Message


def state(value: dict[str, object], status: bytes, init: int, pid: int) -> bytes:
    """The container process state as JSON. value: `listener_values.listener_value`; init, pid: as the host has them."""
    head = value["head"]
    assert isinstance(head, bytes)
    return head + b',"status":"%b","pid":%d},"pid":%d}' % (status, init, pid)


def hand_over(value: dict[str, object], text: bytes, pidfd: int, number: int) -> None:
    """Send the descriptor `number` of a process, with its state, to the listener; StepFailed says why not.

    value: "path", and "take_s", how long the listener may take to accept and to take the message.
    """
    path, take_s = value["path"], value["take_s"]
    assert isinstance(path, bytes) and isinstance(take_s, int)
    try:
        fd = process.pidfd_getfd(pidfd, number)
    except OSError as error:
        raise StepFailed(f"fetching the seccomp listener's descriptor: {_why(error)}") from None
    sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        # a blocking socket with a bound: to one that does not block a full queue is an error, and not something that
        # could be waited for
        sock.setsockopt(SOL_SOCKET, SO_SNDTIMEO, struct.pack("@ll", take_s, 0))
        sock.connect(b"\0" + path[1:] if path.startswith(b"@") else path)
        sent = sock.sendmsg([text], [(SOL_SOCKET, SCM_RIGHTS, array.array("i", [fd]))])
        while sent < len(text):
            sent += sock.send(text[sent:])
    except OSError as error:
        why = f"the listener did not take it within {take_s} s" if isinstance(error, BlockingIOError) else _why(error)
        raise StepFailed(f'seccomp listenerPath "{path.decode("utf-8", "replace")}": {why}') from None
    finally:
        sock.close()
        os.close(fd)


def unanswered(value: dict[str, object]) -> str:
    """What is said of a listener that lets the set-up of a process wait too long."""
    path = value["path"].decode("utf-8", "replace")  # type: ignore[attr-defined]
    waited = value["limit_s"]
    return f'seccomp listenerPath "{path}": the listener left a call of the set-up without answer for {waited} s'


def _why(error: OSError) -> str:
    return os.strerror(error.errno or 0).lower()


class Courier(Companion):
    """Hands over for a starter, which may fetch nothing any more when it is in the pod's user namespace.

    It is in the host's network namespace, in which abstract sockets are looked up: in the pod's a container could take
    the name.
    """

    __slots__ = ("_value",)

    def __init__(self, value: dict[str, object], home: dict[int, int]) -> None:
        """value: as for `state`; home: as for a companion."""

        def work(message: Message) -> None:
            hand_over(value, message.body["text"], message.fds[0], message.seq)  # type: ignore[arg-type]

        super().__init__(work, home)
        self._value = value

    def hand_over(self, status: bytes, init: int, pid: int, pidfd: int, number: int) -> None:
        """As `hand_over`, of the process of `pid` in the container of the init `init`."""
        self.ask(number, {"text": state(self._value, status, init, pid)}, [pidfd])

    @property
    def limit_s(self) -> int:
        """How long the calls up to execve(2) may wait for the listener's answers."""
        return self._value["limit_s"]  # type: ignore[return-value]

    def unanswered(self) -> str:
        """What is said when they waited longer."""
        return unanswered(self._value)


def run_role(request: dict[str, object], fds: list[int]) -> dict[str, object]:
    """`hand_over` in a child of the zygote, for an exec: request is the value, "text" and "number"; fds its pidfd."""
    hand_over(request, request["text"], fds[0], request["number"])  # type: ignore[arg-type]
    return {}
