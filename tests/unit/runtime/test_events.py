"""Changes of the store as events: their order, their statuses, and listeners that do not read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crishim.errors import Unavailable
from crishim.model.container import ContainerState
from crishim.model.events import LifeEventKind
from crishim.model.life import LifeEvent
from crishim.model.sandbox import SandboxState
from crishim.runtime.events import Events, Subscription
from crishim.store.store import Store
from tests.unit.store.values import CONTAINER, SANDBOX

CREATED = replace(CONTAINER, sandbox_id=SANDBOX.id, state=ContainerState.CREATED)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    yield Store(tmp_path, "boot")


def follow(store: Store, limit: int = 100) -> Events:
    events = Events(store, limit)
    store.subscribe(events.changed)
    return events


def read(subscription: Subscription) -> list[LifeEvent]:
    """All that is queued, of a subscription that has ended."""

    async def run() -> list[LifeEvent]:
        return [event async for event in subscription]

    return asyncio.run(run())


def test_a_life_is_told_in_order(store: Store) -> None:
    events = follow(store)
    subscription = events.subscribe()
    store.put_sandbox(SANDBOX)
    store.put_container(CREATED)
    store.update_container(CREATED.id, lambda old: replace(old, state=ContainerState.RUNNING, pid=7))
    store.update_container(CREATED.id, lambda old: replace(old, state=ContainerState.EXITED, exit_code=3))
    store.remove_container(CREATED.id)
    store.update_sandbox(SANDBOX.id, lambda old: replace(old, state=SandboxState.NOTREADY))
    store.remove_sandbox(SANDBOX.id)
    events.close()
    told = read(subscription)
    kinds = LifeEventKind
    assert [(event.container_id, event.kind) for event in told] == [
        (SANDBOX.id, kinds.CREATED),
        (SANDBOX.id, kinds.STARTED),
        (CREATED.id, kinds.CREATED),
        (CREATED.id, kinds.STARTED),
        (CREATED.id, kinds.STOPPED),
        (CREATED.id, kinds.DELETED),
        (SANDBOX.id, kinds.STOPPED),
        (SANDBOX.id, kinds.DELETED),
    ]
    (status,) = told[4].containers
    assert (status.state, status.exit_code) == (ContainerState.EXITED, 3)
    assert all(event.sandbox.config == SANDBOX.config for event in told)


def test_containers_removed_with_their_pod_are_told_before_it(store: Store) -> None:
    store.put_sandbox(SANDBOX)
    store.put_container(CREATED)
    events = follow(store)
    subscription = events.subscribe()
    store.remove_sandbox(SANDBOX.id)
    events.close()
    assert [event.container_id for event in read(subscription)] == [CREATED.id, SANDBOX.id]


def test_a_change_that_is_no_new_state_is_no_event(store: Store) -> None:
    store.put_sandbox(SANDBOX)
    store.put_container(CREATED)
    events = follow(store)
    subscription = events.subscribe()
    store.update_container(CREATED.id, lambda old: replace(old, message="resized"))
    store.update_sandbox(SANDBOX.id, lambda old: replace(old, reason="resized"))
    events.close()
    assert read(subscription) == []


def test_a_listener_that_does_not_read_is_let_go_and_the_others_go_on(store: Store) -> None:
    events = follow(store, limit=4)
    slow, quick = events.subscribe(), events.subscribe()
    for round_ in range(3):
        store.put_sandbox(SANDBOX)
        store.remove_sandbox(SANDBOX.id)
        taken = [quick._queue.get_nowait() for _ in range(3)]
        assert None not in taken, f"round {round_}"
    events.close()

    async def drain() -> int:
        seen = 0
        with pytest.raises(Unavailable, match="did not read"):
            async for _ in slow:
                seen += 1
        return seen

    assert asyncio.run(drain()) == 4
    assert read(quick) == []


def test_nobody_is_told_what_happened_before_and_after_he_listened(store: Store) -> None:
    events = follow(store)
    store.put_sandbox(SANDBOX)
    subscription = events.subscribe()
    events.unsubscribe(subscription)
    store.remove_sandbox(SANDBOX.id)
    subscription.end("")
    assert read(subscription) == []


def test_a_listener_that_comes_while_the_server_stops_ends_at_once(store: Store) -> None:
    events = follow(store)
    events.close()
    assert read(events.subscribe()) == []
