"""What the runtime tells plugins about a pod: CNI_ARGS and capability arguments. Pure.

Source: CNI conventions (portMappings, bandwidth, dns, ips, cgroupPath). Only plugins that declare a capability are
given its argument.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from crishim.errors import InvalidSpec
from crishim.model.sandbox import SandboxConfig
from crishim.network.bandwidth import bandwidth_of
from crishim.network.cni.conf import PluginConf

IPS_ANNOTATION = "cni.crishim.io/ips"
"""Addresses that the pod asks for, comma separated. Only where the node's configuration declares `ips`."""

_POD_ANNOTATIONS = "io.kubernetes.cri.pod-annotations"
#: the token bucket of tc-tbf(8) counts bits in 32
_MOST_BURST = 2**32 - 1


def cni_args(sandbox_id: str, sandbox: SandboxConfig) -> str:
    """Value of CNI_ARGS. InvalidSpec when a name would end its pair."""
    pairs = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": sandbox.namespace,
        "K8S_POD_NAME": sandbox.name,
        "K8S_POD_INFRA_CONTAINER_ID": sandbox_id,
        "K8S_POD_UID": sandbox.uid,
    }
    for key, value in pairs.items():
        if any(character in ";=\0\n" for character in value):
            raise InvalidSpec(f"metadata: {value!r} cannot be given to CNI plugins as {key}")
    return ";".join(f"{key}={value}" for key, value in pairs.items())


def capability_args(sandbox: SandboxConfig, cgroup_path: str) -> dict[str, Any]:
    """Arguments by capability; what the pod does not ask for is left out. InvalidSpec names the field."""
    found: dict[str, Any] = {}
    ports = [
        {
            "hostPort": port.host_port,
            "containerPort": port.container_port,
            "protocol": port.protocol,
            **({"hostIP": port.host_ip} if port.host_ip else {}),
        }
        for port in sandbox.port_mappings
        if port.host_port > 0
    ]
    if ports:
        found["portMappings"] = ports
    if bandwidth := _bandwidth(sandbox.annotations):
        found["bandwidth"] = bandwidth
    if sandbox.dns is not None:
        dns = sandbox.dns
        found["dns"] = {"servers": [*dns.servers], "searches": [*dns.searches], "options": [*dns.options]}
    if IPS_ANNOTATION in sandbox.annotations:
        found["ips"] = _ips(sandbox.annotations[IPS_ANNOTATION])
    if cgroup_path:
        found["cgroupPath"] = cgroup_path
    if sandbox.annotations:
        found[_POD_ANNOTATIONS] = dict(sandbox.annotations)
    return found


def runtime_config(plugin: PluginConf, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those that this plugin declares."""
    return {name: value for name, value in arguments.items() if name in plugin.capabilities}


def _bandwidth(annotations: Mapping[str, str]) -> dict[str, int]:
    """A burst is what one second of the rate carries."""
    asked = bandwidth_of(annotations)
    found: dict[str, int] = {}
    for name, rate in (("ingress", asked.ingress), ("egress", asked.egress)):
        if rate is not None:
            found |= {f"{name}Rate": rate, f"{name}Burst": min(rate, _MOST_BURST)}
    return found


def _ips(text: str) -> list[str]:
    ips = [each.strip() for each in text.split(",") if each.strip()]
    for each in ips:
        try:
            ipaddress.ip_interface(each)
        except ValueError:
            raise InvalidSpec(f"annotation {IPS_ANNOTATION}: {each!r} is not an IP address") from None
    return ips
