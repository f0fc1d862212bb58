"""What a verbose status tells of the node's security modules and its cgroup driver."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

from crishim.model.node import CgroupDriver
from crishim.network.door import Readiness
from crishim.runtime.node import Node
from crishim.runtime.operations import Operations
from crishim.runtime.settings import Settings
from crishim.spec.facts import NodeAbilities
from crishim.spec.selinux import Context, DefaultLabels

ABILITIES = NodeAbilities((6, 18), "x86_64", frozenset())


class FakeNetwork:
    async def ready(self) -> Readiness:
        return Readiness(True)


def config(abilities: NodeAbilities, **settings: Any) -> dict[str, Any]:
    made = Settings(
        node=abilities, state_dir="/state", root_dir="/root", cgroup_root="/x", netns_prefix="x", **settings
    )
    node = Node(made, FakeNetwork(), Operations(), "1", lambda: ())  # type: ignore[arg-type]
    found: dict[str, Any] = json.loads(asyncio.run(node.status(verbose=True)).info["config"])
    return found


def test_what_protects_containers_is_told() -> None:
    loaded = replace(ABILITIES, apparmor=True, apparmor_default="crishim-default")
    assert config(loaded)["appArmor"] == {"enabled": True, "default": "crishim-default", "problem": ""}
    broken = replace(ABILITIES, apparmor=True, apparmor_problem="no compiler")
    assert config(broken)["appArmor"] == {"enabled": True, "default": None, "problem": "no compiler"}


def test_the_labels_of_containers_are_told() -> None:
    assert config(ABILITIES)["seLinux"] == {"enabled": False, "labels": None, "problem": ""}
    labels = DefaultLabels(Context("u", "r", "t", "s0"), Context("u", "object_r", "f", "s0"))
    told = config(replace(ABILITIES, selinux=True, selinux_labels=labels))["seLinux"]
    shown = {"process": "u:r:t:s0", "file": "u:object_r:f:s0", "privileged": None}
    assert told == {"enabled": True, "labels": shown, "problem": ""}
    broken = replace(ABILITIES, selinux=True, selinux_problem="no policy")
    assert config(broken)["seLinux"] == {"enabled": True, "labels": None, "problem": "no policy"}


def test_the_cgroup_driver_is_told() -> None:
    assert config(ABILITIES)["cgroupDriver"] == "cgroupfs"
    assert config(ABILITIES, cgroup_driver=CgroupDriver.SYSTEMD)["cgroupDriver"] == "systemd"
