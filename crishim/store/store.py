"""Sandboxes and containers in memory, indexed for every question, each change first on disk and then visible.

Called from the server's one asyncio thread and never awaits: what a method reads is true until it returns. Lists, event
streams and metrics follow by `subscribe`. What must outlive a power cut is in `durable.py`, not here.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from crishim.errors import AlreadyExists, Internal, InvalidSpec, NotFound
from crishim.model.container import Container
from crishim.model.sandbox import Sandbox
from crishim.store.records import ContainerReservation, DamagedRecord, Records

POD_UID_LABEL = "io.kubernetes.pod.uid"

SandboxIdentity = tuple[str, str, str, int]
ContainerIdentity = tuple[str, str, int]

logger = logging.getLogger(__name__)

T = TypeVar("T", Sandbox, Container)


class Kind(enum.Enum):
    """What a change is about."""

    SANDBOX = "sandbox"
    CONTAINER = "container"


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What `Store.load` found besides statuses; recovery acts on it."""

    #: files that were not understood, and containers whose sandbox has no record
    damaged: tuple[DamagedRecord, ...] = ()
    #: containers whose creation did not end
    unfinished: tuple[ContainerReservation, ...] = ()
    #: ids of sandboxes of another boot: their processes are gone
    other_boot: frozenset[str] = frozenset()


Subscriber = Callable[[Kind, Sandbox | Container | None, Sandbox | Container | None], None]


