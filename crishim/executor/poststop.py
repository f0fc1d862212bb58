"""The hooks after a container's end: run by a child of its monitor, or by a role when the monitor died before.

They come after the exit record and after the cgroup is gone. A request to forget the container, or to end the monitor,
is answered when they have ended, so that nothing they look at is removed below them.
"""

from __future__ import annotations

import os
from _socket import socket

from crishim.cgroups.hierarchy import Hierarchy
from crishim.executor import wire
from crishim.executor.hooks import Hooks
from crishim.executor.prepare import StepFailed
from crishim.linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from crishim.executor.loop import Loop
    from crishim.executor.pod import Pod
    from crishim.executor.servers import Servers
    from crishim.executor.wire import Message

_STAGE = b"poststop"


class Poststops:
    """The children of one monitor that run such hooks, and the requests that wait for them."""

    __slots__ = ("_handle", "_loop", "_pod", "_servers", "_waiting", "running")

    def __init__(self, pod: Pod, loop: Loop, servers: Servers, handle: Callable[[socket, Message], None]) -> None:
        """handle: what becomes of a request that has waited."""
        self._pod = pod
        self._loop = loop
        self._servers = servers
        self._handle = handle
        #: pid by container id
        self.running: dict[bytes, int] = {}
        self._waiting: list[tuple[socket, Message]] = []

    def start(self, container_id: bytes, value: dict[str, object] | None) -> None:
        """Run the hooks of a container that ended, or whose start failed; None: it has none."""
        if value is None:
            return
        hooks = Hooks(value, self._pod.hierarchy, self._pod.seed.proc, self._pod.home)
        ours, theirs = wire.pair()
        pid, pidfd = process.clone3(0)
        if pid == 0:
            _run(hooks, theirs)
        theirs.close()
        self.running[container_id] = pid

        def ended() -> None:
            self._loop.forget(ours.fileno())
            message = wire.receive(ours)
            ours.close()
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            os.close(pidfd)
            del self.running[container_id]
            if message is None or message.kind == wire.ERROR:
                text = "it was killed" if message is None else message.body["message"]
                self._servers.note(f"container {container_id.decode('utf-8', 'replace')}: {text}")
            waiting, self._waiting = self._waiting, []
            for connection, request in waiting:
                self._handle(connection, request)

        self._loop.watch(ours.fileno(), ended)

    def must_wait(self, message: Message) -> bool:
        """Whether a request would take away what hooks under way look at."""
        if message.kind == wire.STOP:
            return bool(self.running)
        container_id = message.body.get("id")
        return message.kind == wire.FORGET and isinstance(container_id, bytes) and container_id in self.running

    def defer(self, connection: socket, message: Message) -> None:
        """Handle the request when the hooks have ended."""
        self._waiting.append((connection, message))


def _run(hooks: Hooks, answer: socket) -> None:
    """In a child of the monitor; never returns. Every hook runs, whatever becomes of those before it.

    Also without such hooks, to end what others have left running: that may take a while.
    """
    failed = []
    try:
        hooks.end()
        wanted = hooks.stages.get(_STAGE, [])
        for index in range(len(wanted)):
            hooks.stages[_STAGE] = wanted[index : index + 1]
            try:
                hooks.run(_STAGE)
            except StepFailed as error:
                failed.append(str(error))
        hooks.end()
        kind = wire.ERROR if failed else wire.OK
        wire.send(answer, kind, 0, b"", {"message": "; ".join(failed)})
    finally:
        os._exit(0)


def run_role(request: dict[str, object], fds: list[int]) -> dict[str, object]:
    """The same in a child of the zygote, which is in the host's namespaces: "hooks", "hierarchy". StepFailed tells."""
    hierarchy = Hierarchy.from_value(request["hierarchy"])  # type: ignore[arg-type]
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    hooks = Hooks(request["hooks"], hierarchy, proc, {})  # type: ignore[arg-type]
    hooks.end()
    hooks.run(_STAGE)
    hooks.end()
    return {}
