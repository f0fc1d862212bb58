"""A pod sandbox: which namespaces its monitor makes, its sysctls, and the text of the files its containers see."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from crishim.errors import InvalidSpec
from crishim.model.handler import PLAIN, Handler
from crishim.model.sandbox import Dns, NamespaceMode, SandboxConfig, UserNamespace

_SYSCTL = re.compile(r"[a-z0-9][a-z0-9_-]*(\.[A-Za-z0-9][A-Za-z0-9_-]*)+")
#: keys that belong to the IPC namespace; a trailing dot or "*" is a prefix (ipc_namespaces(7))
_IPC_KEYS = re.compile(r"kernel\.(shm|msg)[a-z_]*|kernel\.sem(_next_id)?|fs\.mqueue\..+")

#: what containerd and CRI-O set in a pod's own network: programs without privileges may use low ports and ping
NETWORK_DEFAULTS: Mapping[str, str] = {
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ping_group_range": "0 2147483647",
}


@dataclass(frozen=True, slots=True)
class SandboxPlan:
    """What the monitor of a sandbox makes; each flag is "a new one of the pod's own"."""

    network: bool
    ipc: bool
    uts: bool
    shared_pid: bool
    #: name in the pod's own UTS namespace, None with the host's
    hostname: str | None
    sysctls: Mapping[str, str]
    #: the pod's own user namespace
    users: UserNamespace | None = None


def sandbox_plan(config: SandboxConfig, handler: Handler = PLAIN) -> SandboxPlan:
    """The plan of a sandbox, with the defaults of its runtime handler.

    InvalidSpec names the field and value that cannot be honoured.
    """
    options = config.security.namespaces
    where = "config.linux.security_context.namespace_options"
    for field, mode in (("network", options.network), ("ipc", options.ipc)):
        if mode not in (NamespaceMode.POD, NamespaceMode.NODE):
            raise InvalidSpec(f"{where}.{field}: {mode.name} is not one of POD, NODE")
    if options.pid is NamespaceMode.TARGET:
        raise InvalidSpec(f"{where}.pid: TARGET is for containers")
    users = options.own_users
    if users is not None and config.security.privileged:
        raise InvalidSpec("config.linux.security_context.privileged: true cannot go with a user namespace of the pod")
    if config.security.run_as_group is not None and config.security.run_as_user is None:
        raise InvalidSpec(
            f"config.linux.security_context.run_as_group: {config.security.run_as_group} needs run_as_user"
        )
    own_network = options.network is NamespaceMode.POD
    own_ipc = options.ipc is NamespaceMode.POD
    sysctls = {
        **_owned(handler.sysctls, own_network=own_network, own_ipc=own_ipc),
        **checked_sysctls(config.sysctls, own_network=own_network, own_ipc=own_ipc),
    }
    return SandboxPlan(
        network=own_network,
        ipc=own_ipc,
        uts=own_network,
        shared_pid=options.pid is NamespaceMode.POD,
        hostname=config.hostname if own_network and config.hostname else None,
        sysctls={**network_defaults(users), **sysctls} if own_network else sysctls,
        users=users,
    )


def network_defaults(users: UserNamespace | None) -> Mapping[str, str]:
    """NETWORK_DEFAULTS; with users of its own only the pod's groups may ping."""
    if users is None:
        return NETWORK_DEFAULTS
    first = users.gids[0]
    return {**NETWORK_DEFAULTS, "net.ipv4.ping_group_range": f"{first.host_id} {first.host_id + first.length - 1}"}


def _owned(sysctls: Mapping[str, str], *, own_network: bool, own_ipc: bool) -> dict[str, str]:
    """Those defaults whose namespace is the pod's own; the others would change the host."""
    dotted = {_dotted(key): value for key, value in sysctls.items()}
    return {key: value for key, value in dotted.items() if (own_ipc if _IPC_KEYS.fullmatch(key) else own_network)}


def _dotted(key: str) -> str:
    return key.replace("/", ".") if "/" in key else key


def checked_sysctls(
    sysctls: Mapping[str, str], *, own_network: bool, own_ipc: bool, where: str = "config.linux.sysctls"
) -> dict[str, str]:
    """Keys with dots, all of them in namespaces of the pod's own. InvalidSpec names the one at fault, below `where`.

    A key of a namespace that the pod shares with the host would change the host (CVE-2022-0532); a value with a control
    character could say more than one thing (CVE-2022-0811).
    """
    checked: dict[str, str] = {}
    for key, value in sysctls.items():
        field = f"{where}[{key!r}]"
        dotted = _dotted(key)
        if not _SYSCTL.fullmatch(dotted):
            raise InvalidSpec(f"{field}: it is not the name of a sysctl")
        if not value or any(char < " " and char != "\t" for char in value) or "=" in value:
            raise InvalidSpec(f"{field}: {value!r} is not the value of a sysctl")
        if dotted.startswith("net."):
            if not own_network:
                raise InvalidSpec(f"{field}: the pod uses the host's network, which it must not change")
        elif _IPC_KEYS.fullmatch(dotted):
            if not own_ipc:
                raise InvalidSpec(f"{field}: the pod uses the host's IPC, which it must not change")
        elif dotted == "kernel.domainname":
            if not own_network:
                raise InvalidSpec(f"{field}: the pod uses the host's name, which it must not change")
        else:
            raise InvalidSpec(f"{field}: it does not belong to a namespace of the pod")
        checked[dotted] = value
    return checked


def resolv_conf(dns: Dns | None) -> str | None:
    """Text of /etc/resolv.conf; None when the request has no DNS configuration and the host's file counts."""
    if dns is None or not (dns.servers or dns.searches or dns.options):
        return None
    for field, words in (("servers", dns.servers), ("searches", dns.searches), ("options", dns.options)):
        for word in words:
            if not word or any(char <= " " for char in word):
                raise InvalidSpec(f"config.dns_config.{field}: {word!r} is not one word")
    lines = [f"nameserver {server}" for server in dns.servers]
    if dns.searches:
        lines.insert(0, "search " + " ".join(dns.searches))
    if dns.options:
        lines.append("options " + " ".join(dns.options))
    return "\n".join(lines) + "\n"


def hosts_file(hostname: str, ips: tuple[str, ...]) -> str:
    """Text of /etc/hosts for containers to which the kubelet sends none."""
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    lines += [f"{ip}\t{hostname}" for ip in ips if hostname]
    return "\n".join(lines) + "\n"
