"""The packet rules of one instance: what the embedded bridge network asks of nf_tables. Pure.

The rules never change while pods come and go, only the elements of sets do, so adding or removing a pod is one small
transaction whatever their number:

    podsN      addresses of pods                           masquerade what leaves the node
    portsN     protocol . port      -> address . port      host ports on every local address
    ports_atN  address . protocol . port -> address . port host ports on one address, asked first

A reply to 127.0.0.1, to ::1 or to a pod on the same bridge would not come back through the node, so packets that were
redirected into the bridge from there are masqueraded too. `route_localnet`, which host ports on 127.0.0.1 need, lets
the other side of a link reach the node's loopback (CVE-2020-8558), so packets for 127.0.0.0/8 and ::1 from the bridge
are dropped: they are looked at before a reply gets the loopback's address back. Router advertisements between pods are
dropped: a pod would take a neighbour's traffic (CVE-2020-10749).
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from crishim.model.sandbox import PortMapping
from crishim.network import nftables as nft
from crishim.network.netlink import Request
from crishim.network.rtnetlink import Address

PORT_PREFIX = "crv"
"""How the names of all bridge ports begin, those of every instance."""

_SETS = ("pods", "ports", "ports_at")
_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
_ICMPV6, _ROUTER_ADVERTISEMENT = 58, 134
_FAMILIES = {4: nft.FAMILY_IPV4, 6: nft.FAMILY_IPV6}
_ADDRESS_TYPES = {4: nft.IPV4_ADDR, 6: nft.IPV6_ADDR}
_UNSPECIFIED: tuple[Address, ...] = (ipaddress.IPv4Address(0), ipaddress.IPv6Address(0))
_IS_LOOPBACK = {
    4: (nft.mask(b"\xff\0\0\0"), nft.is_equal(b"\x7f\0\0\0")),
    6: (nft.is_equal(ipaddress.IPv6Address("::1").packed),),
}
#: offsets of saddr and daddr in the IP header
_SADDR, _DADDR = {4: 12, 6: 8}, {4: 16, 6: 24}

_DSTNAT = nft.Chain("prerouting", "nat", nft.HOOK_PREROUTING, nft.PRIORITY_DSTNAT)
_OUTPUT = nft.Chain("output", "nat", nft.HOOK_OUTPUT, nft.PRIORITY_DSTNAT)
_SRCNAT = nft.Chain("postrouting", "nat", nft.HOOK_POSTROUTING, nft.PRIORITY_SRCNAT)
_GUARD = nft.Chain("guard", "filter", nft.HOOK_PREROUTING, nft.PRIORITY_RAW)


@dataclass(frozen=True, slots=True)
class PodRules:
    """What one pod needs: its addresses, one per family at most, and its host ports."""

    ips: tuple[Address, ...]
    ports: tuple[PortMapping, ...] = ()


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The tables of one instance. `versions` are the IP versions of its subnets, 4 or 6 or both.

    `loopback6`: host ports answer on ::1 too. Else ::1 is left alone, and a call is refused at once instead of waiting.
    """

    table: str
    bridge: str
    versions: tuple[int, ...]
    loopback6: bool = True

    def replace_all(self, pods: Iterable[PodRules]) -> list[Request]:
        """Everything anew in one transaction, so that no packet meets a missing rule. It also removes leftovers."""
        requests = list(self.delete_all())
        requests.append(nft.add_table(nft.FAMILY_INET, self.table))
        requests += [nft.add_chain(nft.FAMILY_INET, self.table, each) for each in (_GUARD, _DSTNAT, _OUTPUT, _SRCNAT)]
        for version in self.versions:
            requests += self._sets(version)
            requests += self._rules(version)
        elements: dict[str, list[tuple[bytes, bytes | None]]] = {}
        for pod in pods:
            for name, key, value in self._elements(pod):
                elements.setdefault(name, []).append((key, value))
        for name, members in elements.items():
            requests += [nft.add_elements(nft.FAMILY_INET, self.table, name, part) for part in _parts(members)]
        if 6 in self.versions:
            requests += self._advertisement_guard()
        return requests

    def delete_all(self) -> Iterator[Request]:
        """Each table is added first, since deleting what is not there would fail the transaction."""
        for family in (nft.FAMILY_INET, nft.FAMILY_BRIDGE) if 6 in self.versions else (nft.FAMILY_INET,):
            yield nft.add_table(family, self.table)
            yield nft.delete_table(family, self.table)

    def add_pod(self, pod: PodRules) -> list[Request]:
        """ENOENT when the table is gone, EEXIST when another pod has one of the host ports."""
        return [
            nft.add_elements(nft.FAMILY_INET, self.table, name, [(key, value)])
            for name, key, value in self._elements(pod)
        ]

    def remove_pod(self, pod: PodRules) -> list[Request]:
        """Added first, for the same reason as in `delete_all`; ENOENT when the table is gone."""
        requests = self.add_pod(pod)
        requests += [
            nft.delete_elements(nft.FAMILY_INET, self.table, name, [(key, value)])
            for name, key, value in self._elements(pod)
        ]
        return requests

    def keys(self, pods: Iterable[PodRules]) -> dict[str, set[bytes]]:
        """Keys that each set has when these are all pods."""
        found: dict[str, set[bytes]] = {f"{name}{each}": set() for name in _SETS for each in self.versions}
        for pod in pods:
            for name, key, _ in self._elements(pod):
                found[name].add(key)
        return found

    def _elements(self, pod: PodRules) -> Iterator[tuple[str, bytes, bytes | None]]:
        """(set, key, value or None)."""
        for ip in pod.ips:
            if ip.version not in self.versions:
                continue
            yield f"pods{ip.version}", ip.packed, None
            for port in pod.ports:
                host_ip = host_address(port)
                if host_ip is not None and host_ip.version != ip.version:
                    continue
                key = (bytes([_PROTOCOLS[port.protocol]]), struct.pack(">H", port.host_port))
                value = nft.concat(ip.packed, struct.pack(">H", port.container_port))
                if host_ip is None or host_ip.is_unspecified:
                    yield f"ports{ip.version}", nft.concat(*key), value
                else:
                    yield f"ports_at{ip.version}", nft.concat(host_ip.packed, *key), value

    def _sets(self, version: int) -> list[Request]:
        address = _ADDRESS_TYPES[version]
        port, target = nft.INET_PROTO + nft.INET_SERVICE, address + nft.INET_SERVICE
        # a fold: a concatenation of three is that of the first two with the third
        port_at = (address + nft.INET_PROTO) + nft.INET_SERVICE
        base = version * 10
        return [
            nft.add_set(nft.FAMILY_INET, self.table, f"pods{version}", base, address),
            nft.add_set(nft.FAMILY_INET, self.table, f"ports{version}", base + 1, port, target),
            nft.add_set(nft.FAMILY_INET, self.table, f"ports_at{version}", base + 2, port_at, target),
        ]

    def _rules(self, version: int) -> list[Request]:
        is_version = (nft.load_meta(nft.META_NFPROTO), nft.is_equal(bytes([_FAMILIES[version]])))
        source = nft.load_payload(nft.BASE_NETWORK, _SADDR[version], _ADDRESS_TYPES[version].length)
        into_bridge = (nft.load_meta(nft.META_OIFNAME), nft.is_equal(nft.interface_name(self.bridge)))
        out_of_node = (nft.load_meta(nft.META_OIFNAME), nft.is_not_equal(nft.interface_name(self.bridge)))
        redirected = (nft.load_ct(nft.CT_STATUS), nft.mask(_native(nft.CT_STATUS_DNAT)), nft.is_not_equal(_native(0)))
        from_pod = (source, nft.is_in(f"pods{version}"))
        chains: list[tuple[nft.Chain, Sequence[bytes]]] = [
            (_SRCNAT, (*is_version, *from_pod, *out_of_node, nft.masquerade())),
            (_SRCNAT, (*is_version, *into_bridge, *redirected, *from_pod, nft.masquerade())),
        ]
        target = nft.load_payload(nft.BASE_NETWORK, _DADDR[version], _ADDRESS_TYPES[version].length)
        is_loopback = _IS_LOOPBACK[version]
        chains.append((_SRCNAT, (*is_version, *into_bridge, *redirected, source, *is_loopback, nft.masquerade())))
        from_bridge = (nft.load_meta(nft.META_IIFNAME), nft.is_equal(nft.interface_name(self.bridge)))
        chains.append((_GUARD, (*is_version, *from_bridge, target, *is_loopback, nft.drop())))
        if version == 6 and not self.loopback6:
            chains.append((_OUTPUT, (*is_version, target, *is_loopback, nft.accept())))
        for chain in (_DSTNAT, _OUTPUT):
            for at_address in (True, False):
                redirect = self._redirect(version, at_address)
                chains.append((chain, (*is_version, *nft.daddr_is_local(), *redirect)))
        return [nft.add_rule(nft.FAMILY_INET, self.table, chain.name, rule) for chain, rule in chains]

    def _redirect(self, version: int, at_address: bool) -> Iterator[bytes]:
        registers = _ADDRESS_TYPES[version].length // 4
        register = nft.FIRST_REGISTER
        if at_address:
            yield nft.load_payload(nft.BASE_NETWORK, _DADDR[version], registers * 4)
            register += registers
        yield nft.load_meta(nft.META_L4PROTO, register)
        yield nft.load_payload(nft.BASE_TRANSPORT, 2, 2, register + 1)
        yield nft.map_by(f"ports_at{version}" if at_address else f"ports{version}")
        yield nft.dnat(_FAMILIES[version], nft.FIRST_REGISTER, nft.FIRST_REGISTER + registers)

    def _advertisement_guard(self) -> list[Request]:
        """In the bridge family, where frames between two pods pass."""
        rule = (
            # by the name of the port: asking for its bridge needs a part of the kernel that many are built without
            nft.load_meta(nft.META_IIFNAME),
            nft.is_equal(PORT_PREFIX.encode()),
            nft.load_payload(nft.BASE_LINK, 12, 2),
            nft.is_equal(struct.pack(">H", 0x86DD)),
            nft.load_meta(nft.META_L4PROTO),
            nft.is_equal(bytes([_ICMPV6])),
            nft.load_payload(nft.BASE_TRANSPORT, 0, 1),
            nft.is_equal(bytes([_ROUTER_ADVERTISEMENT])),
            nft.drop(),
        )
        return [
            nft.add_table(nft.FAMILY_BRIDGE, self.table),
            nft.add_chain(nft.FAMILY_BRIDGE, self.table, _GUARD),
            nft.add_rule(nft.FAMILY_BRIDGE, self.table, _GUARD.name, rule),
        ]


