"""Where a container's cgroup is, and which devices it may use.

The kubelet names the pod's cgroup and owns it; we own the leaf below it. With the cgroupfs driver its name is the
container's id; with the systemd driver the pod's cgroup is a slice and the leaf a scope whose name holds the id.
"""

from __future__ import annotations

import re
from dataclasses import replace

from crishim.errors import InvalidSpec
from crishim.model.handler import Handler
from crishim.model.node import CgroupDriver
from crishim.model.process import DeviceRule
from crishim.model.resources import Resources
from crishim.spec.facts import HostDevice

_FIELD = "config.linux.cgroup_parent"
#: a name is at most 255 bytes and its dashes stand between words. Source: systemd.slice(5), systemd.unit(5)
_SLICE = re.compile(r"(?=.{7,255}\Z)[A-Za-z0-9:_.\\]+(?:-[A-Za-z0-9:_.\\]+)*\.slice")


def pod_cgroup(
    cgroup_parent: str, default_root: str, sandbox_id: str, driver: CgroupDriver = CgroupDriver.CGROUPFS
) -> str:
    """Path of the pod's cgroup below the hierarchy root, with a leading slash.

    Without a parent (critest, pods made by hand) it is our own, below `default_root`. InvalidSpec when a parent is not
    what the driver needs: with systemd the path of a slice.
    """
    if not cgroup_parent:
        return _own_pod_cgroup(default_root, sandbox_id, driver)
    parts = [part for part in cgroup_parent.split("/") if part not in ("", ".")]
    if ".." in parts or not parts or not cgroup_parent.startswith("/"):
        raise InvalidSpec(f"{_FIELD}: {cgroup_parent!r} is not an absolute path below the root cgroup")
    path = "/" + "/".join(parts)
    if driver is CgroupDriver.SYSTEMD and (not _SLICE.fullmatch(parts[-1]) or slice_path(parts[-1]) != path):
        raise InvalidSpec(
            f"{_FIELD}: {cgroup_parent!r} is not the path of a systemd slice; this node's cgroup driver is systemd,"
            " and the kubelet's must be the same"
        )
    return path


def known_pod_cgroup(cgroup_parent: str, default_root: str, sandbox_id: str, driver: CgroupDriver) -> str:
    """Where the cgroup of a pod is that was run; one that the present driver would refuse was made with the other."""
    try:
        return pod_cgroup(cgroup_parent, default_root, sandbox_id, driver)
    except InvalidSpec:
        return pod_cgroup(cgroup_parent, default_root, sandbox_id)


def own_pods(root: str, driver: CgroupDriver) -> str:
    """Path below which the cgroups of pods are that name no parent."""
    if driver is CgroupDriver.CGROUPFS:
        return f"{root.rstrip('/')}/pods"
    return slice_path(f"{_words(root)}-pods.slice")


def own_monitors(root: str, driver: CgroupDriver) -> str:
    """Path of the cgroup of zygote and monitors."""
    return f"{root}/monitors" if driver is CgroupDriver.CGROUPFS else f"{root}/{_words(root)}-monitors.scope"


def slice_path(name: str) -> str:
    """Path of a slice's cgroup: "a-b.slice" lies in "a.slice". Source: systemd.slice(5)."""
    words = name.removesuffix(".slice").split("-")
    return "".join(f"/{'-'.join(words[:count])}.slice" for count in range(1, len(words) + 1))


def _own_pod_cgroup(root: str, sandbox_id: str, driver: CgroupDriver) -> str:
    if driver is CgroupDriver.CGROUPFS:
        return f"{own_pods(root, driver)}/{sandbox_id}"
    return slice_path(f"{_words(root)}-pods-{sandbox_id}.slice")


def _words(path: str) -> str:
    """The name of a slice at a path, without its suffix."""
    return path.rpartition("/")[2].removesuffix(".slice")


def container_cgroup(pod_path: str, container_id: str, driver: CgroupDriver = CgroupDriver.CGROUPFS) -> str:
    """Path of a container's cgroup. A pod of a server with another driver keeps to the one it was made with."""
    if driver is CgroupDriver.SYSTEMD and pod_path.endswith(".slice"):
        return f"{pod_path}/crishim-{container_id}.scope"
    return f"{pod_path}/{container_id}"


def limits(resources: Resources, handler: Handler) -> Resources:
    """Limits of a container, with that of its runtime handler where it has none of its own."""
    if not handler.pids_limit or resources.pids_limit is not None or "pids.max" in resources.unified:
        return resources
    return replace(resources, pids_limit=handler.pids_limit)


def device_rules(devices: tuple[HostDevice, ...], privileged: bool) -> tuple[DeviceRule, ...]:
    """Rules of the devices cgroup, in order; what every container may use is added by the cgroup plan."""
    if privileged:
        return (DeviceRule(True),)
    return (
        DeviceRule(False),
        *(DeviceRule(True, each.node.kind, each.node.major, each.node.minor, each.access) for each in devices),
    )
