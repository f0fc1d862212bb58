"""Kills for memory are told although systemd may remove a scope before its counter is read."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from crishim.cgroups.hierarchy import Hierarchy
from crishim.executor.init import InitProcess
from crishim.executor.oom import OomKills

POD = "/kubepods.slice/kubepods-pod1.slice"


class Init:
    def __init__(self, name: str) -> None:
        self.cgroup = f"{POD}/{name}.scope"


class Tree:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.hierarchy = Hierarchy("v2", bytes(root), {"memory": bytes(root)})

    def count(self, cgroup: str, kills: int) -> None:
        directory = self.root / cgroup[1:]
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "memory.events").write_text(f"oom 9\noom_kill {kills}\n")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def init(name: str) -> InitProcess:
    return cast("InitProcess", Init(name))


def test_a_counter_that_is_there_counts(tree: Tree) -> None:
    kills, one = OomKills(tree.hierarchy), init("one")
    tree.count(POD, 3)
    tree.count(one.cgroup, 2)
    kills.starting(one.cgroup, [])
    assert kills.of(one, []) == 2


def test_of_a_scope_that_is_gone_the_pods_counter_tells(tree: Tree) -> None:
    kills, one, two, three = OomKills(tree.hierarchy), init("one"), init("two"), init("three")
    tree.count(POD, 5)  # of an earlier pod in the same slice
    kills.starting(one.cgroup, [])
    kills.starting(two.cgroup, [one])
    kills.starting(three.cgroup, [one, two])
    tree.count(POD, 8)
    tree.count(two.cgroup, 1)
    assert kills.of(one, [two, three]) == 2, "three since, one of them the other container's"
    assert kills.of(three, [two]) == 0
    assert kills.of(two, []) == 1


def test_without_a_kill_none_is_told(tree: Tree) -> None:
    kills, one = OomKills(tree.hierarchy), init("one")
    tree.count(POD, 5)
    kills.starting(one.cgroup, [])
    assert kills.of(one, []) == 0


def test_a_cgroup_of_our_own_is_never_guessed_at(tree: Tree) -> None:
    kills, one = OomKills(tree.hierarchy), init("one")
    one.cgroup = "/pod/one"
    kills.starting(one.cgroup, [])
    tree.count("/pod", 4)
    assert kills.of(one, []) == 0
