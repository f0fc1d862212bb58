"""What a translation must know besides the request: the node, the image's users, files and devices of the host.

The values are gathered by `runtime/` before it translates, so that everything here stays pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from crishim.model.process import DeviceNode
from crishim.spec.selinux import DefaultLabels


@dataclass(frozen=True, slots=True)
class NodeAbilities:
    """The node as far as a container depends on it."""

    #: (major, minor) of the running kernel
    kernel: tuple[int, int]
    #: "x86_64" or "aarch64", as uname(2) says
    machine: str
    #: our own bounding set, by name ("CAP_CHOWN"): nobody can be given more
    capabilities: frozenset[str]
    apparmor: bool = False
    #: SELinux is enabled
    selinux: bool = False
    #: contexts of containers that name none; None: nobody gets any
    selinux_labels: DefaultLabels | None = None
    #: why nobody does although they should, as a sentence
    selinux_problem: str = ""
    #: AppArmor profile of containers that name none; None leaves them unconfined
    apparmor_default: str | None = None
    #: why the default profile could not be loaded, as a sentence; "" when it was, or none is wanted
    apparmor_problem: str = ""
    #: mounts can be made read-only with all that is mounted below them
    recursive_read_only: bool = True


class ResolvedUser(Protocol):
    """A user as numbers; `images.users.ResolvedUser` is one."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def groups(self) -> tuple[int, ...]: ...
    @property
    def home(self) -> str: ...


class Users(Protocol):
    """The users of a root file system; `images.users.UserDatabase` is one. InvalidSpec names the value."""

    def resolve(self, user: str) -> ResolvedUser:
        """An image's USER, a name or a number."""
        ...


@dataclass(frozen=True, slots=True)
class PodFiles:
    """Files of the sandbox that its containers see; None where there is none to bind."""

    resolv_conf: str | None
    hostname: str | None
    hosts: str | None


@dataclass(frozen=True, slots=True)
class HostDevice:
    """A device of the host as a container shall see it; access is a subset of "rwm"."""

    node: DeviceNode
    access: str = "rwm"
