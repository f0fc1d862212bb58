"""A container of ours as config.json of the OCI runtime specification, so that peers are asked for the same."""

from __future__ import annotations

from typing import Any

from crishim.model.process import Capabilities, ContainerSpec, DeviceRule, MountSpec, NamespaceKind, ProcessSpec
from crishim.model.resources import Resources
from crishim.spec.container import BASE_NODES

_NAMESPACES = {NamespaceKind.MOUNT: "mount", NamespaceKind.NETWORK: "network"}
_SHM_OPTIONS = ("mode=1777", "size=65536k")
_BASE = {path for path, _, _ in BASE_NODES}


#: ids of a user namespace
COUNT = 65536


def config(spec: ContainerSpec, seccomp: dict[str, Any] | None, host_id: int) -> dict[str, Any]:
    """config.json; fields that the specification of ours leaves empty are absent.

    host_id: of uid and gid 0 in a user namespace, 0 without one.
    """
    assert spec.rootfs.path is not None, "peers have a directory for a root"
    linux: dict[str, Any] = {
        "namespaces": [{"type": _NAMESPACES.get(each.kind, each.kind.value)} for each in spec.namespaces],
        "cgroupsPath": spec.cgroup.path,
        "maskedPaths": list(spec.masked_paths),
        "readonlyPaths": list(spec.readonly_paths),
        "sysctl": dict(spec.sysctls),
        "resources": _resources(spec.cgroup.resources)
        | {"devices": [_rule(each) for each in (DeviceRule(False), *spec.cgroup.devices)]},
        "devices": [
            {"path": node.path, "type": node.kind, "major": node.major, "minor": node.minor}
            | {"fileMode": node.mode, "uid": node.uid, "gid": node.gid}
            for node in spec.device_nodes
            if node.path not in _BASE  # every runtime makes these
        ],
    }
    if host_id:
        linux["namespaces"].append({"type": "user"})
        for kind in ("uidMappings", "gidMappings"):
            linux[kind] = [{"containerID": 0, "hostID": host_id, "size": COUNT}]
    if seccomp is not None:
        linux["seccomp"] = seccomp
    names = {"hostname": spec.hostname, "domainname": spec.domainname}
    return {
        "ociVersion": "1.0.2",
        "process": process(spec.process),
        "root": {"path": spec.rootfs.path, "readonly": spec.rootfs.readonly},
        "mounts": [_mount(each) for each in spec.mounts],
        "linux": linux,
        **{key: value for key, value in names.items() if value},
    }


def process(spec: ProcessSpec) -> dict[str, Any]:
    """`process` of config.json, which `exec --process` takes too."""
    user: dict[str, Any] = {"uid": spec.user.uid, "gid": spec.user.gid}
    if spec.user.additional_groups:
        user["additionalGids"] = list(spec.user.additional_groups)
    if spec.user.umask is not None:
        user["umask"] = spec.user.umask
    fields: dict[str, Any] = {
        "terminal": spec.terminal,
        "user": user,
        "args": list(spec.args),
        "env": list(spec.env),
        "cwd": spec.cwd or "/",
        "noNewPrivileges": spec.no_new_privileges,
        "rlimits": [{"type": each.kind, "soft": each.soft, "hard": each.hard} for each in spec.rlimits],
    }
    if spec.terminal:
        fields["consoleSize"] = {"width": spec.console_width, "height": spec.console_height}
    if spec.capabilities is not None:
        fields["capabilities"] = _capabilities(spec.capabilities)
    if spec.oom_score_adj is not None:
        fields["oomScoreAdj"] = spec.oom_score_adj
    if spec.scheduler is not None:
        fields["scheduler"] = {"policy": spec.scheduler.policy, "nice": spec.scheduler.nice}
    if spec.io_priority is not None:
        fields["ioPriority"] = {"class": spec.io_priority.kind, "priority": spec.io_priority.priority}
    return fields


def _capabilities(sets: Capabilities) -> dict[str, list[str]]:
    names = ("bounding", "effective", "permitted", "inheritable", "ambient")
    return {name: sorted(getattr(sets, name)) for name in names}


def _mount(mount: MountSpec) -> dict[str, Any]:
    kind, source, options = mount.kind, mount.source, [*mount.flags, *mount.options]
    if kind == "bind":
        options = ["rbind" if mount.recursive else "bind", mount.propagation.value, *options]
    elif kind == "shm":
        kind, source, options = "tmpfs", "shm", [*options, *_SHM_OPTIONS]
    return {"destination": mount.target, "type": kind, "source": source, "options": options}


def _rule(rule: DeviceRule) -> dict[str, Any]:
    numbers = {"major": rule.major, "minor": rule.minor}
    known = {key: value for key, value in numbers.items() if value is not None}
    return {"allow": rule.allow, "type": rule.kind, "access": rule.access, **known}


def _resources(asked: Resources) -> dict[str, Any]:
    groups = {
        "cpu": {
            "shares": asked.cpu_shares,
            "quota": asked.cpu_quota_us,
            "period": asked.cpu_period_us,
            "cpus": asked.cpuset_cpus,
            "mems": asked.cpuset_mems,
        },
        "memory": {"limit": asked.memory_limit_bytes, "swap": asked.memory_swap_limit_bytes},
        "pids": {"limit": asked.pids_limit},
    }
    given = {name: {key: value for key, value in group.items() if value is not None} for name, group in groups.items()}
    return {name: group for name, group in given.items() if group}
