"""Why a container is as it is, told from its records: what happened when, who asked, what ended it.

Records are the status in the store, the exit record of the monitor, the note of the last signal that we sent, and the
operations under way. They are small files of our own, read in a thread when somebody asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from crishim.errors import InvalidSpec, NotFound
from crishim.executor.client import read_exit_record
from crishim.executor.wire import WireError
from crishim.model.container import Container, ContainerState
from crishim.model.events import Sender
from crishim.model.exit import ExitRecord
from crishim.model.sandbox import NamespaceMode, Sandbox
from crishim.runtime.helper import Helper
from crishim.runtime.operations import Operations
from crishim.runtime.places import Places, StopNote
from crishim.runtime.steps import WAITS
from crishim.runtime.verdict import signal_name, verdict
from crishim.spec.container import namespaces_of
from crishim.store.store import Store

_SENDERS = {
    Sender.INSIDE: "by itself or another process of its pod",
    Sender.STOP: "by us, because it was to be stopped",
    Sender.TIMEOUT: "by us, because its time was over",
    Sender.OOM: "by the kernel, for want of memory",
    Sender.RUNTIME: "by us, because it could not be run or watched any more",
    Sender.UNKNOWN: "by somebody outside of the pod whom we do not know",
}


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that happened; at_ns is CLOCK_REALTIME, 0 when it is going on now."""

    at_ns: int
    what: str


@dataclass(frozen=True, slots=True)
class ContainerStory:
    """The story of one container; what is not known is None or empty."""

    id: str
    name: str
    attempt: int
    state: str
    moments: tuple[Moment, ...]
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    signal: str = ""
    sender: str = ""
    oom_kills: int | None = None
    #: from our last signal to the end
    signal_to_exit_s: float | None = None
    log_bytes_lost: int = 0


@dataclass(frozen=True, slots=True)
class Story:
    """A pod and its containers, or the pod of one container and that container alone."""

    sandbox_id: str
    name: str
    namespace: str
    state: str
    reason: str
    moments: tuple[Moment, ...]
    containers: tuple[ContainerStory, ...]


class Stories:
    """Tells them."""

    def __init__(self, store: Store, places: Places, operations: Operations, helper: Helper) -> None:
        self._store = store
        self._places = places
        self._operations = operations
        self._helper = helper

    async def why(self, id: str) -> Story:
        """By the id, or its beginning, of a container or a sandbox, or by a pod's or a container's name.

        NotFound when nothing has it; InvalidSpec when several do.
        """
        sandbox, containers = self._find(id)
        told = [await self._helper.run(self._container, each, sandbox) for each in containers]
        moments = [Moment(sandbox.created_at_ns, "the pod was created"), *self._now(sandbox.id)]
        config = sandbox.config
        return Story(
            sandbox_id=sandbox.id,
            name=config.name,
            namespace=config.namespace,
            state=sandbox.state.name,
            reason=sandbox.reason,
            moments=tuple(moments),
            containers=tuple(told),
        )

    def _find(self, id: str) -> tuple[Sandbox, Sequence[Container]]:
        with suppress(NotFound):
            container = self._store.resolve_container(id)
            return self._store.get_sandbox(container.sandbox_id), [container]
        with suppress(NotFound):
            sandbox = self._store.resolve_sandbox(id)
            return sandbox, self._store.list_containers(sandbox.id)
        return self._find_name(id)

    def _find_name(self, name: str) -> tuple[Sandbox, Sequence[Container]]:
        """The newest of that name: after a restart it is the one that is asked about."""
        pods = [each for each in self._store.list_sandboxes() if name in (each.config.name, _full_name(each))]
        if len({_full_name(each) for each in pods}) > 1:
            raise InvalidSpec(f"{name!r} is a pod in several namespaces; name it as NAMESPACE/NAME")
        if pods:
            return pods[-1], self._store.list_containers(pods[-1].id)
        containers = [each for each in self._store.list_containers() if each.config.name == name]
        if len({each.sandbox_id for each in containers}) > 1:
            raise InvalidSpec(f"{name!r} is a container in several pods; name it by its id")
        if not containers:
            raise NotFound(f"no pod and no container is called {name!r}")
        return self._store.get_sandbox(containers[-1].sandbox_id), containers[-1:]

    def _container(self, container: Container, sandbox: Sandbox) -> ContainerStory:
        note = self._places.read_stop(sandbox.id, container.id)
        record = None
        with suppress(OSError, WireError):
            record = read_exit_record(self._places.sandbox(sandbox.id), container.id)
        return tell(container, sandbox, record, note, self._now(container.id))

    def _now(self, id: str) -> list[Moment]:
        return [
            Moment(0, f"{key.split()[0]} is under way for {age_s:.1f} s, in {stage}{_waits(stage)}")
            for key, stage, age_s, _, _ in self._operations.under_way()
            if id in key.split()
        ]


def tell(
    container: Container, sandbox: Sandbox, record: ExitRecord | None, note: StopNote | None, now: Sequence[Moment]
) -> ContainerStory:
    """The story of one container. Pure."""
    moments = [Moment(container.created_at_ns, f"created from image {container.image_name}")]
    if container.started_at_ns:
        moments.append(Moment(container.started_at_ns, "started"))
    if note is not None:
        moments.append(Moment(note.at_ns, f"we sent {signal_name(note.signal)} ({note.sender})"))
    if container.finished_at_ns:
        moments.append(Moment(container.finished_at_ns, _end(container)))
    exited = container.state is ContainerState.EXITED
    event = None
    if record is not None:
        options = namespaces_of(container.config, sandbox)
        event = verdict(record, note, options.pid is NamespaceMode.CONTAINER)
        moments[-1:] = [
            Moment(container.finished_at_ns or record.ended_at_ns, f"{_end(container)}, {_SENDERS[event.sender]}")
        ]
    return ContainerStory(
        id=container.id,
        name=container.config.name,
        attempt=container.config.attempt,
        state=container.state.name,
        moments=(*sorted(moments, key=lambda moment: moment.at_ns), *now),
        reason=container.reason,
        message=container.message,
        exit_code=container.exit_code if exited else None,
        signal=signal_name(event.signal) if event is not None and event.signal is not None else "",
        sender=event.sender.value if event is not None else "",
        oom_kills=event.oom_kills if event is not None else None,
        signal_to_exit_s=_after(note, container),
        log_bytes_lost=record.log_bytes_lost if record is not None else 0,
    )


def _end(container: Container) -> str:
    return f"ended: {container.reason or 'no reason known'}, exit code {container.exit_code}"


def _after(note: StopNote | None, container: Container) -> float | None:
    if note is None or container.finished_at_ns < note.at_ns:
        return None
    return (container.finished_at_ns - note.at_ns) / 1e9


def _waits(stage: str) -> str:
    return f", and waits for {WAITS[stage]}" if stage in WAITS else ""


def _full_name(sandbox: Sandbox) -> str:
    return f"{sandbox.config.namespace}/{sandbox.config.name}"
