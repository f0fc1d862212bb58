"""What hooks read in a container's bundle: `config.json` of OCI's runtime specification, as far as it describes.

It is written for those who look things up in it (where the root is, the environment, mounts, devices) and nothing runs
by it: the ContainerSpec is what counts.
"""

from __future__ import annotations

from crishim.model.hook import OCI_VERSION
from crishim.model.process import Capabilities, ContainerSpec, MountSpec, NamespaceKind, ProcessSpec

#: where the root is mounted in the bundle, seen by hooks before it is entered
ROOT = "rootfs"
_KINDS = {NamespaceKind.MOUNT: "mount", NamespaceKind.NETWORK: "network"}


def oci_config(spec: ContainerSpec) -> dict[str, object]:
    """The JSON object of a container's configuration."""
    config: dict[str, object] = {
        "ociVersion": OCI_VERSION,
        "root": {"path": ROOT, "readonly": spec.rootfs.readonly},
        "process": _process(spec.process),
        "mounts": [_mount(mount) for mount in spec.mounts],
        "annotations": dict(spec.annotations),
        "linux": {
            "namespaces": [
                {"type": _KINDS.get(each.kind, each.kind.value)} | ({"path": each.path} if each.path else {})
                for each in spec.namespaces
            ],
            "devices": [
                {
                    "path": node.path,
                    "type": node.kind,
                    "major": node.major,
                    "minor": node.minor,
                    "fileMode": node.mode,
                    "uid": node.uid,
                    "gid": node.gid,
                }
                for node in spec.device_nodes
            ],
            "cgroupsPath": spec.cgroup.path,
            "sysctl": dict(spec.sysctls),
            "maskedPaths": list(spec.masked_paths),
            "readonlyPaths": list(spec.readonly_paths),
        },
    }
    if spec.mount_label:
        config["linux"]["mountLabel"] = spec.mount_label  # type: ignore[index]
    if spec.hostname is not None:
        config["hostname"] = spec.hostname
    return config


def _process(process: ProcessSpec) -> dict[str, object]:
    user: dict[str, object] = {
        "uid": process.user.uid,
        "gid": process.user.gid,
        "additionalGids": list(process.user.additional_groups),
    }
    value: dict[str, object] = {
        "terminal": process.terminal,
        "user": user,
        "args": list(process.args),
        "env": list(process.env),
        "cwd": process.cwd or "/",
        "noNewPrivileges": process.no_new_privileges,
    }
    if process.capabilities is not None:
        value["capabilities"] = _capabilities(process.capabilities)
    if process.label:
        value["selinuxLabel"] = process.label
    return value


def _capabilities(sets: Capabilities) -> dict[str, list[str]]:
    return {name: sorted(getattr(sets, name)) for name in Capabilities.__dataclass_fields__}


def _mount(mount: MountSpec) -> dict[str, object]:
    kind = ["rbind" if mount.recursive else "bind", mount.propagation.value] if mount.kind == "bind" else []
    return {
        "destination": mount.target,
        "type": mount.kind,
        "source": mount.source or mount.kind,
        "options": [*kind, *mount.flags, *mount.options],
    }
