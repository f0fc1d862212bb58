"""The edits of CDI devices put into a container's spec, in the order in which the devices were asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from crishim.errors import InvalidSpec
from crishim.model.cdi import CdiMount, CdiNode, ContainerEdits
from crishim.model.process import ContainerSpec, DeviceNode, DeviceRule, MountSpec, ProcessSpec, Propagation
from crishim.spec.mounts import checked_target

_PROPAGATION = {
    "private": Propagation.PRIVATE,
    "rprivate": Propagation.PRIVATE,
    "slave": Propagation.HOST_TO_CONTAINER,
    "rslave": Propagation.HOST_TO_CONTAINER,
    "shared": Propagation.BIDIRECTIONAL,
    "rshared": Propagation.BIDIRECTIONAL,
}
_FLAGS = frozenset(
    {
        *("ro", "rw", "rro", "nosuid", "suid", "nodev", "dev", "noexec", "exec"),
        *("noatime", "relatime", "strictatime", "nodiratime", "nosymfollow"),
    }
)
#: what needs no flag of ours: that it is a bind, and the defaults of mount(8)
_NOTHING = frozenset({"bind", "rbind", "defaults", "atime", "diratime", "norelatime"})


def edited(spec: ContainerSpec, edits: ContainerEdits, look: Callable[[CdiNode], DeviceNode]) -> ContainerSpec:
    """The container with the edits of its devices.

    look: a node of the document as it is on the host; OSError and InvalidSpec are its own. InvalidSpec names a mount
    that cannot be.
    """
    nodes = {node.path: node for node in spec.device_nodes}
    rules = list(spec.cgroup.devices)
    for node in edits.nodes:
        checked_target("CDI device", node.path)
        made = _owned(look(node), node, spec.process)
        nodes[made.path] = made
        rules.append(DeviceRule(True, made.kind, made.major, made.minor, node.permissions))
    return replace(
        spec,
        process=_process(spec.process, edits),
        device_nodes=tuple(nodes.values()),
        cgroup=replace(spec.cgroup, devices=tuple(rules)),
        mounts=_mounts(spec.mounts, [_mount(mount) for mount in edits.mounts]),
        net_devices=_net_devices(spec, edits),
        intel_rdt=edits.intel_rdt or spec.intel_rdt,
        hooks=spec.hooks + edits.hooks,
    )


def _net_devices(spec: ContainerSpec, edits: ContainerEdits) -> dict[str, str]:
    devices = dict(spec.net_devices)
    for name, inside in edits.net_devices:
        if devices.get(name, inside) != inside:
            raise InvalidSpec(f"CDI network device {name!r} would be {devices[name]!r} and {inside!r} in the container")
        devices[name] = inside
    return devices


def _owned(found: DeviceNode, node: CdiNode, process: ProcessSpec) -> DeviceNode:
    """Who owns the node: whom the document names, else the user of the process, who is to use it."""
    return replace(
        found,
        mode=0o666 if node.file_mode is None else node.file_mode & 0o777,
        uid=process.user.uid if node.uid is None else node.uid,
        gid=process.user.gid if node.gid is None else node.gid,
    )


def _process(process: ProcessSpec, edits: ContainerEdits) -> ProcessSpec:
    """A variable of a device replaces one of the same name in its place."""
    env = {entry.partition("=")[0]: entry for entry in process.env}
    env |= {entry.partition("=")[0]: entry for entry in edits.env}
    groups = dict.fromkeys((*process.user.additional_groups, *edits.additional_groups))
    return replace(process, env=tuple(env.values()), user=replace(process.user, additional_groups=tuple(groups)))


def _mounts(present: Iterable[MountSpec], added: Iterable[MountSpec]) -> tuple[MountSpec, ...]:
    """A mount of a device takes the place of one at the same path; parents come before what lies inside them."""
    by_target = {mount.target: mount for mount in present}
    for mount in added:
        by_target.pop(mount.target, None)
        by_target[mount.target] = mount
    return tuple(sorted(by_target.values(), key=lambda mount: mount.target.count("/")))


def _mount(mount: CdiMount) -> MountSpec:
    target = checked_target("CDI mount", mount.container_path)
    flags = []
    propagation = Propagation.PRIVATE
    for option in mount.options:
        if option in _PROPAGATION:
            propagation = _PROPAGATION[option]
        elif option in _FLAGS:
            flags.append(option)
        elif option not in _NOTHING:
            raise InvalidSpec(f"CDI mount at {target!r}: {option!r} is not an option of a bind mount")
    recursive = "bind" not in mount.options or "rbind" in mount.options
    return MountSpec(target, "bind", mount.host_path, tuple(flags), (), propagation, recursive)
