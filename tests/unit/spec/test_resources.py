"""Changed limits: what is given is set, what is not stays."""

from __future__ import annotations

import pytest

from crishim.model.resources import Resources
from crishim.spec.resources import changed, merged


def test_none_keeps_and_maps_are_merged_by_key() -> None:
    old = Resources(cpu_shares=512, memory_limit_bytes=100, unified={"a": "1", "b": "2"}, hugepage_limits={"2MB": 0})
    new = Resources(memory_limit_bytes=200, cpuset_cpus="0-1", unified={"b": "3"})
    assert merged(old, new) == Resources(
        cpu_shares=512,
        memory_limit_bytes=200,
        cpuset_cpus="0-1",
        unified={"a": "1", "b": "3"},
        hugepage_limits={"2MB": 0},
    )


def test_an_empty_change_changes_nothing() -> None:
    old = Resources(cpu_shares=512, unified={"a": "1"})
    assert merged(old, Resources()) == old


@pytest.mark.parametrize("old", [Resources(), Resources(oom_score_adj=100)])
def test_the_score_of_the_processes_is_no_limit_and_stays(old: Resources) -> None:
    new = Resources(cpu_shares=512, oom_score_adj=900)
    assert merged(old, new).oom_score_adj == old.oom_score_adj
    assert changed(merged(old, new), new) == Resources(cpu_shares=512)


@pytest.mark.parametrize(
    ("limit", "total", "asked", "becomes"),
    [
        (100, 100, 200, 200),  # no swap stays none
        (100, 150, 200, 250),  # room of 50 stays
        (100, -1, 200, None),
        (100, 150, -1, None),
    ],
)
def test_a_new_memory_limit_leaves_the_room_for_swap(limit: int, total: int, asked: int, becomes: int | None) -> None:
    old = Resources(memory_limit_bytes=limit, memory_swap_limit_bytes=total)
    assert merged(old, Resources(memory_limit_bytes=asked)).memory_swap_limit_bytes == becomes


def test_a_new_quota_is_written_with_the_period_in_force_and_nothing_else() -> None:
    limits = Resources(cpu_period_us=50_000, cpu_quota_us=30_000, memory_limit_bytes=100, cpuset_cpus="0")
    new = Resources(cpu_quota_us=30_000)
    assert changed(limits, new) == Resources(cpu_period_us=50_000, cpu_quota_us=30_000)
