"""The check from end to end, with a node that is a value and ways to free that a test decides."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from crishim.errors import TimedOut, Unavailable
from crishim.images.store import StoreUse
from crishim.model.leftover import Finding, GarbageReport, LeftoverKind
from crishim.model.sandbox import Sandbox, SandboxConfig, SandboxState
from crishim.network.door import NetworkObject
from crishim.runtime.garbage.collection import INVENTORY_ROLE, Garbage
from crishim.runtime.garbage.free import Freeing
from crishim.runtime.garbage.ledger import Ledger
from crishim.runtime.garbage.owners import Instance
from crishim.runtime.live import Live
from crishim.runtime.operations import Operation, Operations
from crishim.runtime.places import Places
from crishim.store.store import Store

GONE, OTHER, LIVES = "0" * 64, "1" * 64, "a" * 64
PIN = f"crishim-x-{GONE}"


class Fakes:
    """The node, and what the check does with it."""

    def __init__(self, tmp_path: Path, interval_s: float = 0.0) -> None:
        self.pins: list[str] = []
        self.roots: list[str] = []
        self.attempts: list[str] = []
        self.events: list[tuple[str, str]] = []
        self.ended: list[str] = []
        self.reconciled: list[set[str]] = []
        #: raised by the attempts to free, in turn; None frees
        self.failures: list[Exception | None] = []
        #: raised by the look
        self.hang: Exception | None = None
        self.network: list[NetworkObject] = []
        self.looked: Callable[[], None] = lambda: None
        self.freed: Callable[[], None] = lambda: None
        self.looks = 0
        self.operations = Operations()
        self.live = Live()
        self.store = Store(tmp_path, "boot")
        self.ledger = Ledger(tmp_path / "leftovers.json", jitter=lambda: 0.5)
        self.garbage = Garbage(
            instance=Instance("/crishim-x.slice", "cni", "crishim-x", str(tmp_path), "/root"),
            interval_s=interval_s,
            store=self.store,
            durable=cast(Any, self),
            live=self.live,
            operations=self.operations,
            executor=cast(Any, self),
            network=cast(Any, self),
            images=cast(Any, self),
            places=Places(tmp_path),
            unwatched=cast(Any, self),
            ledger=self.ledger,
            observer=cast(Any, self),
            freeing=lambda live_ids: cast(Freeing, self),
        )

    pid = 1

    async def run_role(self, role: str, request: Mapping[str, object], timeout_s: float) -> dict[str, object]:
        assert role == INVENTORY_ROLE
        if self.hang is not None:
            raise self.hang
        self.looks += 1
        answer: dict[str, object] = {
            "cgroups": [],
            "processes": [],
            "pins": [each.encode() for each in self.pins],
            "mounts": [],
            "sandboxes": [],
            "filters": [],
            "roots": [each.encode() for each in self.roots],
            "layers": [],
            "blobs": [],
            "spools": [],
            "problems": [],
        }
        self.looked()
        return answer

    async def sandbox_reservations(self) -> list[object]:
        return []

    async def survey(self, *, deadline_s: float) -> Sequence[NetworkObject]:
        return tuple(self.network)

    async def reconcile(self, live_ids: Iterable[str], *, deadline_s: float) -> tuple[str, ...]:
        self.reconciled.append(set(live_ids))
        return ("stubborn",)

    async def use(self) -> StoreUse:
        return StoreUse()

    async def free(self, finding: Finding) -> None:
        self.attempts.append(finding.name)
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        self.pins = [each for each in self.pins if each not in finding.name]
        self.roots = [each for each in self.roots if each not in finding.name]
        self.freed()

    async def end_sandbox(self, sandbox: Sandbox, *, rebooted: bool) -> None:
        self.ended.append(sandbox.id)

    def leftover_freed(self, kind: str) -> None:
        self.events.append(("freed", kind))

    def leftover_failed(self, kind: str) -> None:
        self.events.append(("failed", kind))

    def leftovers_looked_for(self, seconds: float) -> None:
        self.events.append(("looked", ""))

    def put_sandbox(self, id: str, netns_path: str | None = None) -> None:
        sandbox = Sandbox(id, SandboxConfig("pod", "uid", "ns"), SandboxState.READY, 1, netns_path=netns_path)
        self.store.put_sandbox(sandbox)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crishim.runtime.garbage.collection._SECOND_LOOK_S", 0.0)


def outcomes(report: GarbageReport) -> list[tuple[str, str]]:
    return [(each.kind, each.outcome) for each in report.leftovers]


def test_a_dry_run_frees_nothing_and_a_collection_frees_all(tmp_path: Path) -> None:
    async def scenario() -> None:
        node = Fakes(tmp_path)
        node.pins, node.roots = [PIN], [GONE]
        assert outcomes(await node.garbage.check(dry_run=True)) == [("netns", "found"), ("rootfs", "found")]
        assert (node.attempts, node.garbage.counts()["netns"]) == ([], 1)
        assert outcomes(await node.garbage.check(dry_run=False)) == [("netns", "freed"), ("rootfs", "freed")]
        assert node.events == [("freed", "netns"), ("freed", "rootfs")]
        assert outcomes(await node.garbage.check(dry_run=False)) == []
        assert (node.garbage.leftovers(), set(node.garbage.counts().values())) == ([], {0})

    asyncio.run(scenario())


def test_what_only_one_look_saw_is_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        node = Fakes(tmp_path)
        node.pins = [PIN]
        node.looked = node.pins.clear
        assert outcomes(await node.garbage.check(dry_run=False)) == []
        assert (node.looks, node.attempts) == (2, [])

    asyncio.run(scenario())


def test_on_a_healthy_node_the_second_look_comes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crishim.runtime.garbage.collection._SECOND_LOOK_S", 3600.0)

    async def scenario() -> None:
        async with asyncio.timeout(10):
            assert outcomes(await Fakes(tmp_path).garbage.check(dry_run=True)) == []

    asyncio.run(scenario())


def test_what_an_operation_makes_is_nobodys_but_its_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        node = Fakes(tmp_path)
        node.pins = [PIN]
        ends = asyncio.Event()

        async def run_sandbox(operation: Operation) -> None:
            operation.concern(GONE)
            await ends.wait()

        async with asyncio.TaskGroup() as group:
            group.create_task(node.operations.run(("RunPodSandbox", "pod"), run_sandbox, stage="run_sandbox.reserved"))
            await asyncio.sleep(0)
            assert outcomes(await node.garbage.check(dry_run=False)) == []
            ends.set()
        assert outcomes(await node.garbage.check(dry_run=False)) == [("netns", "freed")]

    asyncio.run(scenario())


def test_what_came_to_life_after_the_look_is_left_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        node = Fakes(tmp_path)
        node.pins, node.roots = [PIN], [OTHER]
        node.freed = lambda: node.put_sandbox(OTHER)
        assert outcomes(await node.garbage.check(dry_run=False)) == [("netns", "freed")]
        assert node.attempts == [f"/run/netns/{PIN}"]

    asyncio.run(scenario())


def test_by_itself_it_needs_two_checks_and_lets_failures_rest(tmp_path: Path) -> None:
    async def scenario() -> None:
        node = Fakes(tmp_path, interval_s=0.001)
        node.pins, node.failures = [PIN], [OSError(16, "device is busy", "/run/netns/x")]
        looks_at_first_attempt: list[int] = []
        node.looked = lambda: looks_at_first_attempt.append(len(node.attempts))
        node.operations.spawn(node.garbage.run(), "checks")
        await node.until(lambda: node.looks > 6)
        assert looks_at_first_attempt[:2] == [0, 0]
        assert len(node.attempts) == 1, "it rests"
        (left,) = node.garbage.leftovers()
        assert (left.outcome, left.attempts) == ("failed", 1)
        assert left.error == "device is busy: '/run/netns/x'"
        assert outcomes(await node.garbage.check(dry_run=False)) == [("netns", "freed")], (
            "asked for, it is tried at once"
        )
        await node.operations.close(1)

    asyncio.run(scenario())


def test_another_interval_counts_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        node = Fakes(tmp_path, interval_s=0.0)
        node.operations.spawn(node.garbage.run(), "checks")
        await asyncio.sleep(0)
        assert node.looks == 0
        node.garbage.configure(0.001)
        await node.until(lambda: node.looks > 2)
        node.garbage.configure(3600.0)
        await asyncio.sleep(0)
        node.garbage.configure(0.001)
        seen = node.looks
        await node.until(lambda: node.looks > seen + 2)
        await node.operations.close(1)

    asyncio.run(scenario())


def test_a_check_that_fails_is_told_and_comes_again_more_seldom(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        node = Fakes(tmp_path, interval_s=0.001)
        node.hang = TimedOut("inventory did not end within 20 s")
        node.operations.spawn(node.garbage.run(), "checks")
        await node.until(lambda: len(node.events) == 2)
        node.hang = None
        await node.until(lambda: node.looks == 2)
        await node.operations.close(1)

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert "leftovers were not all looked for: the node: inventory did not end within 20 s" in caplog.text


def test_from_a_part_that_could_not_be_looked_at_nothing_is_concluded(tmp_path: Path) -> None:
    async def scenario() -> None:
        node = Fakes(tmp_path)
        node.pins, node.failures = [PIN], [Unavailable("busy")]
        await node.garbage.check(dry_run=False)
        node.hang = TimedOut("it hangs")
        report = await node.garbage.check(dry_run=False)
        assert (outcomes(report), report.problems) == ([], ("the node: it hangs",))
        assert len(node.garbage.leftovers()) == 1, "it is not forgotten"

    asyncio.run(scenario())


def test_at_a_start_one_look_is_enough_and_the_network_is_swept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        node = Fakes(tmp_path)
        node.put_sandbox(LIVES)
        node.live.silent.add(LIVES)
        node.pins, node.failures = [PIN], [None]
        await node.garbage.collect_at_start()
        assert (node.looks, node.attempts) == (1, [f"/run/netns/{PIN}"])
        assert node.reconciled == [{LIVES}]

    asyncio.run(scenario())
    assert "the network of sandbox stubborn could not be removed; it is tried again later" in caplog.text


def test_a_start_goes_on_when_nothing_can_be_looked_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        node = Fakes(tmp_path)

        async def broken() -> list[object]:
            raise Unavailable("the disk is gone")

        node.sandbox_reservations = broken  # type: ignore[method-assign]
        await node.garbage.collect_at_start()

    asyncio.run(scenario())
    assert "the disk is gone" in caplog.text


def test_the_network_of_what_rests_is_not_swept(tmp_path: Path) -> None:
    async def scenario() -> None:
        node = Fakes(tmp_path)
        node.network, node.failures = [NetworkObject("attachment", GONE, GONE)], [Unavailable("the plugin fails")]
        await node.garbage.collect_at_start()
        assert node.reconciled == [{GONE}]

    asyncio.run(scenario())


def test_a_ready_pod_without_a_monitor_is_ended_as_recovery_would(tmp_path: Path) -> None:
    async def scenario() -> None:
        node = Fakes(tmp_path)
        node.put_sandbox(LIVES)
        report = await node.garbage.check(dry_run=True)
        assert [(each.kind, each.missing, each.outcome) for each in report.leftovers] == [("process", True, "found")]
        assert node.ended == []
        assert outcomes(await node.garbage.check(dry_run=False)) == [("process", "said")]
        assert node.ended == [LIVES]

    asyncio.run(scenario())


def test_two_that_ask_at_once_share_a_check(tmp_path: Path) -> None:
    async def scenario() -> None:
        node = Fakes(tmp_path)
        reports = await asyncio.gather(*(node.garbage.check(dry_run=True) for _ in range(3)))
        assert (node.looks, reports[0] is reports[2]) == (2, True)

    asyncio.run(scenario())


def test_a_process_is_killed_only_while_its_number_means_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        child = await asyncio.create_subprocess_exec("sleep", "1000")
        nothing = cast(Any, None)
        freeing = Freeing(
            settings=cast(Any, SimpleNamespace(kill_wait_s=10.0)),
            durable=nothing,
            network=nothing,
            images=cast(Any, SimpleNamespace(rootfs=None)),
            live=nothing,
            places=nothing,
            removal=nothing,
            take_back=nothing,
            helper=nothing,
            live_ids=set,
        )
        stat = Path(f"/proc/{child.pid}/stat").read_text()
        started = int(stat.rpartition(")")[2].split()[19])
        kind = LeftoverKind.PROCESS
        await freeing.free(Finding(kind, "sleep", pid=child.pid, started_ticks=started + 1))
        assert child.returncode is None
        await freeing.free(Finding(kind, "sleep", pid=child.pid, started_ticks=started))
        assert await child.wait() == -9
        await freeing.free(Finding(kind, "sleep", pid=child.pid, started_ticks=started))

    asyncio.run(scenario())
