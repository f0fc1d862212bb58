"""The pod's monitor: parent of its init processes. It starts, reaps, records exits and pumps logs, and nothing else.

Forked from the zygote, one per sandbox; it lives in the pod's network, IPC and UTS namespaces, so that a process of
the pod is born in them and a socket made here belongs to the pod. It outlives server and zygote: a new server finds it
by its socket. Kill, signal and exec do not pass through it.
"""

from __future__ import annotations

import gc
import os
import time
from _socket import SOCK_CLOEXEC, socket

import crishim
from crishim.cgroups.hierarchy import Hierarchy
from crishim.executor import records, wire
from crishim.executor.init import InitProcess
from crishim.executor.loop import Loop
from crishim.executor.lower import Privileges
from crishim.executor.oom import OomKills
from crishim.executor.pod import Pod
from crishim.executor.poststop import Poststops
from crishim.executor.prepare import StepFailed
from crishim.executor.seed import Seed
from crishim.executor.servers import Servers
from crishim.executor.starts import Starts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crishim.executor.wire import Message


class Monitor:
    """One pod, its servers, and what is under way. Owns the descriptor of the sandbox directory."""

    def __init__(
        self, sandbox_id: bytes, directory: int, hierarchy: Hierarchy, seed: Seed, privileges: Privileges
    ) -> None:
        self.directory = directory
        self.loop = Loop(self._rest, self._failed)
        self.pod = Pod(hierarchy, seed, privileges)
        self.servers = Servers(sandbox_id, directory, self.loop, self._take)
        self.oom_kills = OomKills(hierarchy)
        self.poststops = Poststops(self.pod, self.loop, self.servers, self._handle)
        self.starts = Starts(self.pod, self.loop, self.servers, self.oom_kills, self.poststops, self._init_exited)
        self._pod_init_is_dead = False
        self._began_at_ns = time.time_ns()

    def set_up(self, pod: dict[str, object]) -> None:
        """Enter the pod's namespaces and listen. OSError leaves nothing but what `tear_down` removes."""
        self.pod.enter(pod)
        if self.pod.init is not None:
            self.loop.watch(self.pod.init[1], self._pod_init_died)
        self.servers.listen()

    def tear_down(self) -> None:
        """Remove what `set_up` made outside of this process; what is gone already is fine."""
        if self.pod.init is not None:
            self.loop.forget(self.pod.init[1])
        self.pod.tear_down()
        self.servers.unlink()

    # -- requests ------------------------------------------------------------------------------------------------------

    def _take(self, connection: socket, message: Message) -> None:
        if self.poststops.must_wait(message):
            self.poststops.defer(connection, message)
        else:
            self._handle(connection, message)

    def _handle(self, connection: socket, message: Message) -> None:
        """Do what a message asks for and answer it."""
        try:
            if message.kind == wire.START_CONTAINER:
                self.starts.begin(connection, message)
                return
            if message.kind == wire.CANCEL_START and self.starts.cancel(connection, message):
                return
            body, fds = self._answer(message)
            kind = wire.OK
        except StepFailed as error:
            kind, body, fds = wire.ERROR, {"message": str(error)}, []
        except OSError as error:
            text = f"{os.strerror(error.errno or 0).lower()}"
            kind, body, fds = wire.ERROR, {"message": text, "errno": error.errno or 0}, []
        except Exception as error:  # a bug of ours must not take the pod down
            kind, body, fds = wire.ERROR, {"message": f"monitor: {error!r}"}, []
        finally:
            message.close()
        try:
            self.servers.reply(connection, kind, message.seq, body, fds)
        finally:
            if message.kind in (wire.OPEN_SOCKET, wire.OPEN_NETNS, wire.ATTACH):
                for fd in fds:
                    os.close(fd)

    def _answer(self, message: Message) -> tuple[dict[str, object], list[int]]:
        kind = message.kind
        body = message.body
        if kind == wire.STATE:
            return self._state()
        if kind == wire.OPEN_SOCKET:
            made = socket(body["family"], body["kind"] | SOCK_CLOEXEC, body["protocol"])  # type: ignore[arg-type, operator]
            return {}, [made.detach()]
        if kind == wire.OPEN_NETNS:
            return {}, [os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)]
        if kind == wire.STOP:
            self._stop()
            return {}, []
        if kind == wire.CANCEL_START:
            return {}, []  # there is no start
        container = self.pod.containers.get(body["id"])  # type: ignore[call-overload]
        if container is None:
            raise StepFailed(f"the monitor has no container {_text(body['id'])}")
        if kind == wire.ATTACH:
            return {}, [container.attach(self.loop)]
        if kind == wire.REOPEN_LOG:
            container.reopen_log()
        elif kind == wire.FORGET:
            if container.exit is None:
                raise StepFailed(f"container {_text(body['id'])} is running")
            container.close(self.loop)
            del self.pod.containers[container.id]
            records.remove(self.directory, container.id)
        else:
            raise StepFailed(f"the monitor does not know request {kind}")
        return {}, []

    def _state(self) -> tuple[dict[str, object], list[int]]:
        fds: list[int] = []
        entries: list[dict[str, object]] = []
        for init in self.pod.containers.values():
            entry: dict[str, object] = {"id": init.id, "pid": init.pid, "started_at_ns": init.started_at_ns}
            entry["exit"] = init.exit
            if init.pidfd < 0 and init.exit is None:
                continue  # its starter is at work, and the answer will tell
            if init.exit is None:
                entry["pidfd"] = len(fds)
                fds.append(init.pidfd)
            entries.append(entry)
        return {**self.about(), "containers": entries, "pod_init_died": self._pod_init_is_dead}, fds

    def about(self) -> dict[str, object]:
        """What a server is told of us first."""
        return {
            "pid": os.getpid(),
            "version": crishim.__version__,
            "wire_version": wire.VERSION,
            "began_at_ns": self._began_at_ns,
        }

    def _stop(self) -> None:
        """End, when no container runs: the server stops them first."""
        running = [init.id for init in self.pod.containers.values() if init.exit is None]
        if running:
            raise StepFailed(f"{len(running)} containers still run, {_text(running[0])} among them")
        self.tear_down()
        self.loop.running = False

    # -- what happens --------------------------------------------------------------------------------------------------

    def _init_exited(self, init: InitProcess) -> None:
        """Reap, read what the cgroup knows, write the record, and only then tell.

        A disk that takes no record, or a cgroup that somebody removed, must not end the pod: what is known is told.
        """
        ended_at_ns = time.time_ns()
        info = os.waitid(os.P_PIDFD, init.pidfd, os.WEXITED | os.WNOHANG)
        if info is None:
            return
        self.loop.forget(init.pidfd)
        init.close_pidfd()
        if not init.own_pid_namespace:
            self.pod.kill(init)  # with its own namespace the kernel has done it
        oom_kills = self.oom_kills.of(init, self.pod.running())  # at once: systemd removes scopes
        init.drain(self.loop)
        killed_by = info.si_status if info.si_code != os.CLD_EXITED else None
        init.exit = {
            "id": init.id,
            "pid": init.pid,
            "started_at_ns": init.started_at_ns,
            "ended_at_ns": ended_at_ns,
            "code": info.si_status if killed_by is None else 128 + killed_by,
            "signal": killed_by,
            "oom_kills": oom_kills,
            "log_bytes_lost": init.log_bytes_lost(),
        }
        try:
            records.write(self.directory, init.id, init.exit)
        except OSError:
            pass  # STATE still has it as long as we live
        self.pod.remove_cgroup(init)
        self.servers.tell(wire.EVENT_CONTAINER_EXITED, init.exit)
        for problem in self.pod.give_net_devices_back(init):
            self.servers.note(problem)
        self.poststops.start(init.id, init.hooks)

    def _pod_init_died(self) -> None:
        assert self.pod.init is not None
        self.loop.forget(self.pod.init[1])
        self.pod.reap_init()
        self._pod_init_is_dead = True
        self.servers.tell(wire.EVENT_POD_INIT_EXITED, {})

    def _failed(self, error: Exception) -> None:
        """A bug of ours must not take the pod down; the server logs it."""
        self.servers.note(f"monitor: {error!r}")

    def _rest(self) -> None:
        gc.collect(0)


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
