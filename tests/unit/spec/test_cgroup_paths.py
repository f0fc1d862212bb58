"""Where pods' and containers' cgroups are with either driver."""

from __future__ import annotations

import pytest

from crishim.errors import InvalidSpec
from crishim.model.node import CgroupDriver
from crishim.spec.cgroup import container_cgroup, pod_cgroup, slice_path

SYSTEMD, CGROUPFS = CgroupDriver.SYSTEMD, CgroupDriver.CGROUPFS
POD = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice"


def test_a_slice_lies_in_those_whose_names_begin_its_own() -> None:
    assert slice_path("a.slice") == "/a.slice"
    assert slice_path("kubepods-burstable-pod1_2.slice") == POD


def test_the_kubelets_slice_is_the_pods_and_a_scope_in_it_the_containers() -> None:
    assert pod_cgroup(POD, "/crishim.slice", "s", SYSTEMD) == POD
    assert pod_cgroup("/test.slice", "/crishim.slice", "s", SYSTEMD) == "/test.slice"
    assert container_cgroup(POD, "c", SYSTEMD) == f"{POD}/crishim-c.scope"


def test_a_pod_without_a_parent_has_a_slice_of_its_own() -> None:
    own = pod_cgroup("", "/crishim.slice/crishim-ab12.slice", "f00", SYSTEMD)
    assert own == ("/crishim.slice/crishim-ab12.slice/crishim-ab12-pods.slice/crishim-ab12-pods-f00.slice")
    assert slice_path(own.rpartition("/")[2]) == own


@pytest.mark.parametrize(
    "parent",
    [
        *("/kubepods/pod1", "/kubepods-pod1.slice", "/a.slice/b.slice", "/a.slice/a--b.slice", "/-.slice", "/.slice"),
        *("/a-.slice", "a.slice", "/a b.slice", "/" + "a" * 250 + ".slice", "/a.slice/../a.slice"),
    ],
)
def test_what_is_no_path_of_a_slice_is_refused_by_name(parent: str) -> None:
    with pytest.raises(InvalidSpec, match=r"config\.linux\.cgroup_parent"):
        pod_cgroup(parent, "/crishim.slice", "s", SYSTEMD)


def test_a_pod_made_with_the_other_driver_keeps_to_it() -> None:
    assert container_cgroup("/kubepods/pod1", "c", SYSTEMD) == "/kubepods/pod1/c"
    assert container_cgroup(POD, "c", CGROUPFS) == f"{POD}/c"
    assert pod_cgroup(POD, "/crishim.slice", "s", CGROUPFS) == POD
