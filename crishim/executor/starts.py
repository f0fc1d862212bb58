"""The starts under way in a monitor: each is a starter's work, and its answer comes through the loop."""

from __future__ import annotations

import os
import time
from _signal import pidfd_send_signal
from _socket import socket

from crishim.executor import net_devices, starter, wire
from crishim.executor.init import InitProcess
from crishim.executor.prepare import StepFailed
from crishim.linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from crishim.executor.loop import Loop
    from crishim.executor.oom import OomKills
    from crishim.executor.pod import Pod
    from crishim.executor.poststop import Poststops
    from crishim.executor.servers import Servers
    from crishim.executor.wire import Message


class Starts:
    """The starters of one monitor, and who waits for them."""

    __slots__ = ("_exited", "_loop", "_oom_kills", "_pod", "_poststops", "_servers", "_starters")

    def __init__(
        self,
        pod: Pod,
        loop: Loop,
        servers: Servers,
        oom_kills: OomKills,
        poststops: Poststops,
        exited: Callable[[InitProcess], None],
    ) -> None:
        """exited: what the loop calls when an init that was started here may have ended."""
        self._pod = pod
        self._loop = loop
        self._servers = servers
        self._oom_kills = oom_kills
        self._poststops = poststops
        self._exited = exited
        #: pids
        self._starters: set[int] = set()

    def begin(self, connection: socket, message: Message) -> None:
        """Clone a starter; its answer comes through the loop, so that nothing here waits for a host path.

        StepFailed for a container that is started already or whose log cannot be opened, OSError when nothing can be
        cloned; either leaves nothing.
        """
        body = message.body
        container_id, spec = body["id"], body["spec"]
        assert isinstance(container_id, bytes) and isinstance(spec, bytes)
        known = self._pod.containers.get(container_id)
        if known is not None and known.exit is None:
            if known.starter is connection:
                raise StepFailed(f"container {container_id.decode('utf-8', 'replace')} is already started")
            # the server that asked first died before the answer: this one asks again, and gets it
            known.asking = (connection, message.seq)
            if known.pidfd >= 0:
                self._answer_start(known)
            message.close()
            return
        init = InitProcess(body)
        self._oom_kills.starting(init.cgroup, self._pod.running())
        init.starter, init.asking = connection, (connection, message.seq)
        try:
            init.open_log()
            ours, theirs = wire.pair()
            pid, pidfd = process.clone3(0)
            if pid == 0:
                starter.run(self._pod, spec, message.fds, theirs)
        except BaseException:
            init.close(self._loop)
            raise
        theirs.close()
        self._starters.add(pid)
        init.starter_pidfd = pidfd
        self._pod.containers[container_id] = init

        def answered() -> None:
            answer = _received(ours)
            if answer is not None and answer.kind == net_devices.MOVED:
                init.net_devices = net_devices.NetDevices.from_value(answer.body, answer.fds)
                return
            self._loop.forget(ours.fileno())
            self._started(init, answer)
            ours.close()
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            os.close(pidfd)
            init.starter_pidfd = -1
            self._starters.remove(pid)
            for asking, seq in init.cancelling:
                self._servers.reply(asking, wire.OK, seq, {})

        self._loop.watch(ours.fileno(), answered)

    def cancel(self, connection: socket, message: Message) -> bool:
        """Kill the starter; the answer comes when it is gone, which a dead device may prevent. False: there is none."""
        init = self._pod.containers.get(message.body["id"])  # type: ignore[call-overload]
        if init is None or init.starter_pidfd < 0:
            return False
        init.cancelling.append((connection, message.seq))
        pidfd_send_signal(init.starter_pidfd, 9)
        return True

    def _started(self, init: InitProcess, message: Message | None) -> None:
        if message is None or message.kind == wire.ERROR:
            self._undo_start(init, message)
            text = _killed(init) if message is None else message.body["message"]
            if init.asking is not None:
                self._servers.reply(init.asking[0], wire.ERROR, init.asking[1], {"message": text})
            return
        init.take(message.body, message.fds)
        self._loop.watch(init.pidfd, lambda: self._exited(init))
        init.watch_output(self._loop)
        init.phases_ns = message.body["phases_ns"]  # type: ignore[assignment]
        self._answer_start(init)

    def _answer_start(self, init: InitProcess) -> None:
        """To whom asked last; to the newest server as an event when that one is gone."""
        body: dict[str, object] = {
            "id": init.id,
            "pid": init.pid,
            "started_at_ns": init.started_at_ns,
            "phases_ns": init.phases_ns,
        }
        asking, init.asking = init.asking, None
        if asking is not None and self._servers.is_connected(asking[0]):
            self._servers.reply(asking[0], wire.OK, asking[1], body, [init.pidfd])
        else:
            self._servers.tell(wire.EVENT_CONTAINER_STARTED, body, [init.pidfd])

    def _undo_start(self, init: InitProcess, message: Message | None) -> None:
        """Nothing of a failed start stays: neither the process nor descriptors nor the cgroup."""
        self._pod.kill(init)
        if message is not None and message.fds:
            os.waitid(os.P_PIDFD, message.fds[0], os.WEXITED)
            message.close()
        elif message is None:
            self._reap_strays()
        del self._pod.containers[init.id]
        for problem in self._pod.give_net_devices_back(init):
            self._servers.note(problem)
        init.close(self._loop)
        self._pod.remove_cgroup(init)
        self._poststops.start(init.id, init.hooks)

    def _reap_strays(self) -> None:
        """Reap an init whose starter was killed before it could tell us of it, when the kill of its cgroup arrives."""
        known = (
            {init.pid for init in self._pod.containers.values()} | self._starters | {*self._poststops.running.values()}
        )
        if self._pod.init is not None:
            known.add(self._pod.init[0])
        for _ in range(100):
            with open(f"/proc/self/task/{os.getpid()}/children", "rb") as file:
                strays = {int(pid) for pid in file.read().split()} - known
            if all(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None for pid in strays):
                return
            time.sleep(0.01)


def _received(answer: socket) -> Message | None:
    try:
        return wire.receive(answer)
    except (OSError, wire.WireError):  # we had no descriptors left to receive
        return None


def _killed(init: InitProcess) -> str:
    if init.cancelling:
        return "the start hung, and a stop ended it; a file system of a mount, or a device, may not answer"
    return "the start was killed"
