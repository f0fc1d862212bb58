from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path

import pytest

from crishim.errors import TimedOut
from crishim.model.sandbox import Sandbox, SandboxConfig, SandboxState
from crishim.runtime.network_leftovers import NetworkLeftovers
from crishim.runtime.operations import Operations
from crishim.runtime.places import Places
from crishim.store.store import Store


class FakeNetwork:
    """Remembers who was live; leaves "stubborn" at each run, and fails at the second."""

    def __init__(self) -> None:
        self.runs: list[set[str]] = []
        self.enough = asyncio.Event()

    async def reconcile(self, live_ids: Iterable[str], *, deadline_s: float) -> tuple[str, ...]:
        self.runs.append(set(live_ids))
        if len(self.runs) == 3:
            self.enough.set()
        if len(self.runs) == 2:
            raise TimedOut("a plugin hangs")
        return ("stubborn",)


def test_leftovers_are_removed_again_and_again_whatever_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        network, operations = FakeNetwork(), Operations()
        leftovers = NetworkLeftovers(Store(tmp_path, "boot"), Places(tmp_path), network, first_s=0, every_s=0)
        operations.spawn(leftovers.run(), "network leftovers")
        await asyncio.wait_for(network.enough.wait(), 30)
        await operations.close(1)

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert "the network of sandbox stubborn could not be removed; it is tried again later" in caplog.text
    assert "a plugin hangs" in caplog.text


def test_a_sandbox_that_is_being_run_is_live_before_it_is_in_the_store(tmp_path: Path) -> None:
    async def scenario() -> None:
        network, places, store = FakeNetwork(), Places(tmp_path), Store(tmp_path, "boot")
        places.make_sandbox("known")
        store.put_sandbox(
            Sandbox(
                id="known",
                config=SandboxConfig("pod", "uid", "ns"),
                state=SandboxState.NOTREADY,
                created_at_ns=1,
                netns_path=None,
                cgroup_path="/pod",
            )
        )
        places.make_sandbox("begun")
        await NetworkLeftovers(store, places, network).remove()
        assert network.runs == [{"known", "begun"}]

    asyncio.run(scenario())
