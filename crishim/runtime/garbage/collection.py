"""Nothing stays and nothing leaks: the node is looked at now and then, and what is nobody's is freed.

One mechanism for all of it: a start calls it once, the running server every minute, and an operator by `crishim gc`.
What cannot be freed rests and is tried again, ever more seldom; metrics and Status show it meanwhile. What a living pod
lacks is said, and never made anew by guess. No request waits for any of this.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from crishim.errors import CrishimError, NotFound
from crishim.images.store import ImageStore
from crishim.model.container import ContainerState
from crishim.model.leftover import Finding, GarbageReport, Leftover, LeftoverKind, Outcome
from crishim.network.door import Network
from crishim.runtime.executor import Executor
from crishim.runtime.garbage.compare import blind_kinds, compare
from crishim.runtime.garbage.free import Freeing
from crishim.runtime.garbage.ledger import Entry, Ledger
from crishim.runtime.garbage.owners import Instance, Owners, both, owners
from crishim.runtime.garbage.present import Present, present
from crishim.runtime.live import Live
from crishim.runtime.observer import Observer
from crishim.runtime.operations import Operation, Operations
from crishim.runtime.places import Places
from crishim.runtime.unwatched import Unwatched
from crishim.store.durable import DurableStore
from crishim.store.store import Store

logger = logging.getLogger(__name__)

#: names of the roles that look; `app/serve.py` gives them to the zygote
INVENTORY_ROLE = "inventory"
FILTERS_ROLE = "filter_users"
#: of each part of a look; a child that hangs is killed
_LOOK_S = 20.0
#: of one attempt to free something, and of all those of one check
_FREE_S, _ROUND_S = 60.0, 300.0
#: things of one kind that are freed at the same time
_AT_ONCE = 8
#: between the two looks of a check that somebody waits for
_SECOND_LOOK_S = 0.5
#: checks that fail come more and more seldom, up to this pause
_LONGEST_PAUSE_S = 3600.0
#: plugins are asked to collect: after the start, when their daemons have had time to come up too, and then each hour
_PLUGINS_FIRST_S, _PLUGINS_EVERY_S = 300.0, 3600.0

T = TypeVar("T")


class Garbage:
    """The check and the collection of one server."""

    def __init__(
        self,
        *,
        instance: Instance,
        interval_s: float,
        store: Store,
        durable: DurableStore,
        live: Live,
        operations: Operations,
        executor: Executor,
        network: Network,
        images: ImageStore,
        places: Places,
        unwatched: Unwatched,
        ledger: Ledger,
        observer: Observer,
        freeing: Callable[[Callable[[], Iterable[str]]], Freeing],
    ) -> None:
        """interval_s: between two checks of `run`, 0 for none. freeing: given what tells whose network stays."""
        self._instance = instance
        self._interval_s = interval_s
        self._store = store
        self._durable = durable
        self._live = live
        self._operations = operations
        self._executor = executor
        self._network = network
        self._images = images
        self._places = places
        self._unwatched = unwatched
        self._ledger = ledger
        self._observer = observer
        self._freeing = freeing(self._network_stays)
        #: one check at a time
        self._lock = asyncio.Lock()
        self._plugins_due_s = time.monotonic() + _PLUGINS_FIRST_S
        #: the interval is another one
        self._changed = asyncio.Event()

    def configure(self, interval_s: float) -> None:
        """Another interval between two checks of `run`, counted from now; 0 for none."""
        self._interval_s = interval_s
        self._changed.set()

    # -- who asks

    async def collect_at_start(self) -> None:
        """Free what earlier servers have left, before the first call is answered: one look is certain then."""
        try:
            async with self._lock:
                findings, blind, _ = await self._look()
                entries = self._ledger.see(findings, time.time_ns(), blind=blind, certain=True)
                await self._settle(entries, forced=True)
                await self._sweep_network()
        except (CrishimError, TimeoutError) as error:
            logger.warning("what earlier servers have left was not looked for, it is tried again: %s", error)

    async def run(self) -> None:
        """A check every `interval_s`, for as long as the server runs; `Operations.spawn` is its caller."""
        failures = 0
        while True:
            if not await self._is_due(failures):
                continue
            try:
                problems = await self._check_by_itself()
            except (CrishimError, TimeoutError) as error:
                problems = (str(error),)
            failures = min(failures + 1, 16) if problems else 0
            for problem in problems:
                logger.warning("leftovers were not all looked for: %s", problem)

    async def _is_due(self, failures: int) -> bool:
        """Waits for the next check; False when the interval was changed meanwhile."""
        self._changed.clear()
        pause_s = min(self._interval_s * 2**failures, max(self._interval_s, _LONGEST_PAUSE_S))
        try:
            async with asyncio.timeout(pause_s if self._interval_s > 0 else None):
                await self._changed.wait()
        except TimeoutError:
            return True
        return False

    async def check(self, *, dry_run: bool) -> GarbageReport:
        """Look now, twice; free what is nobody's unless it is a dry run, also what rests after a failure."""
        report: GarbageReport = await self._operations.run(
            ("CollectGarbage", dry_run), lambda operation: self._check(dry_run, operation), stage="garbage.look"
        )
        return report

    def leftovers(self) -> list[Leftover]:
        """What is known and not freed yet, from memory."""
        return [entry.told(_rest_of(entry)) for entry in self._ledger.entries()]

    def counts(self) -> dict[str, int]:
        """How many of each kind; may be called from any thread."""
        counts = dict.fromkeys((kind.value for kind in LeftoverKind), 0)
        for entry in self._ledger.entries():
            counts[entry.finding.kind.value] += 1
        return counts

    # -- checks

    async def _check(self, dry_run: bool, operation: Operation) -> GarbageReport:
        async with self._lock:
            began = time.monotonic()
            findings, blind, _ = await self._look()
            self._ledger.see(findings, time.time_ns(), blind=blind)
            if findings:
                await asyncio.sleep(_SECOND_LOOK_S)
            findings, blind, problems = await self._look()
            entries = self._ledger.see(findings, time.time_ns(), blind=blind)
            if dry_run:
                told = [entry.told(Outcome.FOUND) for entry in entries]
            else:
                operation.enter("garbage.free")
                told = await self._settle(entries, forced=True)
            return GarbageReport(dry_run, tuple(told), problems, round(time.monotonic() - began, 3))

    async def _check_by_itself(self) -> tuple[str, ...]:
        async with self._lock:
            began = time.monotonic()
            findings, blind, problems = await self._look()
            self._observer.leftovers_looked_for(time.monotonic() - began)
            await self._settle(self._ledger.see(findings, time.time_ns(), blind=blind), forced=False)
            if time.monotonic() >= self._plugins_due_s:
                self._plugins_due_s = time.monotonic() + _PLUGINS_EVERY_S
                await self._sweep_network()
            return problems

    # -- looking

    async def _look(self) -> tuple[list[Finding], set[LeftoverKind], tuple[str, ...]]:
        """(what is wrong as far as one look can tell, kinds that could not be looked at, why not)."""
        before = await self._owners()
        there = await self._present(before)
        used = await self._filters_used(there)
        everybody = both(before, await self._owners())
        findings = compare(everybody, there, now_ns=time.time_ns(), filters_used=used)
        return findings, blind_kinds(there, used), there.problems

    async def _owners(self) -> Owners:
        async with asyncio.timeout(_LOOK_S):
            reservations = await self._durable.sandbox_reservations()
        return owners(self._instance, self._store, self._live, self._operations, reservations)

    def _owners_now(self) -> Owners:
        return owners(self._instance, self._store, self._live, self._operations, ())

    async def _present(self, who: Owners) -> Present:
        problems: list[str] = []
        answer, network, images = await asyncio.gather(
            _part("the node", self._executor.run_role(INVENTORY_ROLE, self._request(who), timeout_s=_LOOK_S), problems),
            _part("the network", self._network.survey(deadline_s=_LOOK_S), problems),
            _part("the image store", self._images.use(), problems),
        )
        return (
            Present(problems=tuple(problems)) if answer is None else present(answer, network, images, tuple(problems))
        )

    def _request(self, who: Owners) -> dict[str, object]:
        return {
            "cgroup_pods": self._instance.pods.encode(),
            "cgroup_monitors": self._instance.monitors.encode(),
            "cgroup_parents": [path.encode() for path in who.parents()],
            "zygote": self._executor.pid,
            "monitors": [monitor.pid for monitor in self._live.monitors()],
            "netns_prefix": self._instance.netns_prefix.encode(),
            "state": self._instance.state_dir.encode("utf-8", "surrogateescape"),
            "root": self._instance.root_dir.encode("utf-8", "surrogateescape"),
        }

    async def _filters_used(self, there: Present) -> frozenset[str] | None:
        """Specs on disk are read only when a filter is there that no spec in memory has."""
        in_use = self._places.filters_in_use()
        if there.filters is None or there.filters <= in_use:
            return in_use
        request = {"sandboxes": str(self._places.sandboxes).encode("utf-8", "surrogateescape")}
        try:
            answer = await self._executor.run_role(FILTERS_ROLE, request, timeout_s=_LOOK_S)
        except CrishimError:
            return None
        used = answer["used"]
        assert isinstance(used, list)
        return self._places.filters_in_use() | in_use | {each.decode(errors="replace") for each in used}

    # -- what is done about it

    async def _settle(self, entries: list[Entry], *, forced: bool) -> list[Leftover]:
        """Free or say each, users before what they use. forced: also those that rest."""
        give_up = time.monotonic() + _ROUND_S
        told: list[Leftover] = []
        for kind in LeftoverKind:
            gate = asyncio.Semaphore(_AT_ONCE)

            async def settle(entry: Entry, gate: asyncio.Semaphore = gate) -> Leftover | None:
                async with gate:
                    if entry.finding.missing:
                        return await self._say(entry)
                    now = time.monotonic()
                    if now > give_up or (entry.rests_until_s > now and not forced):
                        return entry.told(Outcome.WAITING)
                    return await self._free(entry) if self._is_still_so(entry.finding) else None

            of_kind = [entry for entry in entries if entry.finding.kind is kind]
            told += [each for each in await asyncio.gather(*map(settle, of_kind)) if each is not None]
        return told

    def _is_still_so(self, finding: Finding) -> bool:
        """Whether nobody owns it, looked at once more right before it is freed."""
        now = self._owners_now()
        if finding.kind is LeftoverKind.SOCKET:
            pod = now.pods.get(finding.sandbox_id)
            return pod is not None and not pod.has_monitor and not now.is_busy(finding.sandbox_id)
        member = now.members.get(finding.owner)
        if finding.kind is LeftoverKind.CGROUP and member is not None:
            return member.state is ContainerState.EXITED and not now.is_busy(finding.owner)
        return not finding.owner or not now.is_alive(finding.owner)

    async def _free(self, entry: Entry) -> Leftover:
        finding = entry.finding
        kind = finding.kind.value
        try:
            async with asyncio.timeout(_FREE_S):
                await self._freeing.free(finding)
        except TimeoutError:
            return self._failed(finding, f"it took more than {_FREE_S:g} s")
        except OSError as error:
            where = f": {error.filename!r}" if error.filename else ""
            return self._failed(finding, f"{error.strerror or error}{where}")
        except CrishimError as error:
            return self._failed(finding, str(error))
        logger.info("%s %s was freed: %s", kind, finding.name, finding.problem)
        self._observer.leftover_freed(kind)
        return self._ledger.freed(finding).told(Outcome.FREED)

    def _failed(self, finding: Finding, error: str) -> Leftover:
        kind = finding.kind.value
        entry = self._ledger.failed(finding, error, time.monotonic())
        if entry.attempts & (entry.attempts - 1) == 0:  # the first, second, fourth, ...
            logger.error("%s %s cannot be freed (attempt %d): %s", kind, finding.name, entry.attempts, error)
        self._observer.leftover_failed(kind)
        return entry.told(Outcome.FAILED)

    async def _say(self, entry: Entry) -> Leftover:
        """What a living pod lacks: a pod without its monitor, or a container without a process, is ended as always."""
        finding = entry.finding
        if self._ledger.say(finding):
            logger.error("%s %s is missing: %s", finding.kind.value, finding.name, finding.problem)
        if finding.kind is LeftoverKind.PROCESS:
            now = self._owners_now()
            member = now.members.get(finding.owner)
            sandbox_id = finding.owner if member is None else member.sandbox_id
            try:
                if not now.is_busy(finding.owner) and sandbox_id not in self._live.silent:
                    await self._unwatched.end_sandbox(self._store.get_sandbox(sandbox_id), rebooted=False)
            except NotFound:
                pass
            except CrishimError as error:
                return self._failed(finding, str(error))
        return entry.told(Outcome.SAID)

    async def _sweep_network(self) -> None:
        """What plugins keep for themselves, and the bridge as it should be. Failures show as findings."""
        try:
            left = await self._network.reconcile(self._network_stays(), deadline_s=_ROUND_S)
        except CrishimError as error:
            logger.warning("what is left of earlier pod networks cannot be removed, it is tried again: %s", error)
            return
        for sandbox_id in left:
            logger.warning("the network of sandbox %s could not be removed; it is tried again later", sandbox_id)

    def _network_stays(self) -> set[str]:
        """Ids of sandboxes that live, or are being made or removed, and of those whose network rests after a failure.

        Found without waiting, and the network looks at its records before anybody else has a turn.
        """
        now = self._owners_now()
        resting = {each.finding.owner for each in self._ledger.entries() if each.rests_until_s > time.monotonic()}
        return {*now.pods, *now.busy, *resting}


def _rest_of(entry: Entry) -> Outcome:
    if entry.finding.missing:
        return Outcome.SAID
    return Outcome.FAILED if entry.attempts else Outcome.FOUND


async def _part(what: str, look: Awaitable[T], problems: list[str]) -> T | None:
    """What `look` finds, None when it cannot or takes too long."""
    try:
        async with asyncio.timeout(_LOOK_S):
            return await look
    except TimeoutError:
        problems.append(f"{what}: it did not answer within {_LOOK_S:g} s")
    except (CrishimError, OSError) as error:
        problems.append(f"{what}: {error}")
    return None
