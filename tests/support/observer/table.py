"""The differences that are known, as `docs/differences.md` lists them, and what of a run they do not explain.

A row has patterns (fnmatch) of observables, words that say where it holds, a cell for each runtime, and the reason. A
cell is a pattern of the value; "=" is the same as ours, "-" is no such observable.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

OURS = "crishim"
ABSENT = "-"
SAME = "="
#: what a word under "where" is about: a row holds where one word of each kind, if it has any, is true
_KINDS = (
    frozenset({"plain", "terminal", "user", "bare", "mapped"}),
    frozenset({"init", "exec"}),
    frozenset({"v1", "v2"}),
    frozenset({"kcore", "no-kcore"}),
)

Answers = Mapping[str, Mapping[str, Mapping[str, Mapping[str, str]]]]
"""Runtime to container to role to observable to value."""


@dataclass(frozen=True)
class Difference:
    """One observable of one process that is not the same everywhere."""

    container: str
    role: str
    observable: str
    values: Mapping[str, str]

    def __str__(self) -> str:
        values = " | ".join(f"{name}: {value}" for name, value in self.values.items())
        return f"{self.observable} ({self.container}, {self.role}) | {values}"


@dataclass(frozen=True)
class Known:
    """One row of the page."""

    observables: tuple[str, ...]
    where: frozenset[str]
    cells: Mapping[str, str]
    reason: str

    def holds(self, words: frozenset[str]) -> bool:
        """Whether the row is about the place that these words describe."""
        return all(self.where & kind <= set() or self.where & kind & words for kind in _KINDS)

    def explains(self, difference: Difference, machine: frozenset[str]) -> bool:
        """Whether the row lists this difference."""
        return (
            self.holds(machine | {difference.container, difference.role})
            and any(_any_like((difference.observable,), pattern) for pattern in self.observables)
            and all(self._fits(name, difference.values) for name in difference.values)
        )

    def _fits(self, name: str, values: Mapping[str, str]) -> bool:
        cell = self.cells[name]
        return values[name] == values[OURS] if cell == SAME else fnmatchcase(values[name], cell)


def read_table(page: str) -> list[Known]:
    """The rows of every table whose columns are observable, where, the runtimes and why. ValueError names a bad row."""
    return list(_rows(page))


def _rows(page: str) -> Iterator[Known]:
    names: list[str] = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")] if line.startswith("|") else []
        if not cells:
            names = []
        elif cells[0] == "observable":
            names = cells[2:-1]
        elif names and not line.startswith("|--"):
            if len(cells) != len(names) + 3:
                raise ValueError(f"{len(cells)} cells instead of {len(names) + 3}: {line}")
            patterns = tuple(re.findall(r"`([^`]+)`", cells[0]))
            where = frozenset(cells[1].split())
            if not patterns or not where <= frozenset().union(*_KINDS) or not cells[-1]:
                raise ValueError(f"no patterns, unknown words or no reason: {line}")
            yield Known(
                patterns, where, dict(zip(names, (cell.strip("`") for cell in cells[2:-1]), strict=True)), cells[-1]
            )


def differences(answers: Answers) -> list[Difference]:
    """What is not the same under every runtime."""
    found = []
    for container, roles in answers[OURS].items():
        for role in roles:
            seen = {name: answers[name][container][role] for name in answers}
            for observable in sorted(set().union(*seen.values())):
                values = {name: said.get(observable, ABSENT) for name, said in seen.items()}
                if len(set(values.values())) > 1:
                    found.append(Difference(container, role, observable, values))
    return found


def unlisted(found: Iterable[Difference], known: list[Known], machine: frozenset[str]) -> list[Difference]:
    """Differences that no row explains."""
    return [each for each in found if not any(row.explains(each, machine) for row in known)]


def vanished(answers: Answers, known: Iterable[Known], machine: frozenset[str]) -> list[str]:
    """Patterns of rows about this machine that explain nothing any more, though it has what they are about."""
    found = differences(answers)
    seen = {
        name for runtime in answers.values() for roles in runtime.values() for said in roles.values() for name in said
    }
    gone = []
    for row in known:
        if not row.holds(machine | _KINDS[0] | _KINDS[1]):
            continue
        explained = {each.observable for each in found if row.explains(each, machine)}
        gone += [
            f"{pattern}: {row.reason}"
            for pattern in row.observables
            if _any_like(seen, pattern) and not _any_like(explained, pattern)
        ]
    return gone


def _any_like(names: Iterable[str], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)
