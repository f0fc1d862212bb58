"""Limits as files: plans compared as values, for a v2, a hybrid and a v1 node."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crishim.cgroups.hierarchy import Hierarchy
from crishim.cgroups.plan import plan
from crishim.cgroups.planned import CgroupPlan
from crishim.cgroups.weight import weight_of_shares
from crishim.errors import InvalidSpec, Unsupported
from crishim.model.process import DeviceRule
from crishim.model.resources import Resources

ROOT = b"/sys/fs/cgroup"
V2 = Hierarchy("v2", ROOT, dict.fromkeys(["cpuset", "cpu", "io", "memory", "hugetlb", "pids"], ROOT))
V1 = Hierarchy(
    "v1", b"", {name: ROOT + b"/" + name.encode() for name in ("cpuset", "devices", "memory", "cpu", "pids")}
)
HYBRID = Hierarchy("hybrid", ROOT + b"/unified", V1.controllers | {"hugetlb": ROOT + b"/unified"})
BARE = Hierarchy("v2", ROOT, {})

FULL = Resources(
    cpu_period_us=100000,
    cpu_quota_us=50000,
    cpu_shares=1024,
    memory_limit_bytes=1000,
    memory_swap_limit_bytes=1500,
    cpuset_cpus="0-1",
    cpuset_mems="0",
    pids_limit=10,
    hugepage_limits={"2MB": 4096},
)


def files(resources: Resources, hierarchy: Hierarchy) -> dict[str, str]:
    return {file: value for _, file, value, _ in plan("/pod/c", resources, None, hierarchy).writes}


def test_all_limits_on_v2_in_the_order_of_writing() -> None:
    assert plan("/pod/c", replace(FULL, unified={"memory.high": "900"}), None, V2).writes == [
        ("pids", "pids.max", "10", True),
        ("memory", "memory.max", "1000", True),
        ("memory", "memory.swap.max", "500", True),
        ("cpu", "cpu.weight", "100", True),
        ("cpu", "cpu.max", "50000 100000", True),
        ("cpuset", "cpuset.cpus", "0-1", True),
        ("cpuset", "cpuset.mems", "0", True),
        ("hugetlb", "hugetlb.2MB.max", "4096", True),
        ("hugetlb", "hugetlb.2MB.rsvd.max", "4096", False),
        ("memory", "memory.high", "900", True),
    ]


def test_all_limits_on_v1_in_the_order_of_writing() -> None:
    assert plan("/pod/c", FULL, None, V1).writes == [
        ("pids", "pids.max", "10", True),
        ("memory", "memory.limit_in_bytes", "1000", True),
        ("memory", "memory.memsw.limit_in_bytes", "1500", False),
        ("cpu", "cpu.shares", "1024", True),
        ("cpu", "cpu.cfs_period_us", "100000", True),
        ("cpu", "cpu.cfs_quota_us", "50000", True),
        ("cpuset", "cpuset.cpus", "0-1", True),
        ("cpuset", "cpuset.mems", "0", True),
    ]


def test_a_hybrid_node_has_huge_pages_in_its_v2_tree() -> None:
    assert files(FULL, HYBRID)["hugetlb.2MB.max"] == "4096"
    assert "memory.limit_in_bytes" in files(FULL, HYBRID)


def test_nothing_asked_writes_nothing() -> None:
    assert plan("/pod/c", Resources(), None, BARE).writes == []


@pytest.mark.parametrize(
    ("limit", "total", "v2", "v1"),
    [
        (1000, None, ("1000", "0"), ("1000", "1000")),
        (1000, 1000, ("1000", "0"), ("1000", "1000")),
        (1000, -1, ("1000", "max"), ("1000", "-1")),
        (-1, None, ("max", "max"), ("-1", "-1")),
        (None, -1, (None, "max"), (None, "-1")),
    ],
)
def test_memory_and_swap(
    limit: int | None, total: int | None, v2: tuple[str | None, str], v1: tuple[str | None, str]
) -> None:
    resources = Resources(memory_limit_bytes=limit, memory_swap_limit_bytes=total)
    wrote = files(resources, V2)
    assert (wrote.get("memory.max"), wrote["memory.swap.max"]) == v2
    wrote = files(resources, V1)
    assert (wrote.get("memory.limit_in_bytes"), wrote["memory.memsw.limit_in_bytes"]) == v1


def test_a_kernel_without_swap_accounting_may_lack_the_swap_file_only_when_nothing_is_lost() -> None:
    def required(total: int) -> bool:
        writes = plan("/c", Resources(memory_limit_bytes=10, memory_swap_limit_bytes=total), None, V2).writes
        return writes[-1][3]

    assert [required(total) for total in (10, 11, -1)] == [False, True, False]
    kubelets = plan("/c", Resources(unified={"memory.swap.max": "0", "memory.oom.group": "1"}), None, V2).writes
    assert kubelets == [("memory", "memory.swap.max", "0", False), ("memory", "memory.oom.group", "1", True)]


@pytest.mark.parametrize(
    ("quota", "period", "v2", "v1"),
    [
        (50000, 100000, "50000 100000", {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}),
        (50000, None, "50000 100000", {"cpu.cfs_quota_us": "50000"}),
        (-1, 50000, "max 50000", {"cpu.cfs_period_us": "50000", "cpu.cfs_quota_us": "-1"}),
        (None, 50000, "max 50000", {"cpu.cfs_period_us": "50000"}),
        (None, None, None, {}),
    ],
)
def test_cpu_quota_and_period(quota: int | None, period: int | None, v2: str | None, v1: dict[str, str]) -> None:
    resources = Resources(cpu_quota_us=quota, cpu_period_us=period)
    assert files(resources, V2).get("cpu.max") == v2
    assert files(resources, V1) == v1


@pytest.mark.parametrize(
    ("shares", "weight"),
    [
        *((0, 1), (2, 1), (10, 4), (51, 11), (102, 17), (256, 35), (512, 59), (1000, 99), (1024, 100), (2048, 174)),
        *((4096, 303), (10240, 639), (102400, 4429), (262144, 10000), (1 << 30, 10000)),
    ],
)
def test_shares_as_weight(shares: int, weight: int) -> None:
    assert weight_of_shares(shares) == weight


def test_shares_out_of_range_are_clipped_on_v1() -> None:
    assert [files(Resources(cpu_shares=n), V1)["cpu.shares"] for n in (1, 1 << 30)] == ["2", "262144"]


@pytest.mark.parametrize(("limit", "value"), [(-1, "max"), (0, "1"), (7, "7")])
def test_pids(limit: int, value: str) -> None:
    assert files(Resources(pids_limit=limit), V2) == files(Resources(pids_limit=limit), V1) == {"pids.max": value}


def test_every_page_size_is_fine_where_no_controller_counts_them() -> None:
    assert files(Resources(hugepage_limits={"2MB": 0, "1GB": 4096}), V1) == {}


def test_unified_values_are_written_line_by_line_and_last() -> None:
    writes = plan("/c", Resources(pids_limit=5, unified={"io.max": "8:0 rbps=1\n8:16 rbps=2"}), None, V2).writes
    assert [value for _, _, value, _ in writes] == ["5", "8:0 rbps=1", "8:16 rbps=2"]


@pytest.mark.parametrize(
    "key", ["memory", "", ".max", "../memory.max", "a.b/c", "cgroup.procs", "cgroup.max.depth", "x.\0"]
)
def test_a_unified_key_that_is_no_limit_is_refused(key: str) -> None:
    with pytest.raises(InvalidSpec, match="unified"):
        plan("/c", Resources(unified={key: "1"}), None, V2)


@pytest.mark.parametrize("hierarchy", [V1, HYBRID], ids=["v1", "hybrid"])
def test_unified_needs_v2(hierarchy: Hierarchy) -> None:
    with pytest.raises(InvalidSpec, match=r"unified\['memory.high'\]"):
        plan("/c", Resources(unified={"memory.high": "1"}), None, hierarchy)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"memory_swap_limit_bytes": 999}, "memory_swap_limit_bytes"),
        ({"memory_limit_bytes": None}, "memory_swap_limit_bytes"),
        ({"memory_limit_bytes": -1}, "memory_swap_limit_bytes"),
        ({"memory_limit_bytes": -2}, "memory limits"),
        ({"cpu_shares": -1}, "cpu_shares"),
        ({"cpu_period_us": -1}, "cpu_period_us"),
        ({"cpuset_cpus": "0;1"}, "cpuset_cpus"),
        ({"cpuset_mems": "all"}, "cpuset_mems"),
        ({"hugepage_limits": {"../x": 1}}, "hugepage_limits"),
        ({"hugepage_limits": {"2MB": -1}}, "hugepage_limits"),
    ],
)
def test_a_faulty_limit_is_refused_by_name(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidSpec, match=field):
        plan("/c", replace(FULL, **change), None, V2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "resources",
    [Resources(cpu_shares=2), Resources(memory_limit_bytes=1), Resources(pids_limit=1), Resources(cpuset_cpus="0")],
)
def test_a_limit_without_its_controller_is_unsupported(resources: Resources) -> None:
    with pytest.raises(Unsupported, match=r"no (cpu|memory|pids|cpuset) controller"):
        plan("/c", resources, None, BARE)


def test_no_limit_needs_no_controller() -> None:
    assert plan("/c", Resources(pids_limit=-1, memory_limit_bytes=-1), None, BARE).writes == []


@pytest.mark.parametrize("path", ["", "/", "/a/../b", "/a/./b", "a//b", "/a\nb", "/a\0"])
def test_a_path_that_could_lead_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(InvalidSpec, match="cgroup path"):
        plan(path, Resources(), None, V2)


def test_device_rules_become_lines_on_v1_and_a_program_on_v2() -> None:
    v1, v2 = plan("/c", Resources(), [], HYBRID), plan("/c", Resources(), [], V2)
    assert v1.devices_v1[0] == ("devices.deny", "a") and v1.device_program is None
    assert ("devices.allow", "c 1:3 rwm") in v1.devices_v1
    assert v2.devices_v1 == [] and v2.device_program is not None
    untouched = plan("/c", Resources(), None, V2)
    assert untouched.devices_v1 == [] and untouched.device_program is None


def test_device_rules_need_the_controller_on_v1() -> None:
    without = Hierarchy("v1", b"", {"memory": b"/m"})
    with pytest.raises(Unsupported, match="devices"):
        plan("/c", Resources(), [DeviceRule(True)], without)


@pytest.mark.parametrize("hierarchy", [V2, HYBRID], ids=["v2", "hybrid"])
def test_a_plan_survives_the_wire(hierarchy: Hierarchy) -> None:
    before = plan("pod/c/", FULL, [], hierarchy)
    after = CgroupPlan.from_value(before.to_value())
    assert after.path == "/pod/c"
    assert (after.writes, after.devices_v1, after.device_program) == (
        before.writes,
        before.devices_v1,
        before.device_program,
    )


@pytest.mark.parametrize("change", [{"path": b"/c"}, {"writes": None}, {"device_program": "x"}, {"writes": [[1]]}])
def test_a_plan_of_another_shape_is_refused(change: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError)):
        CgroupPlan.from_value(CgroupPlan("/c", []).to_value() | change)
