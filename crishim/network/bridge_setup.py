"""The node's part of the embedded bridge network: the bridge, its addresses, sysctls and packet rules.

`BridgeSetup.ensure` brings the kernel to a described state, whatever it was before. Beyond its scope: pods
(`bridge_kernel.py`).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Iterator, Sequence

from crishim.network import nftables, rtnetlink
from crishim.network.kernel_access import KernelAccess, NotReady
from crishim.network.names import BridgeNames, mac_of
from crishim.network.pool import Reservation, Subnet, gateway_of
from crishim.network.rtnetlink import Interface
from crishim.network.rules import PodRules, RuleSet

_DEFAULT_MTU = 1500
#: while a bridge hands its packets to the rules of IPv6, a reply has its ::1 back before the kernel looks at it, and
#: ::1 from any device but the loopback is dropped (ip6_rcv_core)
_BRIDGE_CALLS_6 = "net/bridge/bridge-nf-call-ip6tables"


class BridgeSetup:
    """Of one instance; `index`, `mtu` and `rules` are what the last `ensure` made."""

    def __init__(self, names: BridgeNames, access: KernelAccess) -> None:
        self._names = names
        self._access = access
        self.mtu = _DEFAULT_MTU
        self.index = 0
        self.rules = RuleSet(names.table, names.bridge, ())

    def ensure(self, subnets: Sequence[Subnet], held: Sequence[Reservation]) -> str:
        """Bridge, gateway addresses, forwarding and rules exist, for these subnets and for the pods in `held`.

        Returns a warning, "" mostly. NotReady when the node lacks something. Other addresses leave the bridge.
        """
        wanted = {*subnets, *(each.network for one in held for each in one.interfaces)}
        versions = tuple(sorted({each.version for each in wanted}))
        if 6 in versions and not self._access.has_ipv6():
            missing = next(each for each in subnets if each.version == 6)
            raise NotReady("IPv6Missing", f"subnet {missing} needs IPv6, which this kernel has not or has disabled")
        loopback6 = self._access.read_sysctl(_BRIDGE_CALLS_6) != "1"
        self.rules = RuleSet(self._names.table, self._names.bridge, versions, loopback6)
        self.mtu = self._find_mtu()
        self.index = self._ensure_bridge(subnets)
        self._ensure_addresses(wanted)
        self._ensure_sysctls(versions)
        if 6 in versions:
            self._ensure_loopback_route()
        self._ensure_rules(held)
        return self._find_drop()

    def is_forwarding(self) -> bool:
        """Whether the node still forwards packets of the families in use; a program may have turned it off."""
        return all(self._access.read_sysctl(path) == value for path, value in _forwarding(self.rules.versions))

    def _ensure_bridge(self, subnets: Sequence[Subnet]) -> int:
        links = {link.name: link for link in self._access.links()}
        bridge = links.get(self._names.bridge)
        if bridge is None:
            mac = mac_of(gateway_of(subnets[0]))
            self._access.route().request([rtnetlink.add_bridge(self._names.bridge, mac=mac, mtu=self.mtu)])
            bridge = rtnetlink.parse_link(self._access.route().query(rtnetlink.get_link(self._names.bridge)))
        if not bridge.up:
            self._access.route().request([rtnetlink.set_up(bridge.index)])
        if bridge.mtu != self.mtu:
            self._access.route().request([rtnetlink.set_mtu(bridge.index, self.mtu)])
        return bridge.index

    def _ensure_addresses(self, wanted: Collection[Subnet]) -> None:
        names = {link.index: link.name for link in self._access.links()}
        present: set[Interface] = set()
        for address in self._access.addresses():
            if address.index == self.index:
                present.add(address.interface)
                continue
            clash = next((each for each in wanted if each.overlaps(address.interface.network)), None)
            if clash is not None:
                owner = names.get(address.index, str(address.index))
                message = f"subnet {clash} overlaps address {address.interface} of network device {owner}"
                raise NotReady("SubnetInUse", message)
        gateways = {_gateway_interface(subnet) for subnet in wanted}
        requests = [rtnetlink.add_address(self.index, each) for each in sorted(gateways - present, key=str)]
        requests += [
            rtnetlink.delete_address(self.index, each)
            for each in sorted(present - gateways, key=str)
            if not each.ip.is_link_local
        ]
        if requests:
            self._access.route().request(requests)

    def _ensure_sysctls(self, versions: Collection[int]) -> None:
        if 6 in versions:
            self._keep_learned_routes()
            self._access.write_sysctl(f"net/ipv6/conf/{self._names.bridge}/accept_ra", "0")
        for path, value in _forwarding(versions):
            self._access.write_sysctl(path, value)
        if 4 in versions:
            # for host ports on 127.0.0.1; `rules.py` has the rule that makes it safe
            self._access.write_sysctl(f"net/ipv4/conf/{self._names.bridge}/route_localnet", "1")

    def _ensure_loopback_route(self) -> None:
        """What comes back to a caller on ::1 arrives by the bridge, where the kernel has no route for it.

        Only the bridge's packets look into the table, and `rules.py` drops what pods send to ::1 by themselves.
        """
        table, bridge = self._names.number("loopback"), self._names.bridge
        requests = [rtnetlink.add_loopback_route(self.index, table), rtnetlink.add_table_rule(bridge, table)]
        self._access.route().request(requests, {errno.EEXIST, errno.EOPNOTSUPP, errno.EAFNOSUPPORT})

    def remove_loopback_route(self) -> None:
        """The rule; its route goes with the bridge."""
        request = rtnetlink.delete_table_rule(self._names.bridge, self._names.number("loopback"))
        self._access.route().request([request], {errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT})

    def _ensure_rules(self, held: Sequence[Reservation]) -> None:
        pods = [PodRules(each.ips, each.ports) for each in held]
        try:
            self._access.transact(self.rules.replace_all(pods))
        except OSError as error:
            if error.errno in (errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT, errno.EAFNOSUPPORT):
                raise NotReady("NftablesMissing", f"this kernel lacks a part of nftables: {error.strerror}") from error
            raise

    def _keep_learned_routes(self) -> None:
        """A host that forwards ignores router advertisements, and its own default route may come from one."""
        for route in rtnetlink.parse_default_routes(self._access.route().dump(rtnetlink.get_routes(socket.AF_INET6))):
            name = next((link.name for link in self._access.links() if link.index == route.index), None)
            if name is not None and self._access.read_sysctl(f"net/ipv6/conf/{name}/accept_ra") == "1":
                self._access.write_sysctl(f"net/ipv6/conf/{name}/accept_ra", "2")

    def _find_mtu(self) -> int:
        """That of the link that the default route takes: larger packets from pods would not leave the node."""
        links = {link.index: link for link in self._access.links()}
        for family in (socket.AF_INET, socket.AF_INET6):
            for route in rtnetlink.parse_default_routes(self._access.route().dump(rtnetlink.get_routes(family))):
                if route.index in links:
                    return links[route.index].mtu
        return _DEFAULT_MTU

    def _find_drop(self) -> str:
        """A chain of somebody else that drops what we forward; nothing in our own tables can undo that."""
        families = {nftables.FAMILY_INET, nftables.FAMILY_IPV4, nftables.FAMILY_IPV6}
        for message in self._access.netfilter().dump(nftables.get_chains()):
            chain = nftables.parse_base_chain(message)
            if chain and chain.drops and chain.hook == nftables.HOOK_FORWARD and chain.family in families:
                where = f"chain {chain.name} of nftables table {chain.table}"
                return f"{where} drops forwarded packets by its policy: pods may not reach each other or other hosts"
        return ""


def _gateway_interface(subnet: Subnet) -> Interface:
    return rtnetlink.interface_of(gateway_of(subnet), subnet.prefixlen)


def _forwarding(versions: Collection[int]) -> Iterator[tuple[str, str]]:
    """(sysctl, value)."""
    if 4 in versions:
        yield "net/ipv4/ip_forward", "1"
    if 6 in versions:
        yield "net/ipv6/conf/all/forwarding", "1"
