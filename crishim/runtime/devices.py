"""Devices of the host as containers see them: single nodes, directories of nodes, or all of them. Blocking."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import replace

from crishim.errors import InvalidSpec
from crishim.model.container import ContainerConfig, ContainerSecurity, Device
from crishim.model.process import DeviceNode
from crishim.spec.facts import HostDevice

#: entries of /dev that a container has its own of
_OWN = frozenset({"pts", "shm", "fd", "mqueue", "console", "ptmx", "core", "stdin", "stdout", "stderr", ".udev"})
_LIMIT = 10_000


def host_devices(config: ContainerConfig, whole_dev: bool, owner_is_user: bool = False) -> tuple[HostDevice, ...]:
    """The devices of the request; with `whole_dev` every device of the host too. InvalidSpec names the field.

    owner_is_user: those of the request belong to run_as_user and run_as_group, where these are given.
    """
    found: dict[str, HostDevice] = {}
    if whole_dev:
        for path, node in _nodes("/dev", "/dev", own=_OWN):
            found[path] = HostDevice(node)
    for index, device in enumerate(config.devices):
        for node in _resolved(index, device):
            owned = _owned(node, config.security) if owner_is_user else node
            found[node.path] = HostDevice(owned, device.permissions or "rwm")
    return tuple(found.values())


def _owned(node: DeviceNode, security: ContainerSecurity) -> DeviceNode:
    uid, gid = security.run_as_user, security.run_as_group
    return replace(node, uid=node.uid if uid is None else uid, gid=node.gid if gid is None else gid)


def _resolved(index: int, device: Device) -> list[DeviceNode]:
    field = f"config.devices[{index}]"
    target = device.container_path or device.host_path
    for name, path in (("host_path", device.host_path), ("container_path", target)):
        if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise InvalidSpec(f"{field}.{name}: {path!r} is not an absolute path")
    try:
        status = os.stat(device.host_path)  # a link such as /dev/disk/by-id/... is followed
    except OSError as error:
        raise InvalidSpec(f"{field}.host_path: {device.host_path!r}: {(error.strerror or '').lower()}") from None
    if stat.S_ISDIR(status.st_mode):
        return [node for _, node in _nodes(device.host_path, target, own=frozenset())]
    node = _node(target, status, device.host_path)
    if node is None:
        raise InvalidSpec(f"{field}.host_path: {device.host_path!r} is not a device")
    return [node]


def _nodes(directory: str, target: str, *, own: frozenset[str]) -> Iterator[tuple[str, DeviceNode]]:
    """(path, node) of every device below a directory, links not followed; at most 10,000."""
    count = 0
    pending = [(directory, target)]
    while pending:
        source, place = pending.pop()
        try:
            entries = sorted(os.scandir(source), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            if source == directory and entry.name in own:
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            path = f"{place}/{entry.name}"
            if stat.S_ISDIR(status.st_mode):
                pending.append((f"{source}/{entry.name}", path))
            elif (node := _node(path, status, f"{source}/{entry.name}")) is not None:
                count += 1
                if count > _LIMIT:
                    raise InvalidSpec(f"there are more than {_LIMIT} devices below {directory!r}")
                yield path, node


def _node(path: str, status: os.stat_result, source: str) -> DeviceNode | None:
    if stat.S_ISCHR(status.st_mode):
        kind = "c"
    elif stat.S_ISBLK(status.st_mode):
        kind = "b"
    else:
        return None
    rdev = status.st_rdev
    mode = stat.S_IMODE(status.st_mode)
    return DeviceNode(path, kind, os.major(rdev), os.minor(rdev), mode, status.st_uid, status.st_gid, source)
