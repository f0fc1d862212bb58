"""Where a container's cgroup is, and which devices it may use (cgroupfs driver).

The kubelet names the pod's cgroup and owns it; we own the leaf below it, whose name is the container's id, because
cAdvisor finds the container by the last component of the path.
"""

from __future__ import annotations

from dataclasses import replace

from crishim.errors import InvalidSpec
from crishim.model.handler import Handler
from crishim.model.process import DeviceRule
from crishim.model.resources import Resources
from crishim.spec.facts import HostDevice


def pod_cgroup(cgroup_parent: str, default_root: str, sandbox_id: str) -> str:
    """Path of the pod's cgroup below the hierarchy root, with a leading slash.

    Without a parent (critest, pods made by hand) it is our own, below `default_root`.
    """
    if not cgroup_parent:
        return f"{default_root.rstrip('/')}/pods/{sandbox_id}"
    parts = [part for part in cgroup_parent.split("/") if part not in ("", ".")]
    if ".." in parts or not parts or not cgroup_parent.startswith("/"):
        raise InvalidSpec(
            f"config.linux.cgroup_parent: {cgroup_parent!r} is not an absolute path below the root cgroup"
        )
    return "/" + "/".join(parts)


def container_cgroup(pod_path: str, container_id: str) -> str:
    """Path of a container's cgroup."""
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
