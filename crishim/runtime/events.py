"""Changes of the store as events for those who listen (api.proto GetContainerEvents).

Events are made from the store's own changes, so their order is that of the changes and their statuses are what a
status call would have said at that moment. Nobody waits for a listener: one that does not read is let go.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

from crishim.errors import NotFound, Unavailable
from crishim.model.container import Container, ContainerState
from crishim.model.events import LifeEventKind
from crishim.model.life import LifeEvent
from crishim.model.sandbox import Sandbox, SandboxState
from crishim.store.store import Kind, Store

#: events that wait for one listener; each holds a few references to values that the store has anyway
QUEUE_LIMIT = 1000

_STATES = {
    ContainerState.RUNNING: LifeEventKind.STARTED,
    ContainerState.EXITED: LifeEventKind.STOPPED,
}


class Subscription:
    """One listener: iterate it, and close it in the end."""

    def __init__(self, limit: int) -> None:
        self._queue: asyncio.Queue[LifeEvent | None] = asyncio.Queue()
        self._limit = limit
        #: why no more events come, None while they do; "" when the server stops
        self._ended: str | None = None

    @property
    def ended(self) -> bool:
        """Whether no more events are taken."""
        return self._ended is not None

    def offer(self, event: LifeEvent) -> None:
        """Queue an event; a full queue ends the subscription."""
        if self._queue.qsize() >= self._limit:
            self.end(f"the listener did not read for {self._limit} events; list again and listen anew")
        else:
            self._queue.put_nowait(event)

    def end(self, why: str) -> None:
        """No more events: iteration ends after those that are queued."""
        if self._ended is None:
            self._ended = why
            self._queue.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[LifeEvent]:
        """Events in order; Unavailable when some were lost, the plain end when the server stops."""
        while (event := await self._queue.get()) is not None:
            yield event
        if self._ended:
            raise Unavailable(self._ended)


class Events:
    """All listeners of one server. `changed` follows `Store.subscribe`."""

    def __init__(self, store: Store, queue_limit: int = QUEUE_LIMIT) -> None:
        self._store = store
        self._limit = queue_limit
        self._subscriptions: list[Subscription] = []
        self._closed = False

    def subscribe(self) -> Subscription:
        """A new listener; it is told of what happens from now on."""
        subscription = Subscription(self._limit)
        if self._closed:
            subscription.end("")
        else:
            self._subscriptions.append(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """The listener is gone; one that was let go before is fine."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    def close(self) -> None:
        """The server stops: every stream ends."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription.end("")
        self._subscriptions.clear()

    def changed(self, kind: Kind, old: Sandbox | Container | None, new: Sandbox | Container | None) -> None:
        """A change of the store, told to every listener; costs nothing without one."""
        if not self._subscriptions:
            return
        value = new or old
        if isinstance(value, Container):
            kinds = _container_kinds(old, new)
        else:
            kinds = _sandbox_kinds(old, new)
        for life in kinds:
            event = self._event(life, value)
            for subscription in self._subscriptions if event is not None else ():
                assert event is not None
                subscription.offer(event)
        self._subscriptions = [each for each in self._subscriptions if not each.ended]

    def _event(self, kind: LifeEventKind, value: Sandbox | Container | None) -> LifeEvent | None:
        if isinstance(value, Container):
            try:
                sandbox = self._store.get_sandbox(value.sandbox_id)
            except NotFound:
                return None  # an event without its pod would be dropped by who hears it
        else:
            assert value is not None
            sandbox = value
        members = tuple(self._store.list_containers(sandbox.id))
        return LifeEvent(value.id, kind, time.time_ns(), sandbox, members)


def _container_kinds(old: object, new: object) -> Iterator[LifeEventKind]:
    if not isinstance(new, Container):
        yield LifeEventKind.DELETED
        return
    if old is None:
        yield LifeEventKind.CREATED
    if not isinstance(old, Container) or old.state is not new.state:
        kind = _STATES.get(new.state)
        if kind is not None:
            yield kind


def _sandbox_kinds(old: object, new: object) -> Iterator[LifeEventKind]:
    if not isinstance(new, Sandbox):
        yield LifeEventKind.DELETED
        return
    if old is None:
        yield LifeEventKind.CREATED
    if not isinstance(old, Sandbox) or old.state is not new.state:
        yield LifeEventKind.STARTED if new.state is SandboxState.READY else LifeEventKind.STOPPED
