"""One container of the library: started by its init process, paused, limited, watched, and gone after `destroy`."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal as signals
import tempfile
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from crishim.cgroups import effects, stats
from crishim.cgroups.plan import plan as cgroup_plan
from crishim.errors import InvalidSpec, NotFound, StartFailed, TimedOut, Unavailable, WrongState
from crishim.executor.client import ExecSpec, Monitor, PodSpec, StartedContainer, check_hooks
from crishim.model.exit import ExitRecord
from crishim.model.id_mapping import IdMapping
from crishim.model.process import ContainerSpec, Namespace, NamespaceKind, RootFs
from crishim.model.resources import Resources
from crishim.process.engine import cgroup_root, monitor_directories, running_engine
from crishim.process.events import ContainerEvent, EventKind, Events
from crishim.process.handle import ExitStatus, Process
from crishim.process.start import (
    check_exec,
    exec_status,
    given_stdio,
    log_failure,
    make_bundle,
    send_handles,
    with_defaults,
)
from crishim.process.state import ContainerStatus, State
from crishim.spec.isolated import isolated_container
from crishim.spec.resources import changed, merged

_POD_NAMESPACES = (NamespaceKind.NETWORK, NamespaceKind.IPC, NamespaceKind.UTS)


def isolated(
    root: str | os.PathLike[str] | RootFs,
    *,
    id: str,
    hostname: str | None = None,
    network: str = "none",
    ids: IdMapping | None = None,
) -> ContainerSpec:
    """A container as isolated as runc's default: every namespace its own, default mounts, masks and devices.

    root: a directory that becomes "/", or a `RootFs`; network: "none" (a loopback of its own) or "host"; ids: of the
    host for a user namespace of its own, as uids and gids, by which the owners in the root are shifted.
    The process comes with `Container.start`.
    """
    rootfs = root if isinstance(root, RootFs) else RootFs(path=os.path.realpath(root))
    return isolated_container(id, rootfs, f"{cgroup_root()}/{id}", hostname or id[:63], network, ids)


class Container:
    """One container: made by the start of its init process, gone after `destroy` (or the end of a `with`)."""

    def __init__(self, spec: ContainerSpec) -> None:
        self.spec = spec
        self._monitor: Monitor | None = None
        self._directory: Path | None = None
        self._init: Process | None = None
        self._bundle = spec.bundle
        self._paused = False
        self._watchers: list[Events] = []
        self._watchers_lock = threading.Lock()

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *exc: object) -> None:
        self.destroy()

    def start(self, process: Process) -> None:
        """Start `process`: the init process when its spec says so, an exec in the running container otherwise.

        StartFailed with a sentence leaves nothing; WrongState for a second init or an exec without one.
        """
        try:
            if process.spec.init:
                if self._init is not None:
                    raise WrongState(f"container {self.spec.id} already has an init process")
                running_engine().call(self._start_init(process))
            else:
                if self._init is None:
                    raise WrongState(f"container {self.spec.id} is not running")
                if self._paused:
                    raise WrongState(f"container {self.spec.id} is paused")
                running_engine().call(self._start_exec(process))
        except StartFailed as error:
            log_failure(process.spec, error)
            raise
        finally:
            process._release_io()

    async def _start_init(self, process: Process) -> None:
        if process.spec.sub_cgroup_paths:
            raise InvalidSpec("sub_cgroup_paths: an init process is in the container's cgroup")
        spec = replace(self.spec, process=with_defaults(process.spec))
        check_hooks(spec.hooks)
        _check_mappings(spec)
        if spec.net_devices and not any(ns.kind is NamespaceKind.NETWORK for ns in spec.namespaces):
            raise InvalidSpec("net_devices: the container has the host's network, where the devices are")
        own = {ns.kind for ns in spec.namespaces if ns.path is None}
        engine = running_engine()
        self._directory = Path(tempfile.mkdtemp(prefix=monitor_directories()))
        if spec.hooks and not spec.bundle:
            spec = replace(spec, bundle=make_bundle(self._directory, spec))
            self._bundle = spec.bundle
        pod = PodSpec(
            network=NamespaceKind.NETWORK in own,
            ipc=NamespaceKind.IPC in own,
            uts=NamespaceKind.UTS in own,
            hostname=spec.hostname,
            domainname=spec.domainname,
            uid_mappings=spec.uid_mappings,
            gid_mappings=spec.gid_mappings,
        )
        try:
            monitor = await engine.executor.start_monitor(spec.id, self._directory, pod)
        except BaseException:
            await self._end_monitor()
            raise
        self._monitor = monitor
        ended: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()

        def exited(record: ExitRecord) -> None:
            if not ended.done():
                status = ExitStatus(record.code, record.signal, record.oom_kills)
                ended.set_result(status)
                self._tell(_end_of(record.pid, ended))

        def lost() -> None:
            if not ended.done():
                ended.set_exception(Unavailable(f"the monitor of container {spec.id} died, and the container with it"))
                ended.exception()  # seen: nobody has to wait
                self._tell(_end_of(0, ended))

        monitor.on_exit = exited
        monitor.on_lost = lost
        # the monitor already lives in the pod's namespaces, so the child must not make a second set
        spec = replace(
            spec, namespaces=tuple(ns for ns in spec.namespaces if ns.path or ns.kind not in _POD_NAMESPACES)
        )
        try:
            process._started = await monitor.start_container(spec, stdio=given_stdio(process))
        except BaseException:
            await self._end_monitor()
            raise
        process._ended = ended
        self._init = process

    async def _start_exec(self, process: Process) -> None:
        init = self._init
        assert init is not None
        stdin, stdout, stderr = given_stdio(process)
        spec = ExecSpec(
            container_id=self.spec.id,
            init_pidfd=init.pidfd,
            process=with_defaults(process.spec),
            cgroup_path=self.spec.cgroup.path,
            namespaces=tuple(ns.kind for ns in self.spec.namespaces),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            bundle=self._bundle,
            annotations=self.spec.annotations,
            intel_rdt=self.spec.intel_rdt,
        )
        check_exec(process.spec)
        started = await running_engine().executor.exec(spec)
        try:
            await send_handles(process.spec, started)
        except BaseException:
            started.send_signal(signals.SIGKILL)
            started.close()
            raise
        process._started = started
        process._ended = asyncio.ensure_future(exec_status(process.spec, started))
        process._ended.add_done_callback(lambda ended: self._exec_ended(started.pid, ended))
        self._tell(ContainerEvent(EventKind.EXEC_STARTED, started.pid))

    def _exec_ended(self, pid: int, ended: asyncio.Future[ExitStatus]) -> None:
        status = None if ended.cancelled() or ended.exception() else ended.result()
        self._tell(ContainerEvent(EventKind.EXEC_EXITED, pid, status))

    def signal(self, number: int) -> None:
        """Signal the init process; SIGKILL ends every process of the container with it, also of a paused one."""
        self._running().signal(number)
        if number == signals.SIGKILL and self._paused:
            self._thaw()

    def pause(self) -> None:
        """Stop every process where it stands; returns when all do. WrongState unless it is running.

        TimedOut, and all run again, when one of them waits for a device and cannot be stopped.
        """
        if self.state().status is not ContainerStatus.RUNNING:
            raise WrongState(f"container {self.spec.id} is {self.state().status.value}, not running")
        try:
            effects.freeze(running_engine().executor.hierarchy, self.spec.cgroup.path)
        except TimeoutError as error:
            raise TimedOut(f"container {self.spec.id} cannot be paused: {error.strerror}") from None
        self._paused = True
        self._tell(ContainerEvent(EventKind.PAUSED))

    def resume(self) -> None:
        """Let a paused container run again; WrongState for another one."""
        if self.state().status is not ContainerStatus.PAUSED:
            raise WrongState(f"container {self.spec.id} is {self.state().status.value}, not paused")
        self._thaw()
        self._tell(ContainerEvent(EventKind.RESUMED))

    def _thaw(self) -> None:
        effects.thaw(running_engine().executor.hierarchy, self.spec.cgroup.path)
        self._paused = False

    def update(self, resources: Resources) -> None:
        """Change limits: what is None or empty stays as it is. All of it or, with WrongState, none.

        InvalidSpec for a value that this node cannot have; WrongState also for a memory limit below what is in use.
        """
        self._running()
        cgroup = self.spec.cgroup
        hierarchy = running_engine().executor.hierarchy
        limits = merged(cgroup.resources, resources)
        planned = cgroup_plan(cgroup.path, changed(limits, resources), None, hierarchy)
        limit, used = resources.memory_limit_bytes, stats.read(hierarchy, cgroup.path).usage_bytes
        if limit is not None and used is not None and 0 <= limit < used:
            raise WrongState(f"memory_limit_bytes: {limit} is less than the {used} bytes in use")
        try:
            effects.apply(hierarchy, planned)
        except OSError as error:
            raise WrongState(f"the limits of container {self.spec.id} cannot be changed: {error}") from None
        self.spec = replace(self.spec, cgroup=replace(cgroup, resources=limits))
        self._tell(ContainerEvent(EventKind.UPDATED))

    def state(self) -> State:
        """The container now; whether it is paused is asked of the kernel."""
        status, pid = ContainerStatus.CREATED, 0
        if self._init is not None:
            assert self._init._ended is not None
            status = ContainerStatus.STOPPED
            if not self._init._ended.done():
                frozen = effects.is_frozen(running_engine().executor.hierarchy, self.spec.cgroup.path)
                status, pid = ContainerStatus.PAUSED if frozen else ContainerStatus.RUNNING, self._init.pid
        return State(self.spec.id, status, pid, self._bundle, self.spec.annotations)

    def events(self, timeout_s: float | None = None) -> Events:
        """What happens from now on, one by one; ends after the end of the init process.

        timeout_s: how long to wait for each. WrongState unless an init process was started.
        """
        if self._init is None:
            raise WrongState(f"container {self.spec.id} is not running")
        events = Events(running_engine().executor.hierarchy, self.spec.cgroup.path, self._forget, timeout_s)
        with self._watchers_lock:
            self._watchers.append(events)
        ended = self._init._ended
        if ended is not None and ended.done():  # nobody will tell it any more
            events.publish(_end_of(self._init.pid, ended))
        return events

    def _forget(self, events: Events) -> None:
        with self._watchers_lock:
            self._watchers.remove(events)

    def _tell(self, event: ContainerEvent) -> None:
        with self._watchers_lock:
            for events in self._watchers:
                events.publish(event)

    def _running(self) -> Process:
        if self._init is None:
            raise WrongState(f"container {self.spec.id} is not running")
        return self._init

    def destroy(self) -> None:
        """Kill what runs, and remove what the container had. Safe to repeat."""
        if self._init is not None:
            with suppress(NotFound):
                self.signal(signals.SIGKILL)
            with suppress(Unavailable):  # its monitor is gone
                self._init.wait()
        if self._monitor is not None:
            running_engine().call(self._end_monitor())
        if self._init is not None and isinstance(self._init._started, StartedContainer):
            os.close(self._init.pidfd)
            self._init = None

    async def _end_monitor(self) -> None:
        if self._monitor is not None:
            await self._monitor.stop()
            self._monitor = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None


def _end_of(pid: int, ended: asyncio.Future[ExitStatus]) -> ContainerEvent:
    if ended.exception() is not None:
        return ContainerEvent(EventKind.LOST)
    status = ended.result()
    return ContainerEvent(EventKind.EXITED, pid, status, status.oom_kills)


def _check_mappings(spec: ContainerSpec) -> None:
    """A new user namespace and its mappings go together; InvalidSpec otherwise."""
    maps = spec.uid_mappings, spec.gid_mappings
    if Namespace(NamespaceKind.USER) in spec.namespaces:
        if not all(maps):
            raise InvalidSpec("uid_mappings: a new user namespace needs both uid_mappings and gid_mappings")
    elif any(maps):
        raise InvalidSpec("uid_mappings: they need a new user namespace")
