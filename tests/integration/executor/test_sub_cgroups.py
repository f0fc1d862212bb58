"""Execs below their container's cgroup: libcontainer's SubCgroupPaths, in each kind of cgroup tree."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from crishim.cgroups import effects
from crishim.cgroups.hierarchy import Hierarchy, detect
from crishim.errors import InvalidSpec, StartFailed
from crishim.executor import client
from crishim.executor.client import PodSpec
from crishim.model.process import CpuAffinity
from tests.support.container import IDLE, Container, Node, Pod, program, read_line, script, wait_until


def make_below(container: Container, *names: str) -> None:
    """Cgroups below the container's own in every tree; of v1, cpusets with what their parents have."""
    for tree in container.pod.node.hierarchy.trees():
        directory = Path(os.fsdecode(tree) + container.spec.cgroup.path)
        for name in names:
            below = directory / name
            below.mkdir()
            for file in ("cpuset.cpus", "cpuset.mems"):
                if (below / file).exists() and tree != container.pod.node.hierarchy.mount:
                    (below / file).write_text((directory / file).read_text())


def memberships(text: str) -> dict[str, str]:
    """Controllers ("" is the v2 tree) to the cgroup."""
    lines = [line.split(":", 2) for line in text.splitlines()]
    return {controllers: path for _, controllers, path in lines}


def run_below(container: Container, wanted: dict[str, str]) -> dict[str, str]:
    """Where an exec was while it lived, by the host's names."""
    exec_ = container.pod.start_exec(container, script("echo up; exec sleep 600", sub_cgroup_paths=wanted))
    assert read_line(exec_.stdout) == "up"
    found = memberships(Path(f"/proc/{exec_.pid}/cgroup").read_text())
    exec_.process.send_signal(signal.SIGKILL)
    assert exec_.wait().signal == signal.SIGKILL
    return found


def test_the_empty_name_is_below_in_every_tree(pod: Pod) -> None:
    container = pod.start(program(*IDLE))
    make_below(container, "below")
    assert {*run_below(container, {"": "below"}).values()} == {container.spec.cgroup.path + "/below"}


def test_a_process_is_born_there_and_so_are_its_children(pod: Pod) -> None:
    container = pod.start(program(*IDLE))
    make_below(container, "below")
    told = pod.exec(container, script("cat /proc/self/cgroup", sub_cgroup_paths={"": "/below"}))
    # seen from the container's cgroup namespace
    assert {*memberships(told.output).values()} == {"/below"}


def test_a_controller_of_v1_is_below_alone(pod: Pod) -> None:
    hierarchy = pod.node.hierarchy
    v1 = [name for name, tree in hierarchy.controllers.items() if tree != hierarchy.mount]
    if not v1:
        pytest.skip("this host has no cgroup v1")
    container = pod.start(program(*IDLE))
    make_below(container, "below")
    own, below = container.spec.cgroup.path, container.spec.cgroup.path + "/below"
    found = run_below(container, {v1[0]: "below"})
    assert {name: path for name, path in found.items() if path == below} == {
        name: below for name in found if v1[0] in name.split(",")
    }
    assert {*found.values()} == {own, below}


def test_an_initial_affinity_joins_the_cgroup_below_later(pod: Pod) -> None:
    container = pod.start(program(*IDLE))
    make_below(container, "below")
    spec = script("cat /proc/self/cgroup", sub_cgroup_paths={"": "below"}, cpu_affinity=CpuAffinity(initial="0"))
    assert {*memberships(pod.exec(container, spec).output).values()} == {"/below"}


@pytest.mark.parametrize(
    ("wanted", "error", "sentence"),
    [
        ({"": "../other"}, InvalidSpec, "bad sub cgroup path '../other'"),
        ({"nosuch": "below"}, InvalidSpec, "'nosuch'"),
        ({"": "missing"}, StartFailed, "'missing' does not exist below the container's cgroup"),
    ],
)
def test_what_cannot_be_honoured_is_refused_before_anything_is_cloned(
    pod: Pod, wanted: dict[str, str], error: type[Exception], sentence: str
) -> None:
    container = pod.start(program(*IDLE))
    with pytest.raises(error, match=re.escape(sentence)):
        pod.start_exec(container, program("/bin/true", sub_cgroup_paths=wanted))
    with pytest.raises(InvalidSpec, match=r"the exec has the leaf 'exec\.0'"):
        pod.start_exec(container, program("/bin/true", sub_cgroup_paths={"": "x"}), leaf=True)


