"""Changed limits: what is given is set, what is not stays."""

from __future__ import annotations

from crishim.model.resources import Resources
from crishim.runtime.containers import merged


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
