"""A child of a starter that stays where it was born, in the host's user namespace, and does there what it is asked for.

A starter moves: its children are born in the PID namespace of the container, and for one in a user namespace it gives
away its rights on the host.
"""

from __future__ import annotations

import os

from crishim.executor import wire
from crishim.executor.prepare import StepFailed
from crishim.linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable

    from crishim.executor.wire import Message


class Companion:
    """Owns a socket and the child until `end`; the child does not outlive us."""

    __slots__ = ("_pidfd", "_socket")

    def __init__(self, work: Callable[[Message], None], home: dict[int, int]) -> None:
        """work: what the child does with each request, StepFailed says why not.

        home: by clone flag, descriptors of the host's namespaces that we are not in; the child enters them.
        """
        self._socket, theirs = wire.pair()
        pid, self._pidfd = process.clone3(0)
        if pid == 0:
            self._socket.close()
            _serve(theirs, work, home)
        theirs.close()

    def ask(self, number: int, body: dict[str, object], fds: list[int]) -> None:
        """Have the work done; StepFailed when it was not."""
        wire.send(self._socket, wire.OK, number, b"", body, fds)
        message = wire.receive(self._socket)
        if message is None:
            raise StepFailed("who helps with the start was killed")
        if message.kind == wire.ERROR:
            raise StepFailed(str(message.body["message"]))

    def end(self) -> None:
        """Nothing more to do."""
        self._socket.close()
        os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        os.close(self._pidfd)


def _serve(starter: socket, work: Callable[[Message], None], home: dict[int, int]) -> None:
    """In the child; never returns."""
    try:
        process.prctl(process.PR_SET_PDEATHSIG, 9)
        for flag, fd in home.items():
            process.setns(fd, flag)
        while (message := wire.receive(starter)) is not None:
            failure = ""
            try:
                work(message)
            except StepFailed as error:
                failure = str(error)
            message.close()
            wire.send(starter, wire.ERROR if failure else wire.OK, 0, b"", {"message": failure})
    finally:
        os._exit(0)
