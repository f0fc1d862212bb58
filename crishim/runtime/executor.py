"""The executor as the use cases need it: `executor.client.Executor`, or a fake of it in tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from crishim.cgroups.hierarchy import Hierarchy
from crishim.executor.client import ExecExit, ExecSpec, MonitoredContainer, PodSpec, StartedContainer
from crishim.model.exit import ExitRecord
from crishim.model.process import ContainerSpec


class Monitor(Protocol):
    """The monitor of one pod."""

    sandbox_id: str
    pid: int
    #: -1 when it is not known
    pidfd: int
    #: of the crishim that started it
    version: str
    wire_version: int
    began_at_ns: int
    containers: dict[str, MonitoredContainer]
    on_exit: Callable[[ExitRecord], None]
    on_started: Callable[[MonitoredContainer], None]
    pod_init_died: bool
    on_pod_init_exited: Callable[[], None]
    on_lost: Callable[[], None]

    async def start_container(
        self, spec: ContainerSpec, *, pid_target: str | None = None, stdio: Sequence[int] = ()
    ) -> StartedContainer:
        """StartFailed has a sentence, and nothing is left then."""
        ...

    async def cancel_start(self, container_id: str) -> None:
        """Returns when a start under way failed, also one that hangs; nothing to do when there is none."""
        ...

    async def reopen_log(self, container_id: str) -> None: ...

    async def attach(self, container_id: str) -> int: ...

    async def open_socket(self, family: int, kind: int, protocol: int) -> int: ...

    async def open_netns(self) -> int: ...

    async def forget(self, container_id: str) -> None: ...

    async def stop(self) -> None: ...

    def close(self) -> None: ...


class ExecProcess(Protocol):
    """A started exec; the descriptors are its own until `close`."""

    pid: int
    pidfd: int
    started_at_ns: int

    async def console(self) -> int:
        """The terminal's master, of an exec with one; the caller owns it. StartFailed when it came to nothing."""
        ...

    async def wait(self) -> ExecExit:
        """StartFailed when it never reached execve(2)."""
        ...

    def close(self) -> None: ...


class Executor(Protocol):
    """Zygote and monitors."""

    hierarchy: Hierarchy

    @property
    def pid(self) -> int:
        """The zygote's."""
        ...

    async def start_monitor(self, sandbox_id: str, directory: Path, pod: PodSpec) -> Monitor: ...

    async def adopt_monitor(self, sandbox_id: str, directory: Path) -> Monitor: ...

    async def exec(self, spec: ExecSpec) -> ExecProcess: ...

    async def run_poststop(self, spec: ContainerSpec) -> None:
        """Run the hooks after the end of a container whose monitor died; InvalidSpec tells one that failed."""
        ...

    async def run_role(
        self, role: str, request: Mapping[str, object], fds: Sequence[int] = (), timeout_s: float = 60.0
    ) -> dict[str, object]: ...

    def hold(self, role: str) -> AbstractAsyncContextManager[int]:
        """Pid of a process that plays the role until the block ends."""
        ...