def describe_key(name: str, key: bytes) -> str:
    """An element of a set for people: "pods4 10.88.0.5", "ports_at4 127.0.0.1 tcp 8080"."""
    words = [name]
    if not name.startswith("ports") or name.startswith("ports_at"):
        length = _ADDRESS_TYPES[int(name[-1])].length
        words.append(str(ipaddress.ip_address(key[:length])))
        key = key[length:]
    if key:  # each member of a concatenation begins at a multiple of four
        protocol = next((each for each, number in _PROTOCOLS.items() if number == key[0]), str(key[0]))
        words += [protocol, str(int.from_bytes(key[4:6], "big"))]
    return " ".join(words)


def host_address(port: PortMapping) -> Address | None:
    """The address of a host port, None when it is on every address of both families."""
    return ipaddress.ip_address(port.host_ip) if port.host_ip else None


def claimed_addresses(port: PortMapping) -> tuple[Address, ...]:
    """Where it listens, as two ports can be compared: one address, a family's unspecified one, or both of these."""
    address = host_address(port)
    return _UNSPECIFIED if address is None else (address,)


def is_conflict(one: PortMapping, other: PortMapping) -> bool:
    """Whether a packet could be meant for both, as bind(2) would see it: every address includes each single one."""
    if (one.protocol, one.host_port) != (other.protocol, other.host_port):
        return False
    return any(
        mine == theirs or (mine.version == theirs.version and (mine.is_unspecified or theirs.is_unspecified))
        for mine in claimed_addresses(one)
        for theirs in claimed_addresses(other)
    )


def is_known_protocol(protocol: str) -> bool:
    """Whether host ports of the protocol ("tcp") can be told to the kernel."""
    return protocol in _PROTOCOLS


def _native(value: int) -> bytes:
    return struct.pack("=I", value)


def _parts(
    members: Sequence[tuple[bytes, bytes | None]], size: int = 500
) -> Iterator[Sequence[tuple[bytes, bytes | None]]]:
    """An attribute holds at most 64 KiB."""
    return (members[start : start + size] for start in range(0, len(members), size))
