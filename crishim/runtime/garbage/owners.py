"""Who lives at one moment, and what each of them has: the left side of the comparison. Values and one look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crishim.model.container import ContainerState
from crishim.model.node import CgroupDriver
from crishim.model.sandbox import SandboxState
from crishim.runtime.live import Live
from crishim.runtime.operations import Operations
from crishim.runtime.take_back import config_of
from crishim.spec.cgroup import known_pod_cgroup, own_monitors, own_pods
from crishim.store.durable import SandboxReservation
from crishim.store.store import Store


@dataclass(frozen=True, slots=True)
class Instance:
    """What tells the things of this server from those of others; constant."""

    #: cgroup of this server ("/crishim.slice"), and the network that runs
    cgroup_root: str
    network_mode: str
    #: of netns pins ("crishim-ab12cd34")
    netns_prefix: str
    state_dir: str
    root_dir: str
    cgroup_driver: CgroupDriver = CgroupDriver.CGROUPFS

    @property
    def pods(self) -> str:
        """Cgroup of the pods that name no parent."""
        return own_pods(self.cgroup_root, self.cgroup_driver)

    @property
    def monitors(self) -> str:
        """Cgroup of zygote and monitors."""
        return own_monitors(self.cgroup_root, self.cgroup_driver)


@dataclass(frozen=True, slots=True)
class Pod:
    """A sandbox of the store."""

    cgroup: str
    #: READY, and no operation is changing it
    ready: bool = False
    netns_path: str | None = None
    #: whether a monitor is connected, or may still be
    has_monitor: bool = False
    #: "cni", "bridge" or "host"
    network_mode: str = ""


@dataclass(frozen=True, slots=True)
class Member:
    """A container of the store."""

    sandbox_id: str
    cgroup: str
    state: ContainerState = ContainerState.RUNNING
    #: whether the init's pidfd is held, or may still come
    has_process: bool = False


@dataclass(frozen=True, slots=True)
class Owners:
    """Sandboxes and containers, and what is being made or removed."""

    instance: Instance
    pods: Mapping[str, Pod]
    members: Mapping[str, Member]
    #: ids that an operation under way concerns: what is theirs comes and goes, and is no finding
    busy: frozenset[str]
    #: reserved sandboxes of which there is nothing else: id to the pod's cgroup
    reserved: Mapping[str, str]

    def is_alive(self, id: str) -> bool:
        """Whether a sandbox or container of this id exists or is being made or removed."""
        return id in self.pods or id in self.members or id in self.busy

    def is_busy(self, id: str) -> bool:
        """Whether an operation under way concerns it, or its sandbox."""
        member = self.members.get(id)
        return id in self.busy or (member is not None and member.sandbox_id in self.busy)

    def parents(self) -> list[str]:
        """Cgroups of pods that are not below our own, where the cgroups of containers are."""
        own = self.instance.pods + "/"
        paths = {pod.cgroup for pod in self.pods.values()} | set(self.reserved.values())
        return sorted(path for path in paths if path and not path.startswith(own))


def owners(
    instance: Instance,
    store: Store,
    live: Live,
    operations: Operations,
    reservations: Sequence[SandboxReservation],
) -> Owners:
    """As they are now: nothing is awaited. `reservations` may be older; of a sandbox that is busy none is listed."""
    busy = operations.concerned()
    modes = {each.id: each.network_mode for each in reservations}
    pods = {
        each.id: Pod(
            cgroup=each.cgroup_path,
            ready=each.state is SandboxState.READY and each.id not in busy,
            netns_path=each.netns_path,
            has_monitor=live.find_monitor(each.id) is not None or each.id in live.silent,
            network_mode=modes.get(each.id, ""),
        )
        for each in store.list_sandboxes()
    }
    members = {
        each.id: Member(
            sandbox_id=each.sandbox_id,
            cgroup=each.cgroup_path,
            state=each.state,
            has_process=live.find(each.id) is not None or each.sandbox_id in live.silent,
        )
        for each in store.list_containers()
    }
    reserved = {
        each.id: known_pod_cgroup(config_of(each).cgroup_parent, instance.cgroup_root, each.id, instance.cgroup_driver)
        for each in reservations
        if each.id not in pods and each.id not in busy
    }
    return Owners(instance, pods, members, busy, reserved)


def both(before: Owners, after: Owners) -> Owners:
    """Who lived before or after a look: whatever was there during it may have been theirs.

    What is said of one is what was true after it; what was true only once is not held against anybody, since a second
    look follows.
    """
    return Owners(
        after.instance,
        pods={**before.pods, **after.pods},
        members={**before.members, **after.members},
        busy=before.busy | after.busy,
        reserved={id: path for id, path in after.reserved.items() if id in before.reserved},
    )
