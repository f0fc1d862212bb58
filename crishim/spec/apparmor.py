"""The AppArmor profile of containers that name none: its text, and which profile a container gets. Pure.

It leaves alone what files, capabilities, namespaces and the filter decide, and takes away what a root process of a
container could still do to the node through procfs, sysfs, mounts and other processes. Source: apparmor.d(5).
"""

from __future__ import annotations

from crishim.errors import Unsupported
from crishim.model.container import ContainerSecurity
from crishim.model.sandbox import ProfileType
from crishim.spec.facts import NodeAbilities

DEFAULT_PROFILE = "crishim-default"
#: in the place of a profile's name: no profile
UNCONFINED = "unconfined"

_ALLOWED = (
    "file,",
    "capability,",
    "network,",
    "unix,",
    "umount,",
    "signal (receive) peer=unconfined,",
    f"signal (send, receive) peer={DEFAULT_PROFILE},",
    f"ptrace (read, trace, readby, tracedby) peer={DEFAULT_PROFILE},",
)
#: a deny wins over every allow, so what stays writable (a process's own directory in procfs, sysctls of shared memory,
#: which are the IPC namespace's, and cgroups) is spared by the patterns, letter by letter
_DENIED = (
    "mount,",
    "/proc/* w,",
    "/proc/{kcore,kmem,mem,sysrq-trigger} rwklx,",
    "/proc/{[^0-9s]*,s[^y]*,sys?*}/** w,",
    "/proc/sys/{[^k],k[^e]}** w,",
    "/proc/sys/kernel/{[^s],s[^h],sh[^m]}** w,",
    "/sys/{[^f]*,f[^s]*}/** wklx,",
    "/sys/fs/{[^c],c[^g],cg[^r]}** wklx,",
    "/sys/{firmware,kernel/security,devices/virtual/powercap}/** rwklx,",
)


def default_profile() -> str:
    """The source of the default profile, complete: it includes no file of the node."""
    # attach_disconnected: a root made outside of the pod's mount namespace has no path up to the namespace's root
    flags = "flags=(attach_disconnected, mediate_deleted)"
    rules = [*_ALLOWED, *(f"deny {rule}" for rule in _DENIED)]
    return "\n".join((f"profile {DEFAULT_PROFILE} {flags} {{", *(f"  {rule}" for rule in rules), "}", ""))


def apparmor_profile(security: ContainerSecurity, node: NodeAbilities, default: str = "") -> str | None:
    """Name of the profile of a container, None for none.

    default: what the runtime handler takes for the node's default, "" for that one. Without a word a container has the
    default, a privileged one none. Unsupported when the request names a protection that this node cannot give.
    """
    asked = None if security.apparmor is None else security.apparmor.type
    if asked is ProfileType.UNCONFINED:
        return None
    if asked is not None and not node.apparmor:
        raise Unsupported(
            f"linux.security_context.apparmor: type {asked.name} is asked for, but this node has no AppArmor"
        )
    if asked is ProfileType.LOCALHOST:
        assert security.apparmor is not None
        return security.apparmor.localhost_ref.removeprefix("localhost/")
    if security.privileged or not node.apparmor:
        return None
    if default:
        return None if default == UNCONFINED else default
    if asked is ProfileType.RUNTIME_DEFAULT and node.apparmor_problem:
        raise Unsupported(
            "linux.security_context.apparmor: type RUNTIME_DEFAULT is asked for, but the default profile is not there:"
            f" {node.apparmor_problem}"
        )
    return node.apparmor_default
