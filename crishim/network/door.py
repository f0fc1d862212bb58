"""What the use cases see of a pod network, whichever one the node runs: values and one protocol."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from crishim.model.sandbox import SandboxConfig

POD_INTERFACE = "eth0"
"""Name of the device in each pod, which the kubelet and its users expect."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """One sandbox and its network namespace, as the network needs them. Descriptors stay the caller's.

    It may close them when `attach` returns or fails, also at the deadline.
    """

    sandbox_id: str
    sandbox: SandboxConfig
    #: where the namespace is pinned
    netns_path: str
    #: descriptor of the namespace
    netns_fd: int
    #: NETLINK_ROUTE socket that was opened inside the namespace
    pod_netlink_fd: int
    #: cgroup of the pod below the hierarchy root, "" when it is not known; CNI plugins may want it
    cgroup_path: str = ""


@dataclass(frozen=True, slots=True)
class NetworkResult:
    """What a pod got. `ips` has the preferred address first, without prefix length; never empty."""

    ips: tuple[str, ...]
    interface: str = POD_INTERFACE
    mac: str = ""
    gateways: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Readiness:
    """The condition NetworkReady: `reason` is one CamelCase word and `message` a sentence, both empty when ready."""

    ready: bool
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class NetworkObject:
    """One thing that the network has for a pod."""

    #: "attachment" (of CNI), "address", "device" or "rule"
    kind: str
    name: str
    #: "" when nothing on record says whose it is
    sandbox_id: str = ""


class Network(Protocol):
    """A pod network. Every method is safe to repeat, and after a crash of the server at any point.

    The caller serialises the calls for one sandbox; those for different sandboxes may overlap. Errors: InvalidSpec for
    a field of the sandbox that cannot be honoured, Exhausted without free addresses, AlreadyExists for a taken host
    port, Unavailable while the network is not ready, TimedOut at the deadline.
    """

    async def open(self) -> None:
        """Once, before anything else. A node that lacks something is not an error here: `ready` says it.

        Unsupported when a newer crishim wrote what is on record, which stays as it is.
        """
        ...

    async def close(self) -> None:
        """Ends what the server holds; pods keep their network."""
        ...

    async def ready(self) -> Readiness:
        """Cheap enough for every Status call of the kubelet, which comes each 5 s."""
        ...

    async def attach(self, attachment: Attachment, *, deadline_s: float) -> NetworkResult:
        """Connects the pod. On an error nothing of it is left, or `detach` removes it."""
        ...

    async def detach(self, sandbox_id: str, netns_path: str | None, *, deadline_s: float) -> None:
        """Disconnects the pod, from what `attach` recorded; `netns_path` is None when the namespace is gone.

        Nothing to do when it was never attached. After an error the record stays and a repetition goes on.
        """
        ...

    async def check(self, sandbox_id: str, netns_path: str, *, deadline_s: float) -> None:
        """Unavailable, with a sentence, when the pod's network is no longer as `attach` made it."""
        ...

    async def survey(self, *, deadline_s: float) -> tuple[NetworkObject, ...]:
        """Everything that pods have of this network, as it is recorded and as the kernel has it."""
        ...

    async def reconcile(self, live_ids: Iterable[str], *, deadline_s: float) -> tuple[str, ...]:
        """Removes what belongs to sandboxes that are not in `live_ids`; the ids whose leftovers could not be removed.

        Called at the start of the server and now and then, never while an attach of an id outside `live_ids` runs.
        """
        ...

    async def set_pod_cidr(self, pod_cidr: str) -> None:
        """The kubelet's pod CIDR, one or two comma separated; pods that exist keep their addresses.

        "" changes nothing. InvalidSpec when it is not understood. Kept over restarts.
        """
        ...
