"""PodSandboxConfig to SandboxConfig; Sandbox to PodSandbox and PodSandboxStatus."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Final, cast

from google.protobuf import json_format

from crishim.cri.convert import checks, resources, security
from crishim.cri.convert.texts import to_wire
from crishim.cri.pb import api_pb2 as pb
from crishim.errors import InvalidSpec
from crishim.model.resources import Resources
from crishim.model.sandbox import (
    Dns,
    NamespaceOptions,
    PortMapping,
    Sandbox,
    SandboxConfig,
    SandboxSecurity,
)

#: a name for sethostname(2), which takes 64 bytes: a DNS name, with the underscore that hosts have
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,62}[A-Za-z0-9])?")
#: parts of a sysctl's key; an interface name may hold dots when slashes separate the parts
_SYSCTL_PART: Final = r"[A-Za-z0-9_-]+"
_SYSCTL_KEY = re.compile(rf"{_SYSCTL_PART}(\.{_SYSCTL_PART})+|{_SYSCTL_PART}(/{_SYSCTL_PART}(\.{_SYSCTL_PART})*)+")
_SYSCTL_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
#: a kubelet lets through 2 KiB of searches; a resolv.conf is read by every process that looks a name up
_MAX_DNS_BYTES: Final = 64 << 10
_PROTOCOLS: Final = {pb.TCP: "tcp", pb.UDP: "udp", pb.SCTP: "sctp"}


def from_proto(message: pb.PodSandboxConfig, runtime_handler: str = "", path: str = "config") -> SandboxConfig:
    """A pod to run; `path` is the field of the request that holds the message."""
    metadata = message.metadata
    if runtime_handler:
        checks.word("runtime_handler", runtime_handler)
    return SandboxConfig(
        name=checks.name(f"{path}.metadata.name", metadata.name),
        uid=checks.name(f"{path}.metadata.uid", metadata.uid),
        namespace=checks.name(f"{path}.metadata.namespace", metadata.namespace),
        attempt=metadata.attempt,
        hostname=_hostname(f"{path}.hostname", message.hostname),
        log_directory=checks.directory(f"{path}.log_directory", message.log_directory),
        dns=_dns(f"{path}.dns_config", message.dns_config) if message.HasField("dns_config") else None,
        port_mappings=_port_mappings(f"{path}.port_mappings", message.port_mappings),
        labels=checks.label_map(f"{path}.labels", message.labels),
        annotations=checks.annotation_map(f"{path}.annotations", message.annotations),
        cgroup_parent=_cgroup_parent(f"{path}.linux.cgroup_parent", message.linux.cgroup_parent),
        sysctls=_sysctls(f"{path}.linux.sysctls", message.linux.sysctls),
        security=_security(f"{path}.linux.security_context", message.linux.security_context),
        overhead=(
            resources.from_proto(f"{path}.linux.overhead", message.linux.overhead)
            if message.linux.HasField("overhead")
            else None
        ),
        resources=(
            resources.from_proto(f"{path}.linux.resources", message.linux.resources)
            if message.linux.HasField("resources")
            else None
        ),
        runtime_handler=runtime_handler,
    )


def metadata_to_proto(config: SandboxConfig) -> pb.PodSandboxMetadata:
    """Identity of a pod."""
    return pb.PodSandboxMetadata(name=config.name, uid=config.uid, namespace=config.namespace, attempt=config.attempt)


def to_list_entry(sandbox: Sandbox) -> pb.PodSandbox:
    """The pod as an entry of ListPodSandbox."""
    return pb.PodSandbox(
        id=sandbox.id,
        metadata=metadata_to_proto(sandbox.config),
        state=cast("pb.PodSandboxState", sandbox.state.value),
        created_at=sandbox.created_at_ns,
        labels=sandbox.config.labels,
        annotations=sandbox.config.annotations,
        runtime_handler=sandbox.config.runtime_handler,
    )


def to_status(sandbox: Sandbox) -> pb.PodSandboxStatus:
    """The pod as an answer of PodSandboxStatus.

    `network` is always present: without it the kubelet would take a pod that has no address for one on the host's
    network.
    """
    ips = sandbox.ips
    return pb.PodSandboxStatus(
        id=sandbox.id,
        metadata=metadata_to_proto(sandbox.config),
        state=cast("pb.PodSandboxState", sandbox.state.value),
        created_at=sandbox.created_at_ns,
        network=pb.PodSandboxNetworkStatus(
            ip=ips[0] if ips else "", additional_ips=[pb.PodIP(ip=ip) for ip in ips[1:]]
        ),
        linux=pb.LinuxPodSandboxStatus(
            namespaces=pb.Namespace(options=security.namespaces_to_proto(sandbox.config.security.namespaces))
        ),
        labels=sandbox.config.labels,
        annotations=sandbox.config.annotations,
        runtime_handler=sandbox.config.runtime_handler,
    )


def to_info(sandbox: Sandbox) -> dict[str, str]:
    """What `verbose` adds, as crictl prints it."""
    facts = {
        "cgroupPath": sandbox.cgroup_path,
        "netnsPath": sandbox.netns_path,
        "reason": to_wire(sandbox.reason),
        "logDirectory": sandbox.config.log_directory,
        "hostname": sandbox.config.hostname,
        "privileged": sandbox.config.security.privileged,
        "overhead": _sums(sandbox.config.overhead),
        "resources": _sums(sandbox.config.resources),
    }
    return {"info": json.dumps(facts)}


def _sums(limits: Resources | None) -> object:
    """What the kubelet told of the pod as a whole, when it was made or after a resize."""
    if limits is None:
        return None
    return json_format.MessageToDict(resources.to_proto(limits), preserving_proto_field_name=True)


def _hostname(path: str, value: str) -> str:
    if value and not _HOSTNAME.fullmatch(value):
        checks.refuse(path, value, "it must be a host name of at most 64 characters")
    return value


def _dns(path: str, message: pb.DNSConfig) -> Dns:
    if message.ByteSize() > _MAX_DNS_BYTES:
        raise InvalidSpec(f"{path} holds {message.ByteSize()} bytes: it must not hold more than {_MAX_DNS_BYTES}")
    servers = [checks.address(f"{path}.servers[{index}]", server) for index, server in enumerate(message.servers)]
    searches = checks.words(f"{path}.searches", message.searches)
    return Dns(tuple(servers), searches, checks.words(f"{path}.options", message.options))


def _port_mappings(path: str, messages: Iterable[pb.PortMapping]) -> tuple[PortMapping, ...]:
    return tuple(_port_mapping(f"{path}[{index}]", message) for index, message in enumerate(messages))


def _port_mapping(path: str, message: pb.PortMapping) -> PortMapping:
    protocol = _PROTOCOLS.get(message.protocol)
    if protocol is None:
        checks.refuse(f"{path}.protocol", int(message.protocol), "it must be TCP, UDP or SCTP")
    if message.host_ip:
        checks.address(f"{path}.host_ip", message.host_ip)
    return PortMapping(
        protocol=protocol,
        container_port=checks.within(f"{path}.container_port", message.container_port, 1, checks.MAX_PORT),
        host_port=checks.within(f"{path}.host_port", message.host_port, 0, checks.MAX_PORT),
        host_ip=message.host_ip,
    )


def _cgroup_parent(path: str, value: str) -> str:
    """Absolute, or "" when the runtime is to choose; a slice given by its name alone is below the root."""
    absolute = value if not value or value.startswith("/") else f"/{value}"
    return checks.directory(path, absolute)


def _sysctls(path: str, values: Mapping[str, str]) -> dict[str, str]:
    """Keys as they were given, with dots or slashes; which of them a pod may set is decided later.

    One key is one file and one value one write, so nothing that could begin a second assignment passes.
    """
    for key, value in values.items():
        if not _SYSCTL_KEY.fullmatch(key):
            checks.refuse(f"{path} key", key, 'it must be a name such as "net.core.somaxconn"')
        if not _SYSCTL_VALUE.fullmatch(value):
            checks.refuse(f"{path}[{key}]", value, "it must be one line")
    return dict(values)


def _security(path: str, message: pb.LinuxSandboxSecurityContext) -> SandboxSecurity:
    user = message.run_as_user if message.HasField("run_as_user") else None
    group = message.run_as_group if message.HasField("run_as_group") else None
    if group is not None and user is None:
        raise InvalidSpec(f"{path}.run_as_group is {group.value}: it needs run_as_user")
    options = NamespaceOptions()
    if message.HasField("namespace_options"):
        options = security.namespaces_from_proto(f"{path}.namespace_options", message.namespace_options, target=False)
    return SandboxSecurity(
        namespaces=options,
        selinux=security.selinux(f"{path}.selinux_options", message),
        run_as_user=security.optional_id(f"{path}.run_as_user", user),
        run_as_group=security.optional_id(f"{path}.run_as_group", group),
        readonly_rootfs=message.readonly_rootfs,
        supplemental_groups=security.groups(f"{path}.supplemental_groups", message.supplemental_groups),
        strict_groups=security.strict_groups(f"{path}.supplemental_groups_policy", message.supplemental_groups_policy),
        privileged=message.privileged,
        seccomp=security.seccomp(path, message),
        apparmor=security.apparmor(path, message),
    )
