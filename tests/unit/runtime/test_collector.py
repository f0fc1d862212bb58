"""The collector: who asks while a sweep is under way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from crishim.cgroups.hierarchy import Hierarchy
from crishim.model.container import Container, ContainerConfig, ContainerState, ContainerUser
from crishim.model.image import FilesystemUsage
from crishim.model.sandbox import Sandbox, SandboxConfig, SandboxState
from crishim.runtime.collector import Collector
from crishim.runtime.helper import Helper
from crishim.runtime.live import Live
from crishim.runtime.operations import Operations
from crishim.store.store import Store

SANDBOX = "5a" * 32


class Layers:
    """Writable layers whose first reading takes until `go_on` is set."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.first = asyncio.Event()
        self.go_on = asyncio.Event()

    def usage(self, container_id: str) -> FilesystemUsage | None:
        return None

    async def refresh(self, container_ids: Sequence[str]) -> None:
        self.asked.append(list(container_ids))
        if len(self.asked) == 1:
            self.first.set()
            await self.go_on.wait()


def running(store: Store, number: int) -> str:
    """Id of a new container that runs."""
    container_id = f"{number:064x}"
    config, user = ContainerConfig(name=f"c{number}", image="i"), ContainerUser(0, 0, ())
    created = Container(container_id, SANDBOX, config, ContainerState.CREATED, 1, "i", "i", "i", user)
    store.put_container(replace(created, cgroup_path=f"/pod/{number}"))
    store.update_container(container_id, lambda old: replace(old, state=ContainerState.RUNNING))
    return container_id


async def listed_during_a_sweep(tmp_path: Path) -> tuple[set[str], Layers]:
    """Ids with a sample for a list that came, with a container just started, while a sweep of others was under way."""
    store, helper, operations, layers = Store(tmp_path, "boot"), Helper(), Operations(), Layers()
    store.put_sandbox(Sandbox(SANDBOX, SandboxConfig("p", "u", "n"), SandboxState.READY, 1, cgroup_path="/pod"))
    hierarchy = Hierarchy("v2", str(tmp_path).encode(), {})
    collector = Collector(store, Live(), hierarchy, operations, helper, layers, str(tmp_path))
    try:
        async with asyncio.TaskGroup() as group:
            early = running(store, 1)
            group.create_task(collector.list([early]))
            await layers.first.wait()
            late = running(store, 2)
            answer = group.create_task(collector.list([early, late]))
            await asyncio.sleep(0)  # it waits for the sweep now
            layers.go_on.set()
        return {sample.container_id for sample in answer.result()}, layers
    finally:
        await operations.close(0)
        helper.close()


def test_a_container_started_during_a_sweep_has_a_sample(tmp_path: Path) -> None:
    found, layers = asyncio.run(listed_during_a_sweep(tmp_path))
    assert found == {f"{1:064x}", f"{2:064x}"}
    assert layers.asked == [[f"{1:064x}"], [f"{1:064x}", f"{2:064x}"]]
