"""Which cgroup driver a server has, and where its own cgroups are."""

from __future__ import annotations

from collections.abc import Callable

from crishim.cgroups import units
from crishim.cgroups.hierarchy import Hierarchy, detect
from crishim.cgroups.planned import CgroupPlan
from crishim.cgroups.systemd import Systemd, has_bus, is_booted
from crishim.config import Config
from crishim.errors import InvalidSpec, Unsupported
from crishim.model.node import CgroupDriver
from crishim.spec.cgroup import own_monitors, slice_path


class Cgroups:
    """The driver, the root of our own cgroups, and systemd where it is the machine's init."""

    def __init__(self, config: Config, hierarchy: Hierarchy, systemd: Systemd | None, *, bus: bool = True) -> None:
        """Unsupported and InvalidSpec name the key that this machine cannot honour. bus: whether D-Bus is there."""
        self.driver = _driver(config.cgroups.driver, hierarchy.mode, booted=systemd is not None, bus=bus)
        self.systemd = systemd
        #: "/crishim.slice": what is not below a cgroup parent of the kubelet
        self.root = _root(config, self.driver)
        #: where zygote and monitors live
        self.monitors = own_monitors(self.root, self.driver)

    @classmethod
    def of(cls, config: Config) -> Cgroups:
        """Those of this machine."""
        return cls(config, detect(), Systemd() if is_booted() else None, bus=has_bus())

    def place(self) -> Callable[[int], None] | None:
        """Moves a zygote into the monitors' scope, before it does anything; None when it goes to its cgroup itself."""
        systemd, name = self.systemd, units.unit_name(self.monitors)
        if self.driver is not CgroupDriver.SYSTEMD or systemd is None:
            return None
        version = systemd.version()
        properties = units.scope(
            CgroupPlan(self.monitors, []), version, units.unit_name(self.root), "monitors of crishim"
        )
        return lambda pid: systemd.join(name, pid, properties)


def _driver(asked: str, mode: str, *, booted: bool, bus: bool) -> CgroupDriver:
    """The driver that is asked for; "auto" is systemd where that is init, has a bus and one v2 tree to itself."""
    if asked == "systemd" and not booted:
        raise Unsupported('cgroups.driver: "systemd" needs systemd as the init of this machine; use "cgroupfs"')
    if asked == "systemd" and mode != "v2":
        raise Unsupported(f'cgroups.driver: "systemd" needs cgroup v2 alone, and this node is {mode}; use "cgroupfs"')
    if asked == "systemd" or (asked == "auto" and booted and bus and mode == "v2"):
        return CgroupDriver.SYSTEMD
    return CgroupDriver.CGROUPFS


def _root(config: Config, driver: CgroupDriver) -> str:
    """Without a configured one the instance names it."""
    path = config.cgroup_root
    if driver is CgroupDriver.CGROUPFS:
        return path
    name = units.unit_name(path)
    if not config.cgroups.parent:
        return slice_path(name)
    if not name.endswith(".slice") or slice_path(name) != path:
        raise InvalidSpec(
            f"cgroups.parent: {config.cgroups.parent!r} is not the path of a systemd slice, which the systemd driver"
            f" needs; {slice_path(name.removesuffix('.slice') + '.slice')!r} is one"
        )
    return path
