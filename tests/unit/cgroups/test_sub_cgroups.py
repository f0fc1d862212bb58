"""Which cgroup an exec gets in each tree, and what is refused with the name that is at fault."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crishim.cgroups.hierarchy import Hierarchy
from crishim.cgroups.sub_cgroups import sub_cgroups, task_files
from crishim.errors import InvalidSpec, StartFailed

OWN = "/pod/c"


@pytest.fixture
def hybrid(tmp_path: Path) -> Hierarchy:
    """Trees of cpu with cpuacct, of memory, and the unified one with pids; each has the container and "below"."""
    for tree in ("cpu,cpuacct", "memory", "unified"):
        (tmp_path / tree / "pod/c/below/deep").mkdir(parents=True)
    base = os.fsencode(tmp_path)
    controllers = {"cpu": base + b"/cpu,cpuacct", "cpuacct": base + b"/cpu,cpuacct", "memory": base + b"/memory"}
    return Hierarchy("hybrid", base + b"/unified", controllers | {"pids": base + b"/unified"})


@pytest.fixture
def v2(tmp_path: Path) -> Hierarchy:
    (tmp_path / "pod/c/below").mkdir(parents=True)
    root = os.fsencode(tmp_path)
    return Hierarchy("v2", root, {"memory": root, "pids": root})


def places(h: Hierarchy, wanted: dict[str, str]) -> dict[str, str]:
    found = sub_cgroups(h, OWN, wanted)
    return {os.path.basename(os.fsdecode(tree)): path for tree, path in found.items()}


def test_the_empty_name_is_every_tree(hybrid: Hierarchy) -> None:
    assert places(hybrid, {"": "below"}) == dict.fromkeys(("cpu,cpuacct", "memory", "unified"), "/pod/c/below")


@pytest.mark.parametrize("below", ["below/deep", "/below/deep/", "./below//deep"])
def test_a_controller_moves_its_tree_and_no_other(hybrid: Hierarchy, below: str) -> None:
    assert places(hybrid, {"memory": below}) == {
        "cpu,cpuacct": OWN, "memory": "/pod/c/below/deep", "unified": OWN,
    }  # fmt: skip


def test_a_controller_of_the_unified_tree_of_a_hybrid_node_is_known_by_its_name(hybrid: Hierarchy) -> None:
    assert places(hybrid, {"pids": "below"})["unified"] == "/pod/c/below"


def test_the_one_tree_of_v2_has_no_name(v2: Hierarchy) -> None:
    assert sub_cgroups(v2, OWN, {"": "below"}) == {v2.mount: "/pod/c/below"}
    with pytest.raises(InvalidSpec, match="sub_cgroup_paths: 'memory' is named, and cgroup v2 has one tree"):
        sub_cgroups(v2, OWN, {"memory": "below"})


@pytest.mark.parametrize("below", ["..", "../c2", "below/../..", "below/../deep", "a\0b"])
def test_what_may_lead_out_is_refused(hybrid: Hierarchy, below: str) -> None:
    with pytest.raises(InvalidSpec, match=r"sub_cgroup_paths\['memory'\]: bad sub cgroup path"):
        sub_cgroups(hybrid, OWN, {"memory": below})


def test_an_unknown_controller_is_refused_and_the_known_ones_are_told(hybrid: Hierarchy) -> None:
    with pytest.raises(InvalidSpec, match="unknown controller 'io'; this node has cpu, cpuacct, memory, pids"):
        sub_cgroups(hybrid, OWN, {"io": "below"})


def test_a_cgroup_that_is_missing_in_one_tree_is_refused_with_its_path(hybrid: Hierarchy) -> None:
    os.rmdir(hybrid.mount + b"/pod/c/below/deep")
    with pytest.raises(StartFailed, match=r"sub_cgroup_paths\[''\]: 'below/deep' does not exist below .*unified/pod/c"):
        sub_cgroups(hybrid, OWN, {"": "below/deep"})


def test_names_that_contradict_each_other_are_refused(hybrid: Hierarchy) -> None:
    with pytest.raises(InvalidSpec, match="is for all controllers, and 'memory' is named besides"):
        sub_cgroups(hybrid, OWN, {"": "below", "memory": "below/deep"})
    with pytest.raises(InvalidSpec, match=r"\['cpuacct'\]: 'below/deep' is not the path of 'cpu', which has the same"):
        sub_cgroups(hybrid, OWN, {"cpu": "below", "cpuacct": "below/deep"})
    assert places(hybrid, {"cpu": "below", "cpuacct": "below"})["cpu,cpuacct"] == "/pod/c/below"


def test_task_files_are_those_of_the_v1_trees(hybrid: Hierarchy) -> None:
    files = task_files(hybrid, sub_cgroups(hybrid, OWN, {"memory": "below"}))
    assert [os.fsdecode(file).split("/")[-5:] for file in files][-1] == ["memory", "pod", "c", "below", "tasks"]
    assert os.fsdecode(files[0]).endswith("cpu,cpuacct/pod/c/tasks")
