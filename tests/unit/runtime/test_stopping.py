"""Stopping against fakes: signal, grace, kill, and an end to every wait."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crishim.cgroups import effects
from crishim.cgroups.hierarchy import Hierarchy
from crishim.errors import Exhausted, Unavailable
from crishim.model.container import Container, ContainerConfig, ContainerState, ContainerUser
from crishim.model.exit import ExitRecord
from crishim.model.node import CgroupDriver
from crishim.model.process import CgroupSpec, ContainerSpec, Namespace, NamespaceKind, ProcessSpec, RootFs
from crishim.model.sandbox import Sandbox, SandboxConfig, SandboxState
from crishim.runtime.exits import Exits
from crishim.runtime.helper import Helper
from crishim.runtime.live import Live, LiveContainer
from crishim.runtime.operations import Locks, Operations
from crishim.runtime.places import Places
from crishim.runtime.settings import Settings
from crishim.runtime.stopping import Stopping
from crishim.spec.facts import NodeAbilities
from crishim.store.store import Store

SANDBOX, CONTAINER = "s" * 64, "c" * 64
SPEC = ContainerSpec(
    CONTAINER,
    ProcessSpec(("sh",)),
    RootFs(path="/r"),
    CgroupSpec("/pods/p/c"),
    namespaces=(Namespace(NamespaceKind.PID),),
)


class Quiet:
    """An observer that remembers signals."""

    def __init__(self) -> None:
        self.signals: list[tuple[str, str]] = []

    def signal_sent(self, name: str, sender: str) -> None:
        self.signals.append((name, sender))

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: None


class Scene:
    """A server with one running container whose process exists only in this object."""

    def __init__(self, state: Path, monkeypatch: pytest.MonkeyPatch, *, kill_wait_s: float = 5.0) -> None:
        self.store = Store(state, "boot")
        self.store.put_sandbox(Sandbox(SANDBOX, SandboxConfig("p", "u", "n"), SandboxState.READY, 1))
        self.store.put_container(_container())
        self.observer = Quiet()
        self.live, self.locks = Live(), Locks()
        places, operations, helper = Places(state), Operations(), Helper()
        places.make_sandbox(SANDBOX)
        hierarchy = Hierarchy("v2", b"/nowhere", {})
        self.exits = Exits(
            self.store,
            self.live,
            places,
            hierarchy,
            operations,
            helper,
            self.observer,
            record_again_s=0.001,
        )
        settings = Settings(
            node=NodeAbilities((6, 18), "x86_64", frozenset()),
            state_dir=str(state),
            root_dir=str(state),
            cgroup_root="/x",
            netns_prefix="x",
            cgroup_driver=CgroupDriver.CGROUPFS,
            kill_wait_s=kill_wait_s,
        )
        self.stopping = Stopping(self.store, self.live, self.exits, hierarchy, operations, helper, self.locks, settings)
        self.live.add(LiveContainer(SANDBOX, SPEC, 7, -1))
        self.kills = 0
        self.dies_of_kill = True
        loop = asyncio.get_running_loop()

        def kill(_: Hierarchy, path: str) -> None:
            assert path == "/pods/p/c"
            self.kills += 1
            if self.dies_of_kill:
                loop.call_soon_threadsafe(self.ends, 137, 9)

        monkeypatch.setattr(effects, "kill", kill)

    def ends(self, code: int, number: int | None = None) -> None:
        self.exits.receive(SANDBOX, ExitRecord(CONTAINER, 7, 1, 1 << 62, code, number))

    @property
    def container(self) -> Container:
        return self.store.get_container(CONTAINER)


def _container() -> Container:
    return Container(
        id=CONTAINER,
        sandbox_id=SANDBOX,
        config=ContainerConfig("main"),
        state=ContainerState.RUNNING,
        created_at_ns=1,
        image_id="i",
        image_ref="i",
        image_name="i",
        user=ContainerUser(0, 0),
        stop_signal=int(signal.SIGUSR1),
        pid=7,
    )


def play(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scene, 20))


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_no_grace_is_a_kill_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        stage = Scene(tmp_path, monkeypatch)
        await stage.stopping.stop(CONTAINER, 0)
        assert (stage.container.exit_code, stage.container.reason, stage.kills) == (137, "Error", 1)
        assert stage.observer.signals == [("SIGKILL", "stop")]

    play(scene())


def test_a_process_that_obeys_is_not_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        stage = Scene(tmp_path, monkeypatch)
        call = asyncio.ensure_future(stage.stopping.stop(CONTAINER, 100))
        await settle()
        assert stage.observer.signals == [("SIGUSR1", "stop")]
        stage.ends(0)
        await call
        assert (stage.container.reason, stage.kills) == ("Completed", 0)

    play(scene())


def test_a_second_call_brings_the_kill_forward_and_never_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        stage = Scene(tmp_path, monkeypatch)
        calls = [asyncio.ensure_future(stage.stopping.stop(CONTAINER, grace)) for grace in (1000, 2000)]
        await settle()
        assert stage.kills == 0
        await stage.stopping.stop(CONTAINER, 0)
        await asyncio.gather(*calls)
        assert stage.observer.signals == [("SIGUSR1", "stop"), ("SIGKILL", "stop")]

    play(scene())


def test_a_process_that_cannot_die_does_not_keep_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        stage = Scene(tmp_path, monkeypatch, kill_wait_s=0.1)
        stage.dies_of_kill = False
        with pytest.raises(Unavailable, match="process 7 was killed but does not die"):
            await stage.stopping.stop(CONTAINER, 0)
        assert stage.container.state is ContainerState.RUNNING
        stage.dies_of_kill = True
        await stage.stopping.stop(CONTAINER, 0)
        assert stage.container.state is ContainerState.EXITED

    play(scene())


def test_a_start_that_hangs_does_not_keep_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        stage = Scene(tmp_path, monkeypatch, kill_wait_s=0.05)
        async with stage.locks.of(CONTAINER):
            with pytest.raises(Unavailable, match="still being started"):
                await stage.stopping.stop(CONTAINER, 0)

    play(scene())


def test_what_is_gone_or_exited_is_stopped_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        stage = Scene(tmp_path, monkeypatch)
        await stage.stopping.stop("d" * 64, 0)
        stage.ends(3)
        await stage.stopping.stop(CONTAINER, 0)
        assert (stage.container.exit_code, stage.kills, stage.observer.signals) == (3, 0, [])

    play(scene())


def test_an_exit_is_recorded_when_the_state_directory_has_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        stage = Scene(tmp_path, monkeypatch)
        change, full = stage.store.update_container, True

        def update(container_id: str, changed: Callable[[Container], Container]) -> Container:
            if full:
                raise Exhausted("the state directory is full")
            return change(container_id, changed)

        monkeypatch.setattr(stage.store, "update_container", update)
        running = stage.live.find(CONTAINER)
        assert running is not None
        stage.ends(3)
        stage.ends(3)
        await settle()
        assert (stage.container.exit_code, running.exited.is_set()) == (0, False)
        full = False
        await running.exited.wait()
        assert stage.container.exit_code == 3

    play(scene())


def test_a_note_that_cannot_be_written_does_not_hold_up_the_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        stage = Scene(tmp_path, monkeypatch)
        (tmp_path / "sandboxes" / SANDBOX / "stops").rmdir()
        await stage.stopping.stop(CONTAINER, 0)
        assert (stage.container.state, stage.kills) == (ContainerState.EXITED, 1)

    play(scene())


def test_a_loss_of_the_monitor_ends_the_other_containers_when_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        stage = Scene(tmp_path, monkeypatch)
        stage.live.ended(CONTAINER)
        unknown = replace(SPEC, id="a" * 64)  # to the store, so its end cannot be recorded
        stage.live.add(LiveContainer(SANDBOX, unknown, 8, -1))
        stage.live.add(LiveContainer(SANDBOX, SPEC, 7, -1))
        stage.dies_of_kill = False
        await stage.exits.monitor_lost(SANDBOX)
        assert stage.container.state is ContainerState.EXITED

    play(scene())


def test_an_exit_that_comes_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        stage = Scene(tmp_path, monkeypatch)
        stage.ends(3)
        stage.ends(4)
        assert stage.container.exit_code == 3

    play(scene())


def test_an_exit_that_overtakes_the_answer_of_the_start_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        stage = Scene(tmp_path, monkeypatch)
        stage.ends(5)
        stage.exits.started(LiveContainer(SANDBOX, SPEC, 7, -1), 1)
        assert (stage.container.state, stage.container.exit_code) == (ContainerState.EXITED, 5)
        assert stage.live.find(CONTAINER) is None

    play(scene())
