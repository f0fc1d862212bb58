"""Mounts of a container, in both directions (api.proto `Mount`)."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from typing import Final

from crishim.cri.convert import checks, security
from crishim.cri.pb import api_pb2 as pb
from crishim.errors import InvalidSpec
from crishim.model.container import Mount
from crishim.model.process import Propagation

_PROPAGATIONS: Final = {
    pb.PROPAGATION_PRIVATE: Propagation.PRIVATE,
    pb.PROPAGATION_HOST_TO_CONTAINER: Propagation.HOST_TO_CONTAINER,
    pb.PROPAGATION_BIDIRECTIONAL: Propagation.BIDIRECTIONAL,
}
_WIRE_PROPAGATIONS: Final = {propagation: number for number, propagation in _PROPAGATIONS.items()}
_OPTIONS: Final = ("noexec", "nodev", "nosuid")


def from_proto(path: str, messages: Iterable[pb.Mount]) -> tuple[Mount, ...]:
    """Mounts in the order of the request."""
    return tuple(_mount(f"{path}[{index}]", message) for index, message in enumerate(messages))


def to_proto(mounts: Iterable[Mount]) -> list[pb.Mount]:
    """Mounts as they were asked for: the kubelet finds the termination message by their paths."""
    return [_to_proto(mount) for mount in mounts]


def _mount(path: str, message: pb.Mount) -> Mount:
    target = checks.absolute(f"{path}.container_path", message.container_path)
    if posixpath.normpath(target).strip("/") == "":
        checks.refuse(f"{path}.container_path", target, "nothing can be mounted over the root of a container")
    propagation = _PROPAGATIONS.get(message.propagation)
    if propagation is None:
        checks.refuse(f"{path}.propagation", int(message.propagation), "it must be 0, 1 or 2")
    if message.recursive_read_only and not (message.readonly and propagation is Propagation.PRIVATE):
        raise InvalidSpec(f"{path}.recursive_read_only needs readonly and the propagation PROPAGATION_PRIVATE")
    for option in message.mount_options:
        if option not in _OPTIONS:
            checks.refuse(f"{path}.mount_options", option, f"it must be one of {', '.join(_OPTIONS)}")
    return Mount(
        container_path=target,
        host_path=_source(path, message),
        readonly=message.readonly,
        selinux_relabel=message.selinux_relabel,
        propagation=propagation,
        uid_mappings=security.mappings_from_proto(f"{path}.uidMappings", message.uidMappings),
        gid_mappings=security.mappings_from_proto(f"{path}.gidMappings", message.gidMappings),
        recursive_read_only=message.recursive_read_only,
        image=_image(path, message),
        image_sub_path=_sub_path(f"{path}.image_sub_path", message.image_sub_path),
        options=tuple(message.mount_options),
    )


def _source(path: str, message: pb.Mount) -> str:
    """The host path, "" for an image volume."""
    if not message.HasField("image"):
        return checks.absolute(f"{path}.host_path", message.host_path)
    if message.host_path:
        checks.refuse(f"{path}.host_path", message.host_path, "an image volume has no host path")
    return ""


def _image(path: str, message: pb.Mount) -> str | None:
    if message.HasField("image"):
        if not message.readonly:
            raise InvalidSpec(f"{path}.readonly is false: an image volume is read-only")
        return checks.reference(f"{path}.image.image", message.image.image)
    if message.image_sub_path:
        checks.refuse(f"{path}.image_sub_path", message.image_sub_path, "it needs an image")
    return None


def _sub_path(path: str, value: str) -> str:
    """A path below the root of the image; "" for all of it."""
    return checks.below(path, value.rstrip("/")) if value else ""


def _to_proto(mount: Mount) -> pb.Mount:
    message = pb.Mount(
        container_path=mount.container_path,
        host_path=mount.host_path,
        readonly=mount.readonly,
        selinux_relabel=mount.selinux_relabel,
        propagation=_WIRE_PROPAGATIONS[mount.propagation],
        uidMappings=security.mappings_to_proto(mount.uid_mappings),
        gidMappings=security.mappings_to_proto(mount.gid_mappings),
        recursive_read_only=mount.recursive_read_only,
        image_sub_path=mount.image_sub_path,
        mount_options=mount.options,
    )
    if mount.image is not None:
        message.image.image = mount.image
        message.image.image_ref = mount.image_ref
    return message
