"""What the runtime tells plugins about a pod: CNI_ARGS and capability arguments. Pure.

Sources: CNI conventions (portMappings, bandwidth, dns, ips, cgroupPath); the pod annotations are those of Kubernetes'
network plugin documentation. Only plugins that declare a capability are given its argument.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any

from crishim.errors import InvalidSpec
from crishim.model.sandbox import SandboxConfig
from crishim.network.cni.conf import PluginConf

INGRESS_ANNOTATION = "kubernetes.io/ingress-bandwidth"
EGRESS_ANNOTATION = "kubernetes.io/egress-bandwidth"
IPS_ANNOTATION = "cni.crishim.io/ips"
"""Addresses that the pod asks for, comma separated. Only where the node's configuration declares `ips`."""

_POD_ANNOTATIONS = "io.kubernetes.cri.pod-annotations"
#: the lengths keep a hostile annotation from being a number that takes long, or that int() refuses
_QUANTITY = re.compile(r"([0-9]{1,30})(?:\.([0-9]{1,30}))?(k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")
_SHOWN_CHARACTERS = 40
_DECIMAL, _BINARY = "kMGTPE", "KMGTPE"
#: what Kubernetes accepts, in bits per second
_LEAST_RATE, _MOST_RATE = 1000, 10**15
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


def parse_rate(text: str, field: str) -> int:
    """Bits per second of a quantity such as "10M". InvalidSpec outside 1k..1P or when it is not one."""
    text = text.strip()
    shown = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
    match = _QUANTITY.fullmatch(text)
    if not match:
        raise InvalidSpec(f"annotation {field}: {shown!r} is not a rate such as 10M")
    whole, fraction, unit = match[1], match[2] or "", match[3] or ""
    factor: int = 1
    if unit.endswith("i"):
        factor = 1024 ** (_BINARY.index(unit[0]) + 1)
    elif unit:
        factor = 1000 ** (_DECIMAL.index(unit) + 1)
    rate = int(int(whole + fraction) * factor // 10 ** len(fraction))
    if not _LEAST_RATE <= rate <= _MOST_RATE:
        raise InvalidSpec(f"annotation {field}: {shown!r} is not within 1k..1P")
    return rate


def _bandwidth(annotations: Mapping[str, str]) -> dict[str, int]:
    """A burst is what one second of the rate carries."""
    found: dict[str, int] = {}
    for name, annotation in (("ingress", INGRESS_ANNOTATION), ("egress", EGRESS_ANNOTATION)):
        if annotation in annotations:
            rate = parse_rate(annotations[annotation], annotation)
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
