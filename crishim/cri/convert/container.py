"""ContainerConfig to its model; Container to Container and ContainerStatus of CRI. Mounts are in `mounts.py`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import cast

from crishim.cri import signals
from crishim.cri.convert import checks, mounts, resources, security
from crishim.cri.convert.texts import to_wire
from crishim.cri.pb import api_pb2 as pb
from crishim.errors import InvalidSpec
from crishim.model.container import (
    CapabilityChange,
    Container,
    ContainerConfig,
    ContainerSecurity,
    Device,
)
from crishim.model.resources import Resources

_CAPABILITY = re.compile(r"[A-Za-z_]{1,64}")
_CDI_DEVICE = re.compile(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+=[A-Za-z0-9_.:-]+")


def from_proto(message: pb.ContainerConfig, path: str = "config") -> ContainerConfig:
    """A container to create; `path` is the field of the request that holds the message."""
    limits = Resources()
    if message.linux.HasField("resources"):
        limits = resources.from_proto(f"{path}.linux.resources", message.linux.resources)
    return ContainerConfig(
        name=checks.name(f"{path}.metadata.name", message.metadata.name),
        attempt=message.metadata.attempt,
        image=checks.reference(f"{path}.image.image", message.image.image),
        user_specified_image=message.image.user_specified_image,
        image_runtime_handler=message.image.runtime_handler,
        command=checks.arguments(f"{path}.command", message.command),
        args=checks.arguments(f"{path}.args", message.args),
        working_dir=checks.absolute_or_empty(f"{path}.working_dir", message.working_dir),
        envs=_envs(f"{path}.envs", message.envs),
        mounts=mounts.from_proto(f"{path}.mounts", message.mounts),
        devices=_devices(f"{path}.devices", message.devices),
        cdi_devices=_cdi_devices(f"{path}.CDI_devices", message.CDI_devices),
        labels=checks.label_map(f"{path}.labels", message.labels),
        annotations=checks.annotation_map(f"{path}.annotations", message.annotations),
        log_path=checks.below(f"{path}.log_path", message.log_path) if message.log_path else "",
        stdin=message.stdin,
        stdin_once=message.stdin_once,
        tty=message.tty,
        stop_signal=signals.from_proto(f"{path}.stop_signal", message.stop_signal),
        resources=limits,
        security=_security(f"{path}.linux.security_context", message.linux.security_context),
    )


def metadata_to_proto(config: ContainerConfig) -> pb.ContainerMetadata:
    """Identity of a container within its pod."""
    return pb.ContainerMetadata(name=config.name, attempt=config.attempt)


def to_list_entry(container: Container) -> pb.Container:
    """The container as an entry of ListContainers."""
    return pb.Container(
        id=container.id,
        pod_sandbox_id=container.sandbox_id,
        metadata=metadata_to_proto(container.config),
        image=_image(container),
        image_ref=container.image_ref,
        state=cast("pb.ContainerState", container.state.value),
        created_at=container.created_at_ns,
        labels=container.config.labels,
        annotations=container.config.annotations,
        image_id=container.image_id,
    )


def to_status(container: Container) -> pb.ContainerStatus:
    """The container as an answer of ContainerStatus."""
    user = container.user
    return pb.ContainerStatus(
        id=container.id,
        metadata=metadata_to_proto(container.config),
        state=cast("pb.ContainerState", container.state.value),
        created_at=container.created_at_ns,
        started_at=container.started_at_ns,
        finished_at=container.finished_at_ns,
        exit_code=container.exit_code,
        image=_image(container),
        image_ref=container.image_ref,
        reason=container.reason,
        message=to_wire(container.message),
        labels=container.config.labels,
        annotations=container.config.annotations,
        mounts=mounts.to_proto(container.config.mounts),
        log_path=container.log_path,
        resources=pb.ContainerResources(linux=resources.to_proto(container.resources)),
        image_id=container.image_id,
        user=pb.ContainerUser(
            linux=pb.LinuxContainerUser(uid=user.uid, gid=user.gid, supplemental_groups=user.supplemental_groups)
        ),
        stop_signal=signals.to_proto(container.stop_signal),
    )


def to_info(container: Container) -> dict[str, str]:
    """What `verbose` adds, as crictl prints it."""
    facts = {
        "sandboxID": container.sandbox_id,
        "pid": container.pid,
        "cgroupPath": container.cgroup_path,
        "privileged": container.config.security.privileged,
    }
    return {"info": json.dumps(facts)}


def _image(container: Container) -> pb.ImageSpec:
    return pb.ImageSpec(
        image=container.image_name,
        user_specified_image=container.config.user_specified_image,
        runtime_handler=container.config.image_runtime_handler,
    )


def _envs(path: str, messages: Iterable[pb.KeyValue]) -> tuple[tuple[str, str], ...]:
    """Pairs in the order given; the bytes of a value that are not UTF-8 become lone surrogates (PEP 383)."""
    envs = []
    for index, message in enumerate(messages):
        key = checks.line(f"{path}[{index}].key", checks.not_empty(f"{path}[{index}].key", message.key))
        if "=" in key:
            checks.refuse(f"{path}[{index}].key", key, 'it must not hold "="')
        if b"\0" in message.value:
            raise InvalidSpec(f"{path}[{index}].value, of {key}, must not hold a NUL byte")
        envs.append((key, message.value.decode("utf-8", "surrogateescape")))
    return tuple(envs)


def _devices(path: str, messages: Iterable[pb.Device]) -> tuple[Device, ...]:
    return tuple(_device(f"{path}[{index}]", message) for index, message in enumerate(messages))


def _device(path: str, message: pb.Device) -> Device:
    permissions = message.permissions or "rwm"
    if not set(permissions) <= set("rwm") or len(set(permissions)) != len(permissions):
        checks.refuse(f"{path}.permissions", permissions, 'it must be made of "r", "w" and "m"')
    return Device(
        container_path=checks.absolute(f"{path}.container_path", message.container_path),
        host_path=checks.absolute(f"{path}.host_path", message.host_path),
        permissions=permissions,
    )


def _cdi_devices(path: str, messages: Iterable[pb.CDIDevice]) -> tuple[str, ...]:
    for index, message in enumerate(messages):
        if not _CDI_DEVICE.fullmatch(message.name):
            checks.refuse(f"{path}[{index}].name", message.name, 'it must be a name such as "vendor/class=device"')
    return tuple(message.name for message in messages)


def _security(path: str, message: pb.LinuxContainerSecurityContext) -> ContainerSecurity:
    user = message.run_as_user if message.HasField("run_as_user") else None
    group = message.run_as_group if message.HasField("run_as_group") else None
    if group is not None and user is None and not message.run_as_username:
        raise InvalidSpec(f"{path}.run_as_group is {group.value}: it needs run_as_user or run_as_username")
    capabilities = None
    if message.HasField("capabilities"):
        capabilities = _capabilities(f"{path}.capabilities", message.capabilities)
    options = None
    if message.HasField("namespace_options"):
        options = security.namespaces_from_proto(f"{path}.namespace_options", message.namespace_options, target=True)
    return ContainerSecurity(
        capabilities=capabilities,
        privileged=message.privileged,
        namespaces=options,
        selinux=security.selinux(f"{path}.selinux_options", message),
        run_as_user=security.optional_id(f"{path}.run_as_user", user),
        run_as_group=security.optional_id(f"{path}.run_as_group", group),
        run_as_username=checks.line(f"{path}.run_as_username", message.run_as_username),
        readonly_rootfs=message.readonly_rootfs,
        supplemental_groups=security.groups(f"{path}.supplemental_groups", message.supplemental_groups),
        strict_groups=security.strict_groups(f"{path}.supplemental_groups_policy", message.supplemental_groups_policy),
        no_new_privs=message.no_new_privs,
        masked_paths=_paths(f"{path}.masked_paths", message.masked_paths),
        readonly_paths=_paths(f"{path}.readonly_paths", message.readonly_paths),
        seccomp=security.seccomp(path, message),
        apparmor=security.apparmor(path, message),
    )


def _capabilities(path: str, message: pb.Capability) -> CapabilityChange:
    return CapabilityChange(
        add=_capability_names(f"{path}.add_capabilities", message.add_capabilities),
        drop=_capability_names(f"{path}.drop_capabilities", message.drop_capabilities),
        add_ambient=_capability_names(f"{path}.add_ambient_capabilities", message.add_ambient_capabilities),
    )


def _capability_names(path: str, names: Iterable[str]) -> tuple[str, ...]:
    for index, name in enumerate(names):
        if not _CAPABILITY.fullmatch(name):
            checks.refuse(f"{path}[{index}]", name, 'it must be a name such as "NET_ADMIN"')
    return tuple(names)


def _paths(path: str, values: Iterable[str]) -> tuple[str, ...]:
    return tuple(checks.absolute(f"{path}[{index}]", value) for index, value in enumerate(values))
