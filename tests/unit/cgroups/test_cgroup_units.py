"""What systemd is told of a cgroup, from the plan that writes the kernel's files."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.cgroups import units
from crishim.cgroups.hierarchy import Hierarchy
from crishim.cgroups.plan import CgroupPlan, plan
from crishim.errors import InvalidSpec, Unsupported
from crishim.model.resources import Resources

SCOPE = "/kubepods.slice/kubepods-pod1.slice/crishim-c1.scope"
INFINITY = 2**64 - 1
V2 = Hierarchy("v2", b"/c", dict.fromkeys(("cpuset", "cpu", "io", "memory", "pids", "hugetlb"), b"/c"))


def limits(version: int = 252, **fields: Any) -> dict[str, tuple[str, Any]]:
    return dict(units.limits(plan(SCOPE, Resources(**fields), None, V2), version))


@pytest.mark.parametrize(
    ("fields", "properties"),
    [
        ({}, {}),
        ({"memory_limit_bytes": 100}, {"MemoryMax": ("t", 100), "MemorySwapMax": ("t", 0)}),
        ({"memory_limit_bytes": -1}, {"MemoryMax": ("t", INFINITY), "MemorySwapMax": ("t", INFINITY)}),
        (
            {"memory_limit_bytes": 100, "memory_swap_limit_bytes": 300},
            {"MemoryMax": ("t", 100), "MemorySwapMax": ("t", 200)},
        ),
        ({"cpu_shares": 512}, {"CPUWeight": ("t", 59)}),
        (
            {"cpu_quota_us": 20000, "cpu_period_us": 50000},
            {"CPUQuotaPerSecUSec": ("t", 400000), "CPUQuotaPeriodUSec": ("t", 50000)},
        ),
        ({"cpu_quota_us": -1}, {"CPUQuotaPerSecUSec": ("t", INFINITY), "CPUQuotaPeriodUSec": ("t", 100000)}),
        ({"pids_limit": 7}, {"TasksMax": ("t", 7)}),
        ({"pids_limit": -1}, {"TasksMax": ("t", INFINITY)}),
        (
            {"cpuset_cpus": "0-2,9", "cpuset_mems": "0"},
            {"AllowedCPUs": ("ay", b"\x07\x02"), "AllowedMemoryNodes": ("ay", b"\x01")},
        ),
        ({"hugepage_limits": {"2MB": 1 << 21}}, {}),
        (
            {"unified": {"memory.high": "64M", "memory.low": "1", "memory.min": "max", "memory.oom.group": "1"}},
            {"MemoryHigh": ("t", 64 << 20), "MemoryLow": ("t", 1), "MemoryMin": ("t", INFINITY)},
        ),
        (
            {"memory_limit_bytes": 100, "unified": {"memory.max": "50"}},
            {"MemoryMax": ("t", 50), "MemorySwapMax": ("t", 0)},
        ),
        (
            {"unified": {"cpu.max": "max", "io.weight": "default 300"}},
            {"CPUQuotaPerSecUSec": ("t", INFINITY), "CPUQuotaPeriodUSec": ("t", 100000), "IOWeight": ("t", 300)},
        ),
        ({"unified": {"io.weight": "8:0 300", "cpu.max.burst": "10"}}, {}),
    ],
)
def test_what_is_written_is_what_systemd_knows(fields: Any, properties: dict[str, Any]) -> None:
    assert limits(**fields) == properties


def test_an_idle_container_is_told_to_a_systemd_that_knows_it() -> None:
    idle = {"cpu_shares": 2, "unified": {"cpu.idle": "1"}}
    assert limits(252, **idle)["CPUWeight"] == ("t", 0)
    assert limits(251, **idle)["CPUWeight"] == ("t", 1)


@pytest.mark.parametrize(
    ("unified", "named"),
    [
        ({"memory.max": "much"}, "memory.max: 'much'"),
        ({"memory.max": "-1"}, "memory.max: '-1'"),
        ({"cpu.max": "1 0"}, "cpu.max: '1 0'"),
        ({"cpu.max": "1 x"}, "cpu.max: '1 x'"),
        ({"cpuset.cpus": "3-1"}, "cpuset.cpus: '3-1'"),
        ({"cpuset.cpus": "0-99999999"}, "cpuset.cpus"),
        ({"cpuset.mems": "a"}, "cpuset.mems: 'a'"),
    ],
)
def test_a_value_that_is_none_is_refused_by_name(unified: dict[str, str], named: str) -> None:
    with pytest.raises(InvalidSpec, match=named):
        units.check(plan(SCOPE, Resources(unified=unified), None, V2))


def test_a_limit_of_one_process_is_refused() -> None:
    units.check(plan(SCOPE, Resources(pids_limit=2), None, V2))
    with pytest.raises(Unsupported, match=r"pids\.max"):
        units.check(plan(SCOPE, Resources(unified={"pids.max": "1"}), None, V2))


def test_a_quota_is_written_as_systemd_keeps_it_and_only_in_units() -> None:
    """12.345 % of a CPU would be 13 % after systemd's next look at the unit."""
    resources = Resources(cpu_quota_us=12345, cpu_period_us=100000)
    assert plan(SCOPE, resources, None, V2).writes == [("cpu", "cpu.max", "13000 100000", True)]
    assert plan("/pod/c1", resources, None, V2).writes == [("cpu", "cpu.max", "12345 100000", True)]
    assert units.rounded_quota("max 100000") == "max 100000"


@given(st.integers(1000, 10**8), st.integers(1000, 10**6))
def test_a_rounded_quota_is_never_less_and_stays_as_it_is(quota: int, period: int) -> None:
    once = units.rounded_quota(f"{quota} {period}")
    rounded = int(once.split()[0])
    assert quota <= rounded + 1 and rounded <= quota + period // 100 + 1
    (per_second, _) = units.limits(CgroupPlan(SCOPE, [("cpu", "cpu.max", f"{quota} {period}", True)]), 252)
    assert per_second[1][1] % 10000 == 0, "whole percents"


def test_a_scope_is_delegated_has_no_limits_of_its_own_and_vanishes_when_it_fails() -> None:
    scope = dict(units.scope(plan(SCOPE, Resources(), None, V2), 252, "kubepods-pod1.slice", "text"))
    assert scope["Slice"] == ("s", "kubepods-pod1.slice")
    assert scope["Delegate"] == ("b", True) and scope["DefaultDependencies"] == ("b", False)
    assert scope["TasksMax"] == ("t", INFINITY)
    assert scope["CollectMode"] == ("s", "inactive-or-failed")
    assert "OOMPolicy" not in scope
    limited = dict(units.scope(plan(SCOPE, Resources(pids_limit=5), None, V2), 252, "s.slice", "text"))
    assert limited["TasksMax"] == ("t", 5)


@pytest.mark.parametrize(("group", "policy"), [("1", "kill"), ("0", "continue"), (None, "continue")])
def test_a_newer_systemd_is_told_whether_an_oom_kill_takes_all(group: str | None, policy: str) -> None:
    unified = {} if group is None else {"memory.oom.group": group}
    scope = dict(units.scope(plan(SCOPE, Resources(unified=unified), None, V2), 253, "s.slice", "text"))
    assert scope["OOMPolicy"] == ("s", policy)


def test_units_are_told_from_other_cgroups_by_their_names() -> None:
    assert units.is_unit(SCOPE) and units.is_unit("/a.slice")
    assert not units.is_unit("/kubepods/pod1/c1") and not units.is_unit("/crishim.slice/monitors")
    assert units.unit_name(SCOPE) == "crishim-c1.scope"
