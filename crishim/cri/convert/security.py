"""Namespaces, ids and profiles: what the security of a pod and that of a container have in common.

A missing message and an empty one differ here: NamespaceOption's zero is POD and SecurityProfile's is RuntimeDefault.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, cast

from crishim.cri.convert import checks
from crishim.cri.pb import api_pb2 as pb
from crishim.errors import InvalidSpec
from crishim.model.id_mapping import IdMapping
from crishim.model.sandbox import (
    NamespaceMode,
    NamespaceOptions,
    ProfileType,
    SecurityProfile,
    SELinuxOptions,
    UserNamespace,
)

_LOCALHOST: Final = "localhost/"
#: profiles of the fields that older kubelets fill (api.proto, deprecated)
_OLD_PROFILES: Final = {
    "runtime/default": SecurityProfile(ProfileType.RUNTIME_DEFAULT),
    "docker/default": SecurityProfile(ProfileType.RUNTIME_DEFAULT),
    "unconfined": SecurityProfile(ProfileType.UNCONFINED),
}
_CATEGORIES: Final = r"s[0-9]{1,4}(?::c[0-9]{1,4}(?:[.,]c[0-9]{1,4})*)?"
#: a level of an SELinux context, or a range of two
_LEVEL: Final = re.compile(f"{_CATEGORIES}(?:-{_CATEGORIES})?")
#: the name of a user, a role or a type
_LABEL_PART: Final = re.compile(r"[A-Za-z0-9_.-]{1,255}")
#: NGROUPS_MAX of linux/limits.h
_MAX_GROUPS: Final = 65536


def namespaces_from_proto(path: str, message: pb.NamespaceOption, *, target: bool) -> NamespaceOptions:
    """Namespaces to have; pid TARGET is for containers only (`target`)."""
    host_or_pod = (NamespaceMode.POD, NamespaceMode.NODE)
    pids = (*host_or_pod, NamespaceMode.CONTAINER, *((NamespaceMode.TARGET,) if target else ()))
    pid = _mode(f"{path}.pid", message.pid, pids)
    if pid is NamespaceMode.TARGET:
        checks.identifier(f"{path}.target_id", message.target_id)
    elif message.target_id:
        checks.refuse(f"{path}.target_id", message.target_id, "it needs pid to be TARGET")
    return NamespaceOptions(
        network=_mode(f"{path}.network", message.network, host_or_pod),
        pid=pid,
        ipc=_mode(f"{path}.ipc", message.ipc, host_or_pod),
        target_id=message.target_id,
        user=_user_namespace(f"{path}.userns_options", message),
    )


def namespaces_to_proto(options: NamespaceOptions) -> pb.NamespaceOption:
    """As they were asked for: the kubelet replaces a pod whose network mode differs."""
    message = pb.NamespaceOption(
        network=_mode_to_proto(options.network),
        pid=_mode_to_proto(options.pid),
        ipc=_mode_to_proto(options.ipc),
        target_id=options.target_id,
    )
    if options.user is not None:
        message.userns_options.CopyFrom(
            pb.UserNamespace(
                mode=_mode_to_proto(options.user.mode),
                uids=mappings_to_proto(options.user.uids),
                gids=mappings_to_proto(options.user.gids),
            )
        )
    return message


def _mode(path: str, value: int, allowed: tuple[NamespaceMode, ...]) -> NamespaceMode:
    mode = checks.one_of(path, value, NamespaceMode)
    if mode not in allowed:
        checks.refuse(path, mode.name, "it must be one of " + ", ".join(m.name for m in allowed))
    return mode


def _mode_to_proto(mode: NamespaceMode) -> pb.NamespaceMode:
    return cast("pb.NamespaceMode", mode.value)


def _user_namespace(path: str, options: pb.NamespaceOption) -> UserNamespace | None:
    """None when the kubelet is too old to know of it, which means no user namespace."""
    if not options.HasField("userns_options"):
        return None
    message = options.userns_options
    mode = _mode(f"{path}.mode", message.mode, (NamespaceMode.POD, NamespaceMode.NODE))
    uids = mappings_from_proto(f"{path}.uids", message.uids)
    gids = mappings_from_proto(f"{path}.gids", message.gids)
    for kind, mappings in (("uids", uids), ("gids", gids)):
        if mode is NamespaceMode.NODE and mappings:
            checks.refuse(f"{path}.{kind}", len(mappings), "mode NODE has no mappings")
        if mode is NamespaceMode.POD and (len(mappings) != 1 or mappings[0].container_id != 0):
            checks.refuse(f"{path}.{kind}", len(mappings), "mode POD has exactly one mapping, and it begins at 0")
    return UserNamespace(mode, uids, gids)


def mappings_from_proto(path: str, messages: Iterable[pb.IDMapping]) -> tuple[IdMapping, ...]:
    """Lines of uid_map or gid_map; each ends before the id that means "none"."""
    mappings = []
    for index, message in enumerate(messages):
        mapping = IdMapping(message.container_id, message.host_id, message.length)
        checks.within(f"{path}[{index}].length", mapping.length, 1, checks.MAX_ID + 1)
        last = max(mapping.container_id, mapping.host_id) + mapping.length - 1
        if last > checks.MAX_ID:
            checks.refuse(f"{path}[{index}].length", mapping.length, f"the mapping ends at {last}, beyond the last id")
        mappings.append(mapping)
    return tuple(mappings)


def mappings_to_proto(mappings: Iterable[IdMapping]) -> list[pb.IDMapping]:
    """The same lines."""
    return [pb.IDMapping(host_id=m.host_id, container_id=m.container_id, length=m.length) for m in mappings]


def optional_id(path: str, value: pb.Int64Value | None) -> int | None:
    """A uid or gid, None when it was not given."""
    return None if value is None else checks.within(path, value.value, 0, checks.MAX_ID)


def groups(path: str, values: Iterable[int]) -> tuple[int, ...]:
    """Supplementary groups, in the order given."""
    gids = tuple(checks.within(f"{path}[{index}]", value, 0, checks.MAX_ID) for index, value in enumerate(values))
    if len(gids) > _MAX_GROUPS:
        raise InvalidSpec(f"{path} holds {len(gids)} groups: the kernel takes {_MAX_GROUPS}")
    return gids


def strict_groups(path: str, policy: int) -> bool:
    """Whether SupplementalGroupsPolicy is Strict."""
    return checks.within(path, policy, pb.Merge, pb.Strict) == pb.Strict


def selinux(
    path: str, message: pb.LinuxSandboxSecurityContext | pb.LinuxContainerSecurityContext
) -> SELinuxOptions | None:
    """Parts of a label; None when none is given, which inherits the label of the pod."""
    options = message.selinux_options
    parts = {"user": options.user, "role": options.role, "type": options.type, "level": options.level}
    for part, value in parts.items():
        if value and part == "level" and not _LEVEL.fullmatch(value):
            checks.refuse(f"{path}.{part}", value, "it must be a level like s0:c1,c2")
        if value and part != "level" and not _LABEL_PART.fullmatch(value):
            checks.refuse(f"{path}.{part}", value, "it must be a name of letters, digits, underscores, dots and dashes")
    return SELinuxOptions(**parts) if any(parts.values()) else None


def seccomp(
    path: str, message: pb.LinuxSandboxSecurityContext | pb.LinuxContainerSecurityContext
) -> SecurityProfile | None:
    """The seccomp profile, None for unconfined; the field of older kubelets counts when the newer one is missing."""
    profile: SecurityProfile | None
    if message.HasField("seccomp"):
        profile = _profile(f"{path}.seccomp", message.seccomp)
        field = f"{path}.seccomp.localhost_ref"
    else:
        profile = _old_profile(f"{path}.seccomp_profile_path", message.seccomp_profile_path)
        field = f"{path}.seccomp_profile_path"
    if profile is not None and profile.type is ProfileType.LOCALHOST:
        checks.absolute(field, profile.localhost_ref)
    return profile


def apparmor(
    path: str, message: pb.LinuxSandboxSecurityContext | pb.LinuxContainerSecurityContext
) -> SecurityProfile | None:
    """The AppArmor profile, None for the default; only containers have the field of older kubelets."""
    profile: SecurityProfile | None
    if message.HasField("apparmor"):
        profile = _profile(f"{path}.apparmor", message.apparmor)
    elif isinstance(message, pb.LinuxContainerSecurityContext):
        profile = _old_profile(f"{path}.apparmor_profile", message.apparmor_profile)
    else:
        return None
    if profile is not None and profile.type is ProfileType.LOCALHOST:
        checks.line(f"{path}.apparmor", profile.localhost_ref)
    return profile


def _profile(path: str, message: pb.SecurityProfile) -> SecurityProfile:
    kind = checks.one_of(f"{path}.profile_type", message.profile_type, ProfileType)
    if kind is not ProfileType.LOCALHOST:
        if message.localhost_ref:
            checks.refuse(f"{path}.localhost_ref", message.localhost_ref, "it needs the profile type Localhost")
        return SecurityProfile(kind)
    ref = message.localhost_ref.removeprefix(_LOCALHOST)  # critest sends the prefix of the older field
    return SecurityProfile(kind, checks.not_empty(f"{path}.localhost_ref", ref))


def _old_profile(path: str, value: str) -> SecurityProfile | None:
    if not value:
        return None
    if value.startswith(_LOCALHOST):
        return SecurityProfile(ProfileType.LOCALHOST, checks.not_empty(path, value.removeprefix(_LOCALHOST)))
    if value not in _OLD_PROFILES:
        checks.refuse(path, value, f"it must be {', '.join(_OLD_PROFILES)} or {_LOCALHOST}NAME")
    return _OLD_PROFILES[value]
