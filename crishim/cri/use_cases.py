"""What the servicers call: the use cases of `runtime/`, as the border needs them.

Every argument was validated and is a model value; every answer is one. Errors are those of `crishim.errors`;
`status.py` maps them. An `id` may be a unique prefix of an id, as crictl sends it: the use case resolves it and
raises NotFound when nothing matches. Cancellation of a call is the cancellation of the awaiting coroutine: a use case
that must go on shields itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from crishim.model.container import Container, ContainerConfig
from crishim.model.exec import ExecResult
from crishim.model.image import Credentials, FilesystemUsage, Image
from crishim.model.leftover import GarbageReport
from crishim.model.life import LifeEvent
from crishim.model.metric import MetricDescriptor, SandboxMetrics
from crishim.model.node import CgroupDriver, MonitorProcess, NodeStatus
from crishim.model.resources import Resources
from crishim.model.sandbox import Sandbox, SandboxConfig
from crishim.model.stats import ContainerSample, SandboxSample


class Sandboxes(Protocol):
    """Pod sandboxes; lists are served from `listing.py`."""

    async def run(self, config: SandboxConfig) -> str:
        """Id of a READY sandbox; `config.runtime_handler` is that of the request ("" is the default)."""
        ...

    async def stop(self, sandbox_id: str) -> None:
        """Nothing to do when it is unknown or stopped."""
        ...

    async def remove(self, sandbox_id: str) -> None:
        """Stops first; nothing to do when it is unknown."""
        ...

    async def get(self, sandbox_id: str) -> Sandbox:
        """NotFound when unknown. Asks no monitor and opens no file."""
        ...

    async def update_resources(self, sandbox_id: str, overhead: Resources | None, resources: Resources | None) -> None:
        """Remember the sums of the pod after a resize, None keeps what is known; its cgroup is the kubelet's."""
        ...


class Containers(Protocol):
    """Containers of sandboxes; lists are served from `listing.py`."""

    async def create(self, sandbox_id: str, config: ContainerConfig, sandbox_config: SandboxConfig) -> str:
        """Id of a CREATED container."""
        ...

    async def start(self, container_id: str) -> None:
        """Returns when the user's program was executed; StartFailed tells why not."""
        ...

    async def stop(self, container_id: str, grace_s: int) -> None:
        """Returns when EXITED is recorded; grace_s 0 kills at once. Nothing to do when unknown or exited."""
        ...

    async def remove(self, container_id: str) -> None:
        """Kills first; nothing to do when it is unknown."""
        ...

    async def get(self, container_id: str) -> Container:
        """NotFound when unknown. Asks no monitor and opens no file."""
        ...

    async def reopen_log(self, container_id: str) -> None:
        """WrongState when it does not run; the new file exists at return."""
        ...

    async def update_resources(self, container_id: str, resources: Resources, annotations: Mapping[str, str]) -> None:
        """None in `resources` keeps what is in force; all or nothing."""
        ...


class Execs(Protocol):
    """Further processes in running containers."""

    async def exec_sync(self, container_id: str, args: tuple[str, ...], timeout_s: int) -> ExecResult:
        """timeout_s 0 waits for ever; TimedOut after every process of the exec is dead."""
        ...


class Stats(Protocol):
    """Samples of usage."""

    async def container(self, container_id: str) -> ContainerSample:
        """NotFound when unknown, WrongState when it never ran; `container_id` of the sample is the full id."""
        ...

    async def list(self, container_ids: Sequence[str]) -> Sequence[ContainerSample]:
        """Latest samples of these (full ids); those without one are left out.

        A sample that did not change since the last call is the same object, so that its serialised form is reused.
        """
        ...

    async def sandbox(self, sandbox_id: str) -> SandboxSample:
        """NotFound when unknown, Unavailable when it is not READY."""
        ...

    async def list_sandboxes(self, sandbox_ids: Sequence[str]) -> Sequence[SandboxSample]:
        """Latest samples of these (full ids); those without one are left out."""
        ...

    def metric_descriptors(self) -> Sequence[MetricDescriptor]:
        """All that `list_metrics` can name; constant, and there from the first second: a kubelet asks once."""
        ...

    async def list_metrics(self) -> Sequence[SandboxMetrics]:
        """Present values of the metrics of every READY sandbox and its running containers."""
        ...


class Subscription(Protocol):
    """One listener of events."""

    def __aiter__(self) -> AsyncIterator[LifeEvent]: ...


class Events(Protocol):
    """Events of the life of pods."""

    def subscribe(self) -> Subscription:
        """Events from now on; its iteration raises Unavailable when the listener was too slow."""
        ...

    def unsubscribe(self, subscription: Any) -> None:
        """`subscription` is one of `subscribe`."""
        ...


class Images(Protocol):
    """The image store and its registry client."""

    async def pull(self, reference: str, credentials: Credentials | None, sandbox_config: SandboxConfig | None) -> str:
        """Id of the image, equal to `Image.id`."""
        ...

    async def status(self, reference: str) -> Image | None:
        """The image by id, tag or digest; None when it is not here."""
        ...

    async def remove(self, reference: str) -> None:
        """Nothing to do when it is not here."""
        ...

    async def usage(self) -> Sequence[FilesystemUsage]:
        """The store's file system first; running totals, never a walk. Works before the first image exists."""
        ...

    async def load(self, archive: Path) -> Sequence[Image]:
        """Images of an OCI or docker-save archive on this machine; InvalidSpec names what is wrong in it."""
        ...


class Stories(Protocol):
    """What happened, told from records."""

    async def why(self, id: str) -> Any:
        """A dataclass of plain values, `runtime.story.Story`; NotFound when nothing has that id or name."""
        ...


class Garbage(Protocol):
    """What belongs to nobody."""

    async def check(self, *, dry_run: bool) -> GarbageReport:
        """Look now, and free it unless it is a dry run."""
        ...


class Monitors(Protocol):
    """The processes that watch over pods."""

    async def list(self) -> Sequence[MonitorProcess]:
        """Those that the server is connected to, the oldest first."""
        ...


class Node(Protocol):
    """The node as a whole."""

    async def status(self, verbose: bool) -> NodeStatus:
        """Fast and without effects: the kubelet asks every 5 s."""
        ...

    async def cgroup_driver(self) -> CgroupDriver:
        """Constant while pods exist."""
        ...

    async def update_pod_cidr(self, pod_cidr: str) -> None:
        """`pod_cidr` is one CIDR or several, comma separated (dual stack); "" when the kubelet has none."""
        ...


class Streaming(Protocol):
    """Sessions of exec, attach and port-forward: a URL that the kubelet connects to once."""

    async def exec(
        self, container_id: str, args: tuple[str, ...], *, tty: bool, stdin: bool, stdout: bool, stderr: bool
    ) -> str:
        """URL of the session; WrongState when the container does not run."""
        ...

    async def attach(self, container_id: str, *, tty: bool, stdin: bool, stdout: bool, stderr: bool) -> str:
        """URL of the session; WrongState when the container does not run."""
        ...

    async def port_forward(self, sandbox_id: str, ports: tuple[int, ...]) -> str:
        """URL of the session; WrongState when the sandbox is not READY."""
        ...
