"""Capabilities of a container's process: the default set, what the pod adds and drops, and what we can give at all."""

from __future__ import annotations

from collections.abc import Iterable

from crishim.errors import InvalidSpec
from crishim.model.capabilities import CAPABILITIES
from crishim.model.container import CapabilityChange, ContainerSecurity
from crishim.model.handler import Handler
from crishim.model.process import Capabilities

#: what containerd and docker give; CRI-O gives five fewer
DEFAULT = frozenset(
    {
        "CAP_AUDIT_WRITE",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_RAW",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SETUID",
        "CAP_SYS_CHROOT",
    }
)

KNOWN = frozenset(CAPABILITIES)


def capability_sets(
    security: ContainerSecurity, ours: frozenset[str], default: frozenset[str] = DEFAULT
) -> Capabilities:
    """The five sets of a container's init and execs; never more than `ours`, our own bounding set.

    default: what a container has that adds and drops nothing.

    Inheritable stays empty (CVE-2022-24769) unless ambient capabilities are asked for, which the kernel ties to it.
    """
    if security.privileged:
        return Capabilities(bounding=ours, effective=ours, permitted=ours)
    change = security.capabilities or CapabilityChange()
    names = _changed(change, ours, default) & ours
    ambient = _names("add_ambient_capabilities", change.add_ambient, ours) & ours
    names |= ambient
    return Capabilities(bounding=names, effective=names, permitted=names, inheritable=ambient, ambient=ambient)


def default_of(handler: Handler) -> frozenset[str]:
    """What a container of the runtime handler has that adds and drops nothing."""
    return DEFAULT if handler.capabilities is None else frozenset(handler.capabilities)


def _changed(change: CapabilityChange, ours: frozenset[str], default: frozenset[str]) -> frozenset[str]:
    """ "ALL" first, then single additions, then single drops: a drop wins over an addition."""
    names = default
    if _has_all(change.add):
        names = ours
    if _has_all(change.drop):
        names = frozenset()
    names |= _names("add_capabilities", (name for name in change.add if name.upper() != "ALL"), ours)
    return names - _names("drop_capabilities", (name for name in change.drop if name.upper() != "ALL"), ours)


def _has_all(names: Iterable[str]) -> bool:
    return any(name.upper() == "ALL" for name in names)


def _names(field: str, names: Iterable[str], ours: frozenset[str]) -> frozenset[str]:
    found: set[str] = set()
    for name in names:
        if name.upper() == "ALL":
            found |= ours
            continue
        full = "CAP_" + name.upper().removeprefix("CAP_")
        if full not in KNOWN:
            raise InvalidSpec(f"linux.security_context.capabilities.{field}: {name!r} is not a capability")
        found.add(full)
    return frozenset(found)
