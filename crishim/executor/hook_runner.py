"""Runs the hooks of a start: a child of the starter that stays where that was born.

A starter moves: its children are born in the PID namespace of the container, and for one in a user namespace it gives
away its rights on the host. Hooks want the host, so they are run by a process that was forked before.
"""

from __future__ import annotations

import os
from _socket import socket

from crishim.executor import prepare, wire
from crishim.executor.hooks import Hooks
from crishim.executor.prepare import StepFailed
from crishim.linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crishim.executor.lower import Privileges

#: when hooks are due: the first two are the places of `child.await_hooks`
BEFORE_ROOT, BEFORE_EXECUTE, AFTER_EXECUTE = 0, 1, 2


class HookRunner:
    """The starter's side. Owns a socket and a child until `end`; the child does not outlive the starter."""

    __slots__ = ("_pidfd", "_socket")

    def __init__(self, container: dict[str, object], hooks: Hooks, privileges: Privileges) -> None:
        """privileges: those of the starter, which the child keeps."""
        self._socket, theirs = wire.pair()
        pid, self._pidfd = process.clone3(0)
        if pid == 0:
            self._socket.close()
            _serve(theirs, container, hooks, privileges)
        theirs.close()

    def run(self, place: int, pid: int, pidfd: int) -> None:
        """Run the hooks that are due for the init of a pid and pidfd; StepFailed tells the first that fails."""
        wire.send(self._socket, wire.OK, place, b"", {"pid": pid}, [pidfd])
        message = wire.receive(self._socket)
        if message is None:
            raise StepFailed("who runs the hooks was killed")
        if message.kind == wire.ERROR:
            raise StepFailed(str(message.body["message"]))

    def end(self) -> None:
        """No more hooks."""
        self._socket.close()
        os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        os.close(self._pidfd)


def _serve(starter: socket, container: dict[str, object], hooks: Hooks, privileges: Privileges) -> None:
    """In the child; never returns."""
    try:
        process.prctl(process.PR_SET_PDEATHSIG, 9)
        while (message := wire.receive(starter)) is not None:
            text = ""
            try:
                pid: int = message.body["pid"]  # type: ignore[assignment]
                _run(message.seq, container, hooks, privileges, pid, message.fds[0])
            except StepFailed as error:
                text = str(error)
            message.close()
            wire.send(starter, wire.ERROR if text else wire.OK, 0, b"", {"message": text})
    finally:
        os._exit(0)


def _run(place: int, container: dict[str, object], hooks: Hooks, privileges: Privileges, pid: int, pidfd: int) -> None:
    namespaces = prepare.namespaces_of(container)
    if place == AFTER_EXECUTE:
        hooks.run(b"poststart", pid)
        hooks.tidy()
    elif place == BEFORE_EXECUTE:
        if namespaces & process.CLONE_NEWUSER:
            privileges = privileges.in_user_namespace()
        hooks.run_inside(container, pid, pidfd, namespaces, privileges)
    else:
        hooks.run(b"prestart", pid)
        hooks.run(b"createRuntime", pid)
        if container["pid_namespace"] is not None:
            # others are in there: nobody may find a process that has the host's tree
            namespaces &= ~process.CLONE_NEWPID
        hooks.run(b"createContainer", pid, pidfd, namespaces)
