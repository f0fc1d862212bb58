"""The cgroup driver that a server chooses, and where its own cgroups are then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crishim.app.cgroups import Cgroups
from crishim.cgroups.hierarchy import Hierarchy
from crishim.cgroups.systemd import Systemd
from crishim.config import Config
from crishim.config.sections import CgroupsConfig, ServerConfig
from crishim.errors import InvalidSpec, Unsupported
from crishim.model.node import CgroupDriver


class FakeSystemd(Systemd):
    def __init__(self) -> None:
        self.joined: list[tuple[str, int, dict[str, Any]]] = []

    def version(self) -> int:
        return 252

    def join(self, name: str, pid: int, properties: Any) -> None:
        self.joined.append((name, pid, dict(properties)))


def cgroups(driver: str, mode: str = "v2", *, booted: bool = True, parent: str = "", state: str = "") -> Cgroups:
    config = Config(cgroups=CgroupsConfig(driver=driver, parent=parent))
    if state:
        config = replace(config, server=replace(ServerConfig(), state=Path(state)))
    return Cgroups(config, Hierarchy(mode, b"/c", {}), FakeSystemd() if booted else None)


@pytest.mark.parametrize(
    ("driver", "mode", "booted", "chosen"),
    [
        ("auto", "v2", True, CgroupDriver.SYSTEMD),
        ("auto", "v2", False, CgroupDriver.CGROUPFS),
        ("auto", "hybrid", True, CgroupDriver.CGROUPFS),
        ("cgroupfs", "v2", True, CgroupDriver.CGROUPFS),
        ("systemd", "v2", True, CgroupDriver.SYSTEMD),
    ],
)
def test_the_driver_that_suits_the_node(driver: str, mode: str, booted: bool, chosen: CgroupDriver) -> None:
    assert cgroups(driver, mode, booted=booted).driver is chosen


@pytest.mark.parametrize(
    ("mode", "booted", "why"), [("v2", False, "the init of this machine"), ("hybrid", True, "this node is hybrid")]
)
def test_a_driver_that_the_node_cannot_have_is_refused(mode: str, booted: bool, why: str) -> None:
    with pytest.raises(Unsupported, match=rf"cgroups\.driver: .*{why}"):
        cgroups("systemd", mode, booted=booted)


def test_a_node_without_a_bus_is_not_taken_for_one_with_the_systemd_driver() -> None:
    hierarchy = Hierarchy("v2", b"/c", {})
    assert Cgroups(Config(), hierarchy, FakeSystemd(), bus=False).driver is CgroupDriver.CGROUPFS
    assert Cgroups(Config(), hierarchy, FakeSystemd(), bus=True).driver is CgroupDriver.SYSTEMD


def test_our_own_cgroups_are_named_after_the_instance() -> None:
    default = cgroups("systemd")
    assert (default.root, default.monitors) == ("/crishim.slice", "/crishim.slice/crishim-monitors.scope")
    other = cgroups("systemd", state="/run/other")
    assert other.root == f"/crishim.slice/crishim-{other.root[-14:-6]}.slice"
    assert other.monitors == f"{other.root}/crishim-{other.root[-14:-6]}-monitors.scope"
    plain = cgroups("cgroupfs")
    assert (plain.root, plain.monitors, plain.place()) == ("/crishim.slice", "/crishim.slice/monitors", None)


def test_a_parent_of_our_own_must_be_a_slice_for_systemd() -> None:
    assert cgroups("systemd", parent="a.slice/a-b.slice").root == "/a.slice/a-b.slice"
    assert cgroups("cgroupfs", parent="pods/of/mine").root == "/pods/of/mine"
    for parent in ("pods", "a-b.slice", "a.slice/pods"):
        with pytest.raises(InvalidSpec, match=r"cgroups\.parent"):
            cgroups("systemd", parent=parent)


def test_a_zygote_is_put_into_the_scope_of_the_monitors() -> None:
    made = cgroups("systemd")
    place = made.place()
    assert place is not None and isinstance(made.systemd, FakeSystemd)
    place(42)
    ((name, pid, properties),) = made.systemd.joined
    assert (name, pid) == ("crishim-monitors.scope", 42)
    assert properties["Slice"] == ("s", "crishim.slice") and properties["Delegate"] == ("b", True)
