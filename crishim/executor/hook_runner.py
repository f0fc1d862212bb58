"""Runs the hooks of a start: a child of the starter that stays where that was born.

A starter moves: its children are born in the PID namespace of the container, and for one in a user namespace it gives
away its rights on the host. Hooks want the host, so they are run by a process that was forked before.
"""

from __future__ import annotations

from crishim.executor import prepare
from crishim.executor.companion import Companion
from crishim.executor.hooks import Hooks
from crishim.linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crishim.executor.lower import Privileges
    from crishim.executor.wire import Message

#: when hooks are due: the first two are the places of `child.await_hooks`
BEFORE_ROOT, BEFORE_EXECUTE, AFTER_EXECUTE = 0, 1, 2


class HookRunner(Companion):
    """The starter's side."""

    __slots__ = ()

    def __init__(self, container: dict[str, object], hooks: Hooks, privileges: Privileges) -> None:
        """privileges: those of the starter, which the child keeps."""

        def work(message: Message) -> None:
            _run(message.seq, container, hooks, privileges, message.body["pid"], message.fds[0])  # type: ignore[arg-type]

        super().__init__(work, {})

    def run(self, place: int, pid: int, pidfd: int) -> None:
        """Run the hooks that are due for the init of a pid and pidfd; StepFailed tells the first that fails."""
        self.ask(place, {"pid": pid}, [pidfd])


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
