"""Host ports as a sandbox asks for them: checked, in one spelling, and without repetitions. Pure.

Beyond its scope: ports of other sandboxes (`pool.py`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import replace

from crishim.errors import InvalidSpec
from crishim.model.sandbox import PortMapping, SandboxConfig
from crishim.network.pool import Subnet
from crishim.network.rules import claimed_addresses, host_address, is_known_protocol


def validated_ports(sandbox: SandboxConfig) -> tuple[PortMapping, ...]:
    """Mappings that ask for a host port, each once, with the address in its one usual spelling.

    One whose address another one includes for the same purpose is left out. InvalidSpec names the field and the value.
    """
    ports: list[PortMapping] = []
    for given in sandbox.port_mappings:
        if given.host_port == 0:
            continue
        port = _validated_port(given)
        rivals = [each for each in ports if _has_same_key(port, each)]
        if any(each.container_port != port.container_port for each in rivals):
            where = f"{port.host_ip or 'every address'}, {port.protocol}"
            raise InvalidSpec(f"port_mappings: host_port {port.host_port} ({where}) has two container ports")
        if any(_includes(each, port) for each in rivals):
            continue
        ports = [each for each in ports if each not in rivals] + [port]
    return tuple(ports)


def _validated_port(port: PortMapping) -> PortMapping:
    if not is_known_protocol(port.protocol):
        raise InvalidSpec(f"port_mappings.protocol: {port.protocol!r} is not one of tcp, udp, sctp")
    if not (0 < port.host_port < 65536 and 0 < port.container_port < 65536):
        pair = f"{port.host_port}, {port.container_port}"
        raise InvalidSpec(f"port_mappings: host_port, container_port {pair} are not within 1..65535")
    try:
        address = host_address(port)
    except ValueError:
        raise InvalidSpec(f"port_mappings.host_ip: {port.host_ip!r} is not an IP address") from None
    # by its bytes: the scope of an IPv6 address is no part of a packet
    return port if address is None else replace(port, host_ip=str(ipaddress.ip_address(address.packed)))


def _has_same_key(one: PortMapping, other: PortMapping) -> bool:
    """Whether both would be one element of a set of `rules.py`."""
    if (one.protocol, one.host_port) != (other.protocol, other.host_port):
        return False
    return not set(claimed_addresses(one)).isdisjoint(claimed_addresses(other))


def _includes(wide: PortMapping, narrow: PortMapping) -> bool:
    return set(claimed_addresses(wide)).issuperset(claimed_addresses(narrow))


def require_family(ports: Iterable[PortMapping], subnets: Iterable[Subnet]) -> None:
    """InvalidSpec when a port is on an address of a family that pods do not have."""
    versions = {subnet.version for subnet in subnets}
    for port in ports:
        address = host_address(port)
        if address is not None and address.version not in versions:
            raise InvalidSpec(f"port_mappings.host_ip: {port.host_ip!r}, but pods have no IPv{address.version} address")