# -- cgroup v2: a cgroup that hands controllers to those below takes no process itself


@pytest.fixture
def nested(pod: Pod) -> Container:
    """A container whose init moved below its cgroup, as an init system does, and handed controllers there."""
    if pod.node.hierarchy.mode != "v2":
        pytest.skip("this host has no pure cgroup v2, where controllers forbid processes beside cgroups")
    container = pod.start(program(*IDLE))
    make_below(container, "init.scope", "other")
    directory = os.fsdecode(pod.node.hierarchy.mount) + container.spec.cgroup.path
    Path(directory, "init.scope/cgroup.procs").write_text(str(container.pid))
    Path(directory, "cgroup.subtree_control").write_text("+memory")
    return container


def test_an_exec_goes_where_init_went_when_the_containers_cgroup_takes_no_process(nested: Container) -> None:
    below = nested.spec.cgroup.path + "/init.scope"
    assert {*run_below(nested, {}).values()} == {below}


def test_an_exec_may_go_to_another_cgroup_below(nested: Container) -> None:
    assert {*run_below(nested, {"": "other"}).values()} == {nested.spec.cgroup.path + "/other"}


def test_an_exec_leaf_stands_beside_the_cgroups_of_an_init_system(nested: Container) -> None:
    told = nested.pod.exec(nested, script("cat /proc/self/cgroup"), leaf=True)
    assert told.output == "0::/exec.0\n"


def test_the_cgroup_that_was_asked_for_is_not_exchanged_for_another(nested: Container) -> None:
    """Only who names no cgroup is sent where init went."""
    directory = os.fsdecode(nested.pod.node.hierarchy.mount) + nested.spec.cgroup.path + "/other"
    os.mkdir(directory + "/deep")
    Path(directory, "cgroup.subtree_control").write_text("+memory")
    with pytest.raises(StartFailed, match=r"/other.: it has handed controllers to cgroups below it"):
        nested.pod.start_exec(nested, program("/bin/true", sub_cgroup_paths={"": "other"}))


# -- a node of cgroup v1 alone: this one with its unified tree left aside


@pytest.fixture
def v1_pod(busybox_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pod]:
    found = detect()
    controllers = {name: tree for name, tree in found.controllers.items() if tree != found.mount}
    if "freezer" not in controllers:
        pytest.skip("this host has no cgroup v1 with a freezer")
    monkeypatch.setattr(client, "detect", lambda: Hierarchy("v1", b"", controllers))
    node = Node(f"/crishim-v1-test-{os.getpid()}")
    pod = Pod(node, busybox_root, tmp_path, "v1", PodSpec())
    yield pod
    pod.stop()
    node.close()


def test_an_exec_leaf_of_v1_is_in_the_freezer_tree_and_is_killed_whole(v1_pod: Pod) -> None:
    container = v1_pod.start(program(*IDLE))
    exec_ = v1_pod.start_exec(container, script("(sleep 600 & echo $!); exec sleep 600"), leaf=True)
    read_line(exec_.stdout)
    leaf = container.spec.cgroup.path + "/exec.0"
    assert memberships(Path(f"/proc/{exec_.pid}/cgroup").read_text())["freezer"] == leaf
    wait_until(lambda: len(effects.pids(v1_pod.node.hierarchy, leaf)) == 2, "the end of the subshell")
    effects.kill(v1_pod.node.hierarchy, leaf)
    assert exec_.wait().signal == signal.SIGKILL


def test_sub_cgroups_of_v1_alone(v1_pod: Pod) -> None:
    container = v1_pod.start(program(*IDLE))
    make_below(container, "below")
    found = run_below(container, {"": "below"})
    assert {path for name, path in found.items() if name} == {container.spec.cgroup.path + "/below"}
