"""Pods and containers for tests, over the executor's own client: one call starts a process and gives what it wrote.

`Node` is an executor on an event loop in a thread of its own, so that tests stay plain functions. Every descriptor that
a `Container` or an `Exec` holds is closed by `Pod.stop`, which also ends what still runs.
"""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from crishim.cgroups import effects
from crishim.executor.client import ExecExit, ExecProcess, ExecSpec, Executor, Monitor, PodSpec, StartedContainer
from crishim.model.exit import ExitRecord
from crishim.model.process import (
    Capabilities,
    CgroupSpec,
    ContainerSpec,
    DeviceNode,
    MountSpec,
    Namespace,
    NamespaceKind,
    ProcessSpec,
    RootFs,
)
from crishim.model.resources import Resources

T = TypeVar("T")

DEADLINE_S = 20.0

MOUNTS = (
    MountSpec("/proc", "proc", flags=("nosuid", "noexec", "nodev")),
    MountSpec("/dev", "tmpfs", flags=("nosuid", "strictatime"), options=("mode=755", "size=65536k")),
    MountSpec(
        "/dev/pts",
        "devpts",
        flags=("nosuid", "noexec"),
        options=("newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
    ),
    MountSpec("/dev/shm", "shm", flags=("nosuid", "nodev", "noexec")),
    MountSpec("/dev/mqueue", "mqueue", flags=("nosuid", "noexec", "nodev")),
    MountSpec("/sys", "sysfs", flags=("nosuid", "noexec", "nodev", "ro")),
    MountSpec("/sys/fs/cgroup", "cgroup", flags=("nosuid", "noexec", "nodev", "relatime", "ro")),
)
DEVICES = tuple(
    DeviceNode("/dev/" + name, "c", major, minor)
    for name, major, minor in (
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    )
)
NAMESPACES = (Namespace(NamespaceKind.PID), Namespace(NamespaceKind.MOUNT), Namespace(NamespaceKind.CGROUP))
NO_CAPABILITIES = Capabilities()
PLAIN = ProcessSpec(
    args=("/bin/true",),
    env=("PATH=/bin", "HOME=/root"),
    cwd="/",
    capabilities=NO_CAPABILITIES,
    no_new_privileges=True,
)
IDLE = ("/bin/sleep", "600")


def program(*args: str, **changes: Any) -> ProcessSpec:
    """A plain process with these arguments: uid 0 without capabilities; `changes` are fields of ProcessSpec."""
    return replace(PLAIN, args=args, **changes)


def script(text: str, **changes: Any) -> ProcessSpec:
    """A plain process that is a shell with a script."""
    return program("/bin/sh", "-c", text, **changes)


def all_capabilities(node: Node) -> Capabilities:
    """Everything that this node can give."""
    names = frozenset(node.executor.node.capabilities)
    return Capabilities(bounding=names, effective=names, permitted=names)


def wait_until(condition: Callable[[], T], what: str = "the condition", timeout_s: float = DEADLINE_S) -> T:
    """The first true value of `condition`, asked again and again; AssertionError at the deadline."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s:g} s"
        time.sleep(0.002)
    return value


def read_all(fd: int, timeout_s: float = DEADLINE_S) -> bytes:
    """What comes until the end of file; closes the descriptor."""
    parts: list[bytes] = []
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + timeout_s
    try:
        while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            data = os.read(fd, 1 << 16)
            if not data:
                return b"".join(parts)
            parts.append(data)
    finally:
        os.close(fd)
    raise AssertionError(f"no end of file within {timeout_s:g} s after {b''.join(parts)!r}")


def read_line(fd: int, timeout_s: float = DEADLINE_S) -> str:
    """The next line of a pipe, byte by byte, so that the rest stays in it."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    line = b""
    while not line.endswith(b"\n"):
        assert poll.poll(timeout_s * 1000), f"no line within {timeout_s:g} s after {line!r}"
        data = os.read(fd, 1)
        assert data, f"end of file after {line!r}"
        line += data
    return line.decode().rstrip("\n")


def make_busybox_root(root: Path) -> None:
    """A root directory with the machine's static busybox under the names of its applets."""
    busybox = shutil.which("busybox")
    assert busybox, "these tests need busybox-static"
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp", "root"):
        (root / name).mkdir()
    (root / "tmp").chmod(0o1777)
    (root / "root").chmod(0o700)
    shutil.copy2(busybox, root / "bin/busybox")
    names = subprocess.run([busybox, "--list"], capture_output=True, check=True, text=True).stdout.split()
    for name in {*names} - {"busybox"}:
        (root / "bin" / name).hardlink_to(root / "bin/busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")


class Node:
    """An executor on a loop of its own; its cgroups are below `cgroup`."""

    def __init__(self, cgroup: str, roles: dict[str, str] | None = None) -> None:
        self.cgroup = cgroup
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.executor = Executor.launch(cgroup=cgroup + "/monitors", roles=roles or {})
        self.run(self.executor.open())
        self.hierarchy = self.executor.hierarchy

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = DEADLINE_S) -> T:
        """The result of a coroutine on the loop."""
        return self.submit(asyncio.wait_for(work, timeout_s)).result(timeout_s + 5)

    def call(self, function: Callable[[], T]) -> T:
        """The result of a function on the loop's thread."""

        async def body() -> T:
            return function()

        return self.run(body())

    def adopt(self, sandbox_id: str, directory: Path) -> Monitor:
        """Connect to the monitor of a sandbox."""
        return self.run(self.executor.adopt_monitor(sandbox_id, directory))

    def close(self) -> None:
        """End the executor and the loop, and remove the cgroups."""
        self.run(self.executor.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        effects.kill(self.hierarchy, self.cgroup)
        wait_until(lambda: effects.remove(self.hierarchy, self.cgroup, tries=1), "removal of the cgroups")


@dataclass
class Ended:
    """What a process wrote to stdout and stderr together, and how it ended."""

    output: str
    code: int
    signal: int | None

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()


class Container:
    """A started container; `stdout` is the reading end of its output, -1 with a log."""

    def __init__(self, pod: Pod, spec: ContainerSpec, started: StartedContainer, stdout: int) -> None:
        self.pod = pod
        self.spec = spec
        self.id = spec.id
        self.pid = started.pid
        self.pidfd = started.pidfd
        self.started = started
        self.stdout = stdout

    def signal(self, number: int) -> None:
        signal.pidfd_send_signal(self.pidfd, number)

    def wait(self) -> ExitRecord:
        """The record of its end."""
        return self.pod.exits[self.id].result(DEADLINE_S)

    def kill(self) -> ExitRecord:
        """End it and wait."""
        if not self.pod.exits[self.id].done():
            try:
                self.signal(signal.SIGKILL)
            except ProcessLookupError:
                pass
        return self.wait()

    def namespaces(self) -> tuple[NamespaceKind, ...]:
        """What an exec has to join."""
        kinds = {namespace.kind for namespace in self.spec.namespaces} | self.pod.namespaces
        return tuple(kinds)

    def proc(self, name: str) -> str:
        """A file of /proc/PID as the host sees it."""
        return Path(f"/proc/{self.pid}/{name}").read_text()


class Exec:
    """A started exec and the reading end of its output."""

    def __init__(self, node: Node, process: ExecProcess, stdout: int) -> None:
        self.process = process
        self.pid = process.pid
        self.stdout = stdout
        self._node = node

    def wait(self) -> ExecExit:
        return self._node.run(self.process.wait())

    def close(self) -> None:
        self._node.call(self.process.close)
        if self.stdout >= 0:
            os.close(self.stdout)
            self.stdout = -1


class Pod:
    """A sandbox with its monitor. Containers get an overlay root on `root`, an own PID, mount and cgroup namespace."""

    def __init__(self, node: Node, root: Path, home: Path, name: str, pod: PodSpec) -> None:
        self.node = node
        self.root = root
        self.home = home
        self.name = name
        self.directory = home / f"sandbox-{name}"
        self.directory.mkdir()
        self.cgroup = f"{node.cgroup}/{name}"
        self.exits: dict[str, Future[ExitRecord]] = {}
        self.lost = threading.Event()
        self.containers: list[Container] = []
        self.execs: list[Exec] = []
        self._count = 0
        self._stopped = False
        kinds = {NamespaceKind.NETWORK: pod.network, NamespaceKind.IPC: pod.ipc, NamespaceKind.UTS: pod.uts}
        self.namespaces = {kind for kind, own in kinds.items() if own}
        self.has_users = bool(pod.uid_mappings)
        self.monitor = node.run(node.executor.start_monitor(name, self.directory, pod))
        self.monitor.on_exit = self._exited
        self.monitor.on_lost = self.lost.set

    def _exited(self, record: ExitRecord) -> None:
        self.exits[record.container_id].set_result(record)

    def spec(self, process: ProcessSpec, **changes: Any) -> ContainerSpec:
        """A plain container around a process; `changes` are fields of ContainerSpec, `resources` is its cgroup's."""
        self._count += 1
        name = f"{self.name}-c{self._count}"
        upper, work = self.home / f"upper-{name}", self.home / f"work-{name}"
        upper.mkdir()
        work.mkdir()
        resources = changes.pop("resources", Resources())
        fields: dict[str, Any] = {
            "rootfs": RootFs(lowers=(str(self.root),), upper=str(upper), work=str(work)),
            "cgroup": CgroupSpec(f"{self.cgroup}/{name}", resources),
            "namespaces": (*NAMESPACES, Namespace(NamespaceKind.USER)) if self.has_users else NAMESPACES,
            "mounts": MOUNTS,
            "device_nodes": DEVICES,
        }
        return ContainerSpec(id=name, process=process, **{**fields, **changes})

    def start(self, process: ProcessSpec, *, pid_target: str | None = None, **changes: Any) -> Container:
        """Start a container whose stdout and stderr are a pipe to the test, or its log when it has one."""
        return self.start_spec(self.spec(process, **changes), pid_target=pid_target)

    def submit(self, process: ProcessSpec) -> Future[Container]:
        """Begin to start a container without output."""
        spec = self.spec(process)
        self.exits[spec.id] = Future()

        async def start() -> Container:
            container = Container(self, spec, await self.monitor.start_container(spec), -1)
            self.containers.append(container)
            return container

        return self.node.submit(start())

    def start_spec(self, spec: ContainerSpec, *, pid_target: str | None = None) -> Container:
        """Start a container of a spec that `spec` made."""
        self.exits[spec.id] = Future()
        stdio: tuple[int, ...] = ()
        stdout = theirs = -1
        if spec.log is None and not spec.process.terminal:
            stdout, theirs = os.pipe()
            stdio = (os.open("/dev/null", os.O_RDONLY), theirs, theirs)
        try:
            started = self.node.run(self.monitor.start_container(spec, pid_target=pid_target, stdio=stdio))
        except BaseException:
            if stdout >= 0:
                os.close(stdout)
            raise
        finally:
            for fd in {*stdio}:
                os.close(fd)
        container = Container(self, spec, started, stdout)
        self.containers.append(container)
        return container

    def run(self, process: ProcessSpec, **changes: Any) -> Ended:
        """What the init process of a new container wrote, and how it ended."""
        container = self.start(process, **changes)
        stdout, container.stdout = container.stdout, -1
        output = read_all(stdout)
        record = container.wait()
        return Ended(output.decode(), record.code, record.signal)

    def start_exec(self, container: Container, process: ProcessSpec, *, leaf: bool = False) -> Exec:
        """Start an exec whose stdout and stderr are a pipe to the test; with `leaf` in the cgroup exec.0."""
        if leaf:
            effects.exec_leaf(self.node.hierarchy, container.spec.cgroup.path, 0)
        stdout, theirs = os.pipe()
        spec = ExecSpec(
            container_id=container.id,
            init_pidfd=container.pidfd,
            process=process,
            cgroup_path=container.spec.cgroup.path,
            leaf="exec.0" if leaf else "",
            namespaces=container.namespaces(),
            stdout=theirs,
            stderr=theirs,
        )
        try:
            started = self.node.run(self.node.executor.exec(spec))
        except BaseException:
            os.close(stdout)
            raise
        finally:
            os.close(theirs)
        exec_ = Exec(self.node, started, stdout)
        self.execs.append(exec_)
        return exec_

    def exec(self, container: Container, process: ProcessSpec, *, leaf: bool = False) -> Ended:
        """What an exec wrote, and how it ended."""
        exec_ = self.start_exec(container, process, leaf=leaf)
        stdout, exec_.stdout = exec_.stdout, -1
        output = read_all(stdout)
        try:
            ended = exec_.wait()
        finally:
            exec_.close()
        return Ended(output.decode(), ended.code, ended.signal)

    def stop(self) -> None:
        """End whatever still runs, then the monitor; a second time nothing happens."""
        if self._stopped:
            return
        self._stopped = True
        for exec_ in self.execs:
            exec_.close()
        for container in self.containers:
            if not self.lost.is_set():
                container.kill()
            os.close(container.pidfd)
            if container.stdout >= 0:
                os.close(container.stdout)
        if self.lost.is_set():
            effects.kill(self.node.hierarchy, self.cgroup)
            self.node.call(self.monitor.close)
        else:
            self.node.run(self.monitor.stop())
        wait_until(lambda: effects.remove(self.node.hierarchy, self.cgroup, tries=1), "removal of the pod's cgroup")
