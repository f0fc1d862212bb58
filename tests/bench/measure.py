"""Samples, CPU time, proportional memory and tables; nothing here knows what is measured."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """Durations of the same operation done many times, and the CPU time all of them took together."""

    seconds: tuple[float, ...]
    cpu_s: float | None = None

    @property
    def p50_ms(self) -> float:
        return statistics.median(self.seconds) * 1e3

    @property
    def p99_ms(self) -> float:
        """The 99th percentile; with fewer than 100 durations the largest one."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, round(len(ordered) * 0.99))] * 1e3

    @property
    def cpu_ms(self) -> float | None:
        """CPU time of one operation."""
        return None if self.cpu_s is None else self.cpu_s / len(self.seconds) * 1e3


def repeat(operation: Callable[[], object], count: int, cpu: Callable[[], float] | None = None) -> Sample:
    """Times an operation `count` times after one that does not count; `cpu` reads CPU seconds used so far."""
    operation()
    before = cpu() if cpu else 0.0
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        operation()
        seconds.append(time.perf_counter() - started)
    return Sample(tuple(seconds), cpu() - before if cpu else None)


def alternate(
    operations: Mapping[str, Callable[[], object]], count: int, cpu: Mapping[str, Callable[[], float]]
) -> dict[str, Sample]:
    """Times operations of the same kind in turn, so that what else the machine does meets all of them alike.

    Keys are whose operation it is; the first of each does not count. cpu reads CPU seconds used so far.
    """
    seconds: dict[str, list[float]] = {name: [] for name in operations}
    used = dict.fromkeys(operations, 0.0)
    for operation in operations.values():
        operation()
    for _ in range(count):
        for name, operation in operations.items():
            before, started = cpu[name](), time.perf_counter()
            operation()
            seconds[name].append(time.perf_counter() - started)
            used[name] += cpu[name]() - before
    return {name: Sample(tuple(seconds[name]), used[name]) for name in operations}


def children_cpu_s() -> float:
    """User and system time of this process's children that ended and of those they waited for."""
    usage = os.times()
    return usage.children_user + usage.children_system


def cgroup_cpu_s(cgroup: str) -> float:
    """CPU time of a cgroup and all below it, since it exists."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        lines = (root / cgroup.lstrip("/") / "cpu.stat").read_text().splitlines()
        return int(dict(line.split() for line in lines)["usage_usec"]) / 1e6
    return int((root / "cpuacct" / cgroup.lstrip("/") / "cpuacct.usage").read_text()) / 1e9


def pss_bytes(pids: Iterable[int]) -> int:
    """Proportional memory of these processes; one that ended meanwhile counts nothing."""
    total = 0
    for pid in pids:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Pss:"))
    return total


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; numbers get a precision that fits their size, None is a dash."""
    lines = [f"\n## {title}\n", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return str(value)
