"""The pod's monitor: parent of its init processes. It starts, reaps, records exits and pumps logs, and nothing else.

Forked from the zygote, one per sandbox; it lives in the pod's network, IPC and UTS namespaces, so that a process of
the pod is born in them and a socket made here belongs to the pod. It outlives server and zygote: a new server finds it
by its socket. Kill, signal and exec do not pass through it.
"""

from __future__ import annotations

import gc
import os
import time
from _socket import AF_UNIX, SO_PEERCRED, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_SEQPACKET, SOL_SOCKET, SOMAXCONN, socket

import crishim
from crishim.cgroups import effects
from crishim.cgroups.hierarchy import Hierarchy
from crishim.executor import podinit, records, userns, wire
from crishim.executor.init import InitProcess
from crishim.executor.loop import Loop
from crishim.executor.lower import Privileges
from crishim.executor.oom import OomKills
from crishim.executor.poststop import Poststops
from crishim.executor.prepare import StepFailed
from crishim.executor.seed import Seed, make_pod_seed
from crishim.executor.starts import Starts
from crishim.linux import mount, net, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crishim.executor.wire import Message

#: at most this many server connections: the newest, and one that is about to be dropped
_MAX_CONNECTIONS = 4


class Monitor:
    """One pod. Descriptors it owns: the sandbox directory, its sockets, the seed, what its containers hold."""

    def __init__(
        self, sandbox_id: bytes, directory: int, hierarchy: Hierarchy, seed: Seed, privileges: Privileges
    ) -> None:
        self.sandbox_id = sandbox_id
        self.directory = directory
        self.hierarchy = hierarchy
        self.seed = seed
        self.privileges = privileges
        self.loop = Loop(self._rest, self._failed)
        #: by container id, running and exited, until the server forgets them
        self.containers: dict[bytes, InitProcess] = {}
        self.oom_kills = OomKills(hierarchy)
        self.starts = Starts(self)
        #: reaper of a shared PID namespace: (pid, pidfd), or None
        self.pod_init: tuple[int, int] | None = None
        self._pod_init_is_dead = False
        #: of the pod, None when it has the host's
        self.user: userns.UserNamespace | None = None
        self.netns_pin: bytes | None = None
        #: descriptors of the namespaces that we left, by clone flag: hooks run there
        self.home: dict[int, int] = {}
        self.poststops = Poststops(self)
        self._listener: socket | None = None
        self._connections: list[socket] = []
        #: the version that the server of a connection spoke last; it is answered in it
        self._versions: dict[socket, int] = {}
        self._began_at_ns = time.time_ns()

    # -- set-up --------------------------------------------------------------------------------------------------------

    def set_up(self, pod: dict[str, object]) -> None:
        """Enter new namespaces, pin the network's, and listen. OSError leaves nothing but what `tear_down` removes."""
        wanted = 0
        for key, flag, name in (
            ("network", process.CLONE_NEWNET, "net"),
            ("ipc", process.CLONE_NEWIPC, "ipc"),
            ("uts", process.CLONE_NEWUTS, "uts"),
        ):
            if pod[key]:
                wanted |= flag
                self.home[flag] = os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        if pod["uid_map"]:
            self.user = userns.make(pod["uid_map"], pod["gid_map"], wanted)  # type: ignore[arg-type]
        elif wanted:
            process.unshare(wanted)
        if wanted & process.CLONE_NEWNET:
            net.set_link_up(b"lo")
            self._pin_netns(pod["netns_path"])
        if wanted & process.CLONE_NEWUTS and pod["hostname"]:
            process.sethostname(pod["hostname"])  # type: ignore[arg-type]
        if wanted & process.CLONE_NEWUTS and pod["domainname"]:
            process.setdomainname(pod["domainname"])  # type: ignore[arg-type]
        sysctls = pod["sysctls"]
        assert isinstance(sysctls, dict)
        for key, value in sysctls.items():
            _write_sysctl(key, value)
        if wanted & process.CLONE_NEWIPC:
            root = (0, 0) if self.user is None else (self.user.host_uid(0), self.user.host_gid(0))
            self.seed = make_pod_seed(self.seed, pod["shm_bytes"], *root, pod.get("mount_label"))  # type: ignore[arg-type]
        if pod["shared_pid"]:
            self.pod_init = podinit.start(self.seed, self.user)
            self.loop.watch(self.pod_init[1], self._pod_init_died)
        self._listen()

    def _pin_netns(self, path: object) -> None:
        """A bind mount keeps the network namespace for CNI, and for its DEL when we are gone."""
        if not isinstance(path, bytes):
            return
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
        mount.mount(b"/proc/self/ns/net", path, None, mount.MS_BIND)
        self.netns_pin = path

    def _listen(self) -> None:
        self._listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK)
        # by the directory's descriptor: a socket's path may not be longer than 107 bytes
        self._listener.bind(b"/proc/self/fd/%d/%b" % (self.directory, wire.MONITOR_SOCKET))
        self._listener.listen(SOMAXCONN)
        self.loop.watch(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except OSError:  # the peer is gone already, or we are out of descriptors: the next one may have more luck
            return
        connection = socket(fileno=fd)
        uid = int.from_bytes(connection.getsockopt(SOL_SOCKET, SO_PEERCRED, 12)[4:8], "little")
        if uid != os.geteuid():
            connection.close()
            return
        self.serve(connection)

    def serve(self, connection: socket) -> None:
        """Answer requests of a connected server; the newest connection also gets the events."""
        self._connections.append(connection)
        self.loop.watch(connection.fileno(), lambda: self._receive(connection))
        if len(self._connections) > _MAX_CONNECTIONS:
            self._drop(self._connections[0])

    def _drop(self, connection: socket) -> None:
        self.loop.forget(connection.fileno())
        self._connections.remove(connection)
        self._versions.pop(connection, None)
        connection.close()

    # -- requests ------------------------------------------------------------------------------------------------------

    def _receive(self, connection: socket) -> None:
        try:
            message = wire.receive(connection)
        except wire.VersionError as error:  # our version is in the answer, so it tells a server what to do about us
            self.reply(connection, wire.ERROR, 0, {"message": str(error)})
            message = None
        except (OSError, wire.WireError):
            message = None
        if message is None:
            self._drop(connection)
            return
        self._versions[connection] = message.version
        if self.poststops.must_wait(message):
            self.poststops.defer(connection, message)
        else:
            self.handle(connection, message)

    def handle(self, connection: socket, message: Message) -> None:
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
            self.reply(connection, kind, message.seq, body, fds)
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
        container = self.containers.get(body["id"])  # type: ignore[call-overload]
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
            del self.containers[container.id]
            records.remove(self.directory, container.id)
        else:
            raise StepFailed(f"the monitor does not know request {kind}")
        return {}, []

    def is_connected(self, connection: socket) -> bool:
        """Whether a server is still there to be answered."""
        return connection in self._connections

    def reply(
        self, connection: socket, kind: int, seq: int, body: dict[str, object], fds: list[int] | None = None
    ) -> None:
        """Answer a request of a server; one that is gone is fine."""
        if connection not in self._connections:
            return
        try:
            self._send(connection, kind, seq, body, fds)
        except OSError:
            self._drop(connection)

    def _send(self, connection: socket, kind: int, seq: int, body: dict[str, object], fds: list[int] | None) -> None:
        version = self._versions.get(connection, wire.VERSION)
        wire.send(connection, kind, seq, self.sandbox_id, body, fds or [], version)

    def _state(self) -> tuple[dict[str, object], list[int]]:
        fds: list[int] = []
        entries: list[dict[str, object]] = []
        for init in self.containers.values():
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
        running = [init.id for init in self.containers.values() if init.exit is None]
        if running:
            raise StepFailed(f"{len(running)} containers still run, {_text(running[0])} among them")
        self.tear_down()
        self.loop.running = False

    def tear_down(self) -> None:
        """Remove what `set_up` made outside of this process; what is gone already is fine."""
        if self.pod_init is not None:
            self.loop.forget(self.pod_init[1])
            os.kill(self.pod_init[0], 9)
            os.waitid(os.P_PID, self.pod_init[0], os.WEXITED)
            os.close(self.pod_init[1])
            self.pod_init = None
        if self.netns_pin is not None:
            try:
                mount.umount2(self.netns_pin, mount.MNT_DETACH)
                os.unlink(self.netns_pin)
            except OSError:
                pass  # the server looks after pins that stay
            self.netns_pin = None
        try:
            os.unlink(wire.MONITOR_SOCKET, dir_fd=self.directory)
        except OSError:
            pass

    # -- what happens --------------------------------------------------------------------------------------------------

    def init_exited(self, init: InitProcess) -> None:
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
            self.kill(init)  # with its own namespace the kernel has done it
        oom_kills = self.oom_kills.of(init, self.running())  # before all that takes its time: systemd removes scopes
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
        self.remove(init)
        self.tell(wire.EVENT_CONTAINER_EXITED, init.exit)
        self.poststops.start(init.id, init.hooks)

    def kill(self, init: InitProcess) -> None:
        """Kill all that is in the cgroup of a container."""
        try:
            effects.kill(self.hierarchy, init.cgroup)
        except OSError:
            pass  # the server kills again when it removes the container

    def running(self) -> list[InitProcess]:
        """Containers with a live init."""
        return [init for init in self.containers.values() if init.pidfd >= 0]

    def remove(self, init: InitProcess) -> None:
        """Remove the cgroup of a container."""
        if init.cgroup.endswith(".scope"):
            return  # systemd's: it would not notice that the cgroup is gone, and keep the unit
        try:
            effects.remove(self.hierarchy, init.cgroup)
        except OSError:
            pass  # the server removes again when it removes the container

    def _pod_init_died(self) -> None:
        assert self.pod_init is not None
        self.loop.forget(self.pod_init[1])
        os.waitid(os.P_PIDFD, self.pod_init[1], os.WEXITED | os.WNOHANG)
        os.close(self.pod_init[1])
        self.pod_init = None
        self._pod_init_is_dead = True
        self.tell(wire.EVENT_POD_INIT_EXITED, {})

    def tell(self, kind: int, body: dict[str, object], fds: list[int] | None = None) -> None:
        """Tell the newest server of an event, if there is one."""
        if not self._connections:
            return
        try:
            self._send(self._connections[-1], kind, 0, body, fds)
        except OSError:  # the server is gone or does not read: it will find the record
            self._drop(self._connections[-1])

    def _failed(self, error: Exception) -> None:
        """A bug of ours must not take the pod down; the server logs it."""
        self.note(f"monitor: {error!r}")

    def note(self, text: str) -> None:
        """What the server shall log."""
        self.tell(wire.EVENT_NOTE, {"message": text})

    def _rest(self) -> None:
        gc.collect(0)


def _write_sysctl(key: bytes, value: bytes) -> None:
    fd = os.open(b"/proc/sys/" + key.replace(b".", b"/"), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value)
    finally:
        os.close(fd)


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
