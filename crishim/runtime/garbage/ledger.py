"""What was found and is not freed yet: since when, how often that was tried, and when it is tried again.

Kept in STATE/leftovers.json, which is written only when something is wrong: so the story of a thing that cannot be
freed goes on after a restart of the server. With the boot most of it goes, and what does not is found anew.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from crishim.model.leftover import Finding, Leftover, LeftoverKind, Outcome
from crishim.store import codec

logger = logging.getLogger(__name__)

#: pause after the first failure; it doubles, up to the longest
FIRST_PAUSE_S, LONGEST_PAUSE_S = 60.0, 3600.0
#: each pause is longer or shorter by up to this part of it, so that not everything is tried at once
_JITTER = 0.2

Key = tuple[LeftoverKind, str, bool]


@dataclass(frozen=True, slots=True)
class Entry:
    """A finding and its story."""

    finding: Finding
    #: CLOCK_REALTIME of the first look that saw it
    since_ns: int
    attempts: int = 0
    error: str = ""
    #: CLOCK_MONOTONIC before which it is left alone
    rests_until_s: float = 0.0

    def told(self, outcome: Outcome) -> Leftover:
        """As commands and Status show it."""
        finding = self.finding
        return Leftover(
            kind=finding.kind.value,
            name=finding.name,
            owner=finding.owner,
            problem=finding.problem,
            missing=finding.missing,
            since_ns=self.since_ns,
            outcome=outcome.value,
            attempts=self.attempts,
            error=self.error,
        )


@dataclass(frozen=True, slots=True)
class _Record:
    finding: Finding
    since_ns: int
    attempts: int
    error: str


@dataclass(frozen=True, slots=True)
class _Records:
    leftovers: tuple[_Record, ...]


class Ledger:
    """The one record of leftovers; belongs to the event loop."""

    def __init__(self, path: Path, *, jitter: Callable[[], float] = random.random) -> None:
        """Reads what an earlier server wrote; it may try all of it at once."""
        self._path = path
        self._jitter = jitter
        #: what the last look saw: since when
        self._seen: dict[Key, int] = {}
        self._entries: dict[Key, Entry] = {}
        self._written = False
        #: what is missing and was logged
        self._said: set[Key] = set()
        self._load()

    def see(
        self,
        findings: Iterable[Finding],
        now_ns: int,
        *,
        blind: Collection[LeftoverKind] = (),
        certain: bool = False,
    ) -> list[Entry]:
        """Take in the findings of a look; gives those that an earlier one had seen too, or all when it is certain.

        What is not seen any more is forgotten: somebody else has freed it. Of the kinds in `blind`, which could not be
        looked at, nothing is forgotten and nothing given.
        """
        present = {each.key: each for each in findings}
        entries = {key: each for key, each in self._entries.items() if key[0] in blind}
        for key, finding in present.items():
            known = self._entries.get(key)
            if key[0] in blind:
                continue
            if known is not None:
                entries[key] = replace(known, finding=finding)
            elif certain or key in self._seen:
                entries[key] = Entry(finding, self._seen.get(key, now_ns))
        self._seen = {key: self._seen.get(key, now_ns) for key in [*present, *entries]}
        changed = entries.keys() != self._entries.keys()
        self._entries = entries
        self._said &= entries.keys()
        if changed:
            self._save()
        return [each for key, each in entries.items() if key[0] not in blind]

    def say(self, finding: Finding) -> bool:
        """True the first time that it is said."""
        new = finding.key not in self._said
        self._said.add(finding.key)
        return new

    def failed(self, finding: Finding, error: str, now_s: float) -> Entry:
        """It could not be freed: it rests, longer each time."""
        entry = self._entries[finding.key]
        pause_s = min(FIRST_PAUSE_S * 2**entry.attempts, LONGEST_PAUSE_S)
        pause_s *= 1 + _JITTER * (2 * self._jitter() - 1)
        entry = replace(entry, attempts=entry.attempts + 1, error=error, rests_until_s=now_s + pause_s)
        self._entries[finding.key] = entry
        self._save()
        return entry

    def freed(self, finding: Finding) -> Entry:
        """It is gone."""
        self._seen.pop(finding.key, None)
        entry = self._entries.pop(finding.key)
        self._save()
        return entry

    def entries(self) -> list[Entry]:
        """Everything that is known and not freed."""
        return list(self._entries.values())

    def _load(self) -> None:
        try:
            records = codec.from_bytes(_Records, self._path.read_bytes()).leftovers
        except FileNotFoundError:
            return
        except (OSError, codec.DecodeError) as error:
            logger.warning("%s is ignored: %s", self._path, error)
            return
        self._written = True
        for each in records:
            self._seen[each.finding.key] = each.since_ns
            self._entries[each.finding.key] = Entry(each.finding, each.since_ns, each.attempts, each.error)

    def _save(self) -> None:
        if not self._entries and not self._written:
            return
        records = [_Record(each.finding, each.since_ns, each.attempts, each.error) for each in self._entries.values()]
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        try:
            temporary.write_bytes(codec.to_bytes(_Records(tuple(records))))
            os.replace(temporary, self._path)
            self._written = True
        except OSError as error:  # on a full disk the leftovers matter less than all else
            logger.warning("%s cannot be written: %s", self._path, error.strerror)
            with suppress(OSError):
                temporary.unlink()
