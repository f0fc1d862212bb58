"""Scopes are there for the time of a container, and only where the driver is systemd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from crishim.cgroups.hierarchy import Hierarchy
from crishim.cgroups.plan import plan
from crishim.cgroups.systemd import Systemd
from crishim.errors import StartFailed, Unavailable
from crishim.model.process import CgroupSpec, ContainerSpec, ProcessSpec, RootFs
from crishim.model.resources import Resources
from crishim.runtime.units import Units

SCOPE = "/kubepods.slice/kubepods-pod1.slice/crishim-c1.scope"


class FakeSystemd(Systemd):
    def __init__(self, error: str = "") -> None:
        self.error = error
        self.calls: list[tuple[Any, ...]] = []

    def version(self) -> int:
        return 252

    def _call(self, *call: Any) -> None:
        self.calls.append(call)
        if self.error:
            raise Unavailable(self.error)

    def start_scope(self, name: str, pids: Any, properties: Any) -> None:
        self._call("start", name, tuple(pids), dict(properties)["Slice"][1], dict(properties).get("MemoryMax"))

    def set_properties(self, name: str, properties: Any) -> None:
        self._call("set", name, dict(properties))

    def stop(self, name: str) -> None:
        self._call("stop", name)


class FakeExecutor:
    def __init__(self, tree: Path) -> None:
        self.hierarchy = Hierarchy("v2", bytes(tree), dict.fromkeys(("memory", "pids"), bytes(tree)))
        self.told: list[str] = []

    @asynccontextmanager
    async def hold(self, role: str) -> AsyncIterator[int]:
        self.told.append(f"{role} begins")
        try:
            yield 42
        finally:
            self.told.append(f"{role} ends")


@pytest.fixture
def executor(tmp_path: Path) -> FakeExecutor:
    return FakeExecutor(tmp_path)


def spec(path: str) -> ContainerSpec:
    cgroup = CgroupSpec(path, Resources(memory_limit_bytes=100), ())
    return ContainerSpec("c1", ProcessSpec(("sh",)), RootFs(path="/"), cgroup)


def run(systemd: Systemd | None, executor: FakeExecutor, use: Any) -> None:
    async def body() -> None:
        units = Units(systemd, executor)  # type: ignore[arg-type]
        try:
            await use(units)
        finally:
            units.close()

    work: Coroutine[Any, Any, None] = body()
    asyncio.run(work)


def test_a_process_stands_in_until_the_container_was_started(executor: FakeExecutor) -> None:
    systemd = FakeSystemd()

    async def use(units: Units) -> None:
        async with units.started(spec(SCOPE)):
            assert systemd.calls == [("start", "crishim-c1.scope", (42,), "kubepods-pod1.slice", ("t", 100))]
            assert executor.told == ["hold begins"]
        assert executor.told == ["hold begins", "hold ends"]

    run(systemd, executor, use)


def test_a_scope_that_is_not_made_fails_the_start_and_leaves_nobody_standing(executor: FakeExecutor) -> None:
    async def use(units: Units) -> None:
        with pytest.raises(StartFailed, match="making the cgroup: it is away"):
            async with units.started(spec(SCOPE)):
                raise AssertionError("the container is not started")

    run(FakeSystemd("it is away"), executor, use)
    assert executor.told == ["hold begins", "hold ends"]
    executor.told.clear()

    async def without(units: Units) -> None:
        with pytest.raises(StartFailed, match="systemd is not the init"):
            async with units.started(spec(SCOPE)):
                raise AssertionError("the container is not started")

    run(None, executor, without)


def test_what_fails_in_the_start_itself_keeps_its_error(executor: FakeExecutor) -> None:
    async def use(units: Units) -> None:
        with pytest.raises(Unavailable, match=r"^the monitor died$"):
            async with units.started(spec(SCOPE)):
                raise Unavailable("the monitor died")

    run(FakeSystemd(), executor, use)
    assert executor.told == ["hold begins", "hold ends"]


def test_cgroups_of_our_own_are_none_of_systemds(executor: FakeExecutor, tmp_path: Path) -> None:
    systemd = FakeSystemd()
    (tmp_path / "pod1" / "c1").mkdir(parents=True)

    async def use(units: Units) -> None:
        async with units.started(spec("/pod1/c1")):
            assert executor.told == []
        await units.update(plan("/pod1/c1", Resources(memory_limit_bytes=5), None, executor.hierarchy))
        await units.stop("/pod1/c1")

    run(systemd, executor, use)
    assert systemd.calls == []


def test_limits_are_told_when_there_are_any(executor: FakeExecutor) -> None:
    systemd = FakeSystemd()

    async def use(units: Units) -> None:
        await units.update(plan(SCOPE, Resources(), None, executor.hierarchy))
        await units.update(plan(SCOPE, Resources(pids_limit=5), None, executor.hierarchy))

    run(systemd, executor, use)
    assert systemd.calls == [("set", "crishim-c1.scope", {"TasksMax": ("t", 5)})]


@pytest.mark.parametrize(("populated", "stopped"), [(0, [("stop", "crishim-c1.scope")]), (1, []), (None, [])])
def test_only_a_unit_that_is_there_and_empty_is_stopped(
    executor: FakeExecutor, tmp_path: Path, populated: int | None, stopped: list[Any]
) -> None:
    """systemd would kill what is in it, and removal of a container must not kill."""
    systemd = FakeSystemd()
    if populated is not None:
        (tmp_path / SCOPE[1:]).mkdir(parents=True)
        (tmp_path / SCOPE[1:] / "cgroup.events").write_text(f"populated {populated}\nfrozen 0\n")
    run(systemd, executor, lambda units: units.stop(SCOPE))
    assert systemd.calls == stopped