class Store:
    """The statuses of one server. Raises NotFound for ids it does not hold; returned values are frozen."""

    def __init__(self, state: Path, boot_id: str) -> None:
        self._records = Records(state, boot_id)
        self._sandboxes: dict[str, Sandbox] = {}
        self._containers: dict[str, Container] = {}
        self._reservations: dict[str, ContainerReservation] = {}
        self._sandbox_ids: dict[SandboxIdentity, str] = {}
        #: identities of containers and of reservations
        self._container_ids: dict[ContainerIdentity, str] = {}
        #: sandbox id to the ids of its containers, in the order of their creation
        self._members: dict[str, dict[str, None]] = {}
        #: value of POD_UID_LABEL to the ids of sandboxes and of containers
        self._sandboxes_by_uid: dict[str, dict[str, None]] = {}
        self._containers_by_uid: dict[str, dict[str, None]] = {}
        self._subscribers: list[Subscriber] = []

    def load(self) -> LoadReport:
        """Fill the indexes from the record files; once, before anything else. Subscribers are not called."""
        found = self._records.read_all()
        damaged = list(found.damaged)
        for sandbox in sorted(found.sandboxes, key=lambda sandbox: sandbox.created_at_ns):
            self._index_sandbox(sandbox)
        for container in sorted(found.containers, key=lambda container: container.created_at_ns):
            if container.sandbox_id in self._sandboxes:
                self._index_container(container)
            else:
                problem = f"container {container.id} belongs to a sandbox without a record"
                damaged.append(DamagedRecord(container.id, container.sandbox_id, problem))
        unfinished = tuple(each for each in found.reservations if each.id not in self._containers)
        for reservation in unfinished:
            self._reservations[reservation.id] = reservation
            self._container_ids[_identity_of(reservation)] = reservation.id
        return LoadReport(tuple(damaged), unfinished, found.other_boot)

    def subscribe(self, callback: Subscriber) -> None:
        """Call `callback(kind, old, new)` after each change is on disk and visible; old or new is None at the ends.

        A callback that fails is logged and stops nobody.
        """
        self._subscribers.append(callback)

    # -- sandboxes

    def get_sandbox(self, sandbox_id: str) -> Sandbox:
        """By full id."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None:
            raise NotFound(f"sandbox {sandbox_id!r} does not exist")
        return sandbox

    def resolve_sandbox(self, prefix: str) -> Sandbox:
        """By full id or by the beginning of one id only; InvalidSpec when several begin so."""
        return _resolve(self._sandboxes, prefix, Kind.SANDBOX)

    def find_sandbox(self, identity: SandboxIdentity) -> Sandbox | None:
        """By (name, namespace, uid, attempt)."""
        sandbox_id = self._sandbox_ids.get(identity)
        return None if sandbox_id is None else self._sandboxes[sandbox_id]

    def list_sandboxes(self, pod_uid: str | None = None) -> list[Sandbox]:
        """All, or those labelled with this pod uid; oldest first."""
        if pod_uid is None:
            return list(self._sandboxes.values())
        return [self._sandboxes[each] for each in self._sandboxes_by_uid.get(pod_uid, ())]

    def put_sandbox(self, sandbox: Sandbox) -> None:
        """Add a sandbox. AlreadyExists when the id or the identity is taken, Exhausted when the disk is full."""
        taken = self._sandbox_ids.get(sandbox_identity(sandbox))
        if sandbox.id in self._sandboxes or taken is not None:
            raise AlreadyExists(f"sandbox {sandbox.id} has the id or the identity of sandbox {taken or sandbox.id}")
        self._records.write_sandbox(sandbox)
        self._index_sandbox(sandbox)
        self._publish(Kind.SANDBOX, None, sandbox)

    def update_sandbox(self, sandbox_id: str, change: Callable[[Sandbox], Sandbox]) -> Sandbox:
        """Replace a sandbox by `change(old)`: persisted, visible, then published. An equal value does nothing."""
        old = self.get_sandbox(sandbox_id)
        new = change(old)
        if new == old:
            return old
        if (new.id, sandbox_identity(new)) != (old.id, sandbox_identity(old)):
            raise Internal(f"sandbox {sandbox_id} cannot change its id or identity")
        self._records.write_sandbox(new)
        if new.config.labels != old.config.labels:
            _unlabel(self._sandboxes_by_uid, old)
        self._index_sandbox(new)
        self._publish(Kind.SANDBOX, old, new)
        return new

    def remove_sandbox(self, sandbox_id: str) -> None:
        """Forget a sandbox and its containers; an unknown id does nothing (RemovePodSandbox is idempotent)."""
        old = self._sandboxes.get(sandbox_id)
        for container_id in list(self._members.get(sandbox_id, ())):
            self.remove_container(container_id)
        for reservation in [each for each in self._reservations.values() if each.sandbox_id == sandbox_id]:
            self.release_container(reservation.id)
        if old is None:
            return
        self._records.remove_sandbox(sandbox_id)
        del self._sandboxes[sandbox_id], self._members[sandbox_id], self._sandbox_ids[sandbox_identity(old)]
        _unlabel(self._sandboxes_by_uid, old)
        self._publish(Kind.SANDBOX, old, None)

    # -- containers

    def get_container(self, container_id: str) -> Container:
        """By full id."""
        container = self._containers.get(container_id)
        if container is None:
            raise NotFound(f"container {container_id!r} does not exist")
        return container

    def resolve_container(self, prefix: str) -> Container:
        """By full id or by the beginning of one id only; InvalidSpec when several begin so."""
        return _resolve(self._containers, prefix, Kind.CONTAINER)

    def find_container(self, identity: ContainerIdentity) -> Container | None:
        """By (sandbox id, name, attempt); None for one whose creation has not ended."""
        return self._containers.get(self._container_ids.get(identity, ""))

    def list_containers(self, sandbox_id: str | None = None, pod_uid: str | None = None) -> list[Container]:
        """All, or those of a sandbox and labelled with a pod uid; oldest first."""
        if sandbox_id is not None:
            members = [self._containers[each] for each in self._members.get(sandbox_id, ())]
            return [each for each in members if pod_uid is None or each.config.labels.get(POD_UID_LABEL) == pod_uid]
        if pod_uid is not None:
            return [self._containers[each] for each in self._containers_by_uid.get(pod_uid, ())]
        return list(self._containers.values())

    def reserve_container(self, reservation: ContainerReservation) -> None:
        """Before the first effect of a creation. AlreadyExists: the identity is taken; NotFound: no such sandbox."""
        self.get_sandbox(reservation.sandbox_id)
        identity = _identity_of(reservation)
        if taken := self._container_ids.get(identity):
            raise AlreadyExists(f"container {identity[1]!r} attempt {identity[2]} is container {taken}")
        self._records.write_reservation(reservation)
        self._reservations[reservation.id] = reservation
        self._container_ids[identity] = reservation.id

    def release_container(self, container_id: str) -> None:
        """The creation was undone. An unknown id does nothing."""
        reservation = self._reservations.pop(container_id, None)
        if reservation is not None:
            del self._container_ids[_identity_of(reservation)]
            self._records.remove_container(reservation.sandbox_id, container_id)

    def put_container(self, container: Container) -> None:
        """Add a container, which ends its reservation. AlreadyExists when the id or the identity is taken."""
        self.get_sandbox(container.sandbox_id)
        taken = self._container_ids.get(container_identity(container))
        if container.id in self._containers or taken not in (None, container.id):
            raise AlreadyExists(f"container {container.id} has the id or the identity of container {taken}")
        self._records.write_container(container)
        self._reservations.pop(container.id, None)
        self._index_container(container)
        self._publish(Kind.CONTAINER, None, container)

    def update_container(self, container_id: str, change: Callable[[Container], Container]) -> Container:
        """Replace a container by `change(old)`: persisted, visible, then published. An equal value does nothing."""
        old = self.get_container(container_id)
        new = change(old)
        if new == old:
            return old
        if (new.id, container_identity(new)) != (old.id, container_identity(old)):
            raise Internal(f"container {container_id} cannot change its id or identity")
        self._records.write_container(new)
        if new.config.labels != old.config.labels:
            _unlabel(self._containers_by_uid, old)
        self._index_container(new)
        self._publish(Kind.CONTAINER, old, new)
        return new

    def remove_container(self, container_id: str) -> None:
        """Forget a container; an unknown id does nothing (RemoveContainer is idempotent)."""
        old = self._containers.get(container_id)
        if old is None:
            return
        self._records.remove_container(old.sandbox_id, container_id)
        del self._containers[container_id], self._container_ids[container_identity(old)]
        del self._members[old.sandbox_id][container_id]
        _unlabel(self._containers_by_uid, old)
        self._publish(Kind.CONTAINER, old, None)

    # -- indexes

    def _index_sandbox(self, sandbox: Sandbox) -> None:
        self._sandboxes[sandbox.id] = sandbox
        self._sandbox_ids[sandbox_identity(sandbox)] = sandbox.id
        self._members.setdefault(sandbox.id, {})
        _label(self._sandboxes_by_uid, sandbox)

    def _index_container(self, container: Container) -> None:
        self._containers[container.id] = container
        self._container_ids[container_identity(container)] = container.id
        self._members[container.sandbox_id][container.id] = None
        _label(self._containers_by_uid, container)

    def _publish(self, kind: Kind, old: Sandbox | Container | None, new: Sandbox | Container | None) -> None:
        for callback in self._subscribers:
            try:
                callback(kind, old, new)
            except Exception:
                changed = new or old
                logger.exception("a subscriber failed at a change of %s %s", kind.value, changed and changed.id)


def sandbox_identity(sandbox: Sandbox) -> SandboxIdentity:
    """(name, namespace, uid, attempt): what a retry of RunPodSandbox repeats."""
    config = sandbox.config
    return (config.name, config.namespace, config.uid, config.attempt)


def container_identity(container: Container) -> ContainerIdentity:
    """(sandbox id, name, attempt): what a retry of CreateContainer repeats."""
    return (container.sandbox_id, container.config.name, container.config.attempt)


def _identity_of(reservation: ContainerReservation) -> ContainerIdentity:
    return (reservation.sandbox_id, reservation.config.name, reservation.config.attempt)


def _resolve(values: dict[str, T], prefix: str, kind: Kind) -> T:
    if prefix in values:
        return values[prefix]
    found = [each for each in values if prefix and each.startswith(prefix)]
    if not found:
        raise NotFound(f"{kind.value} {prefix!r} does not exist")
    if len(found) > 1:
        raise InvalidSpec(f"{len(found)} of the {kind.value} ids begin with {prefix!r}")
    return values[found[0]]


def _label(index: dict[str, dict[str, None]], value: Sandbox | Container) -> None:
    if uid := value.config.labels.get(POD_UID_LABEL):
        index.setdefault(uid, {})[value.id] = None


def _unlabel(index: dict[str, dict[str, None]], value: Sandbox | Container) -> None:
    uid = value.config.labels.get(POD_UID_LABEL)
    if uid and uid in index:
        index[uid].pop(value.id, None)
        if not index[uid]:
            del index[uid]
