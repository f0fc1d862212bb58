"""The kernel's side of the embedded bridge network: links, addresses, sysctls and packet rules, by netlink.

Each method brings the kernel to a described state, whatever it was before, so that every one can be repeated after a
crash. Acts in the network namespace of this process, and in a pod's through a socket that was opened there. Blocking
for a millisecond or two; one thread at a time. Beyond its scope: who has which address (`pool.py`).
"""

from __future__ import annotations

import errno
import hashlib
import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from crishim.network import conntrack, nftables, rtnetlink
from crishim.network.door import POD_INTERFACE, Readiness
from crishim.network.netlink import Request
from crishim.network.netlink_socket import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket
from crishim.network.pool import Reservation, Subnet, gateway_of
from crishim.network.rtnetlink import Address, Interface
from crishim.network.rules import PORT_PREFIX, PodRules, RuleSet, describe_key

_DEFAULT_MTU = 1500
#: requests in one datagram; their acknowledgements must fit the socket's buffer
_BATCH = 100


@dataclass(frozen=True, slots=True)
class BridgeNames:
    """Names of what an instance owns in the kernel; several instances live side by side on one node."""

    bridge: str
    table: str

    @classmethod
    def of(cls, instance: str) -> BridgeNames:
        """ "default" is the instance of a node that has one server. A device name has at most 15 characters."""
        bridge = "crishim0" if instance == "default" else "crishim" + hashlib.sha256(instance.encode()).hexdigest()[:8]
        return cls(bridge, f"crishim-{instance}")


class NotReady(Exception):
    """The node lacks what the network needs; `readiness` says what."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.readiness = Readiness(False, reason, message)


class BridgeKernel:
    """The bridge of one instance. OSError (NetlinkError mostly) is what the kernel refused."""

    def __init__(self, names: BridgeNames, sysctl: Path = Path("/proc/sys")) -> None:
        self._names = names
        self._sysctl = sysctl
        #: opened at first use and kept: a pod's attach then costs no socket
        self._route: NetlinkSocket | None = None
        self._netfilter: NetlinkSocket | None = None
        #: what the last `ensure` found
        self._mtu = _DEFAULT_MTU
        self._index = 0
        self._rules = RuleSet(names.table, names.bridge, ())
        #: links that are about to be deleted; a number that nobody else on the node uses
        self._group = int.from_bytes(hashlib.sha256(names.bridge.encode()).digest()[:4], "little") | 1 << 31

    def close(self) -> None:
        """Ends the sockets; what they made stays."""
        for each in (self._route, self._netfilter):
            if each is not None:
                each.close()
        self._route = self._netfilter = None

    def ensure(self, subnets: Sequence[Subnet], held: Sequence[Reservation]) -> str:
        """Bridge, gateway addresses, forwarding and rules exist, for these subnets and for the pods in `held`.

        Returns a warning, "" mostly. NotReady when the node lacks something. Other addresses leave the bridge.
        """
        wanted = {*subnets, *(each.network for one in held for each in one.interfaces)}
        versions = tuple(sorted({each.version for each in wanted}))
        if 6 in versions and not (self._sysctl / "net/ipv6").is_dir():
            missing = next(each for each in subnets if each.version == 6)
            raise NotReady("IPv6Missing", f"subnet {missing} needs IPv6, which this kernel has not or has disabled")
        self._rules = RuleSet(self._names.table, self._names.bridge, versions)
        self._mtu = self._find_mtu()
        self._index = self._ensure_bridge(subnets)
        self._ensure_addresses(wanted)
        self._ensure_sysctls(versions)
        self._ensure_rules(held)
        return self._find_drop()

    def connect(self, reservation: Reservation, netns_fd: int, pod_netlink_fd: int) -> str:
        """Rules, a veth pair, and the pod's device configured and up; the MAC of that device, "02:..".

        ENOENT when the table is gone and ENODEV when the bridge is: `ensure` brings them back.
        """
        self._transact(self._rules.add_pod(PodRules(reservation.ips, reservation.ports)))
        name, mac = port_name(reservation.sandbox_id), mac_of(reservation.ips[0])
        pair = [
            rtnetlink.add_veth(
                name,
                master=self._index,
                mtu=self._mtu,
                peer=POD_INTERFACE,
                peer_mac=mac,
                peer_netns_fd=netns_fd,
            ),
            rtnetlink.set_hairpin(name),
        ]
        try:
            self._route_socket().request(pair)
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
            # left by an attach that a crash cut off
            self._route_socket().request([rtnetlink.delete_link(name)])
            self._route_socket().request(pair)
        with NetlinkSocket.borrow(pod_netlink_fd, NETLINK_ROUTE) as pod:
            index = rtnetlink.parse_link(pod.query(rtnetlink.get_link(POD_INTERFACE))).index
            pod.request(list(_pod_requests(index, reservation.interfaces)))
        return mac.hex(":")

    def disconnect(self, sandbox_ids: Sequence[str], reservations: Sequence[Reservation]) -> None:
        """Rules, flows and links of these sandboxes are gone; no error when they were not there.

        `reservations` are those that the sandboxes hold. Together, since the kernel takes 20 ms to delete one link and
        little more to delete a group of them.
        """
        rules = [PodRules(each.ips, each.ports) for each in reservations]
        with _tolerate(errno.ENOENT):
            self._transact([request for each in rules for request in self._rules.remove_pod(each)])
        for each in reservations:
            if any(port.protocol == "udp" for port in each.ports):
                self._forget_flows(each.ips)
        self._delete_links([port_name(sandbox_id) for sandbox_id in sandbox_ids])

    def is_connected(self, reservation: Reservation) -> bool:
        """The pod's port is in the bridge and its addresses are in the rules."""
        try:
            link = rtnetlink.parse_link(
                self._route_socket().query(rtnetlink.get_link(port_name(reservation.sandbox_id)))
            )
            bridge = rtnetlink.parse_link(self._route_socket().query(rtnetlink.get_link(self._names.bridge)))
            known: set[bytes] = set()
            for version in {ip.version for ip in reservation.ips}:
                elements = nftables.get_elements(nftables.FAMILY_INET, self._names.table, f"pods{version}")
                known |= nftables.parse_keys(self._netfilter_socket().dump(elements))
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ENOENT):
                return False
            raise
        return link.up and link.master == bridge.index and known.issuperset(ip.packed for ip in reservation.ips)

    def is_forwarding(self) -> bool:
        """Whether the node still forwards packets of the families in use; a program may have turned it off."""
        return all(self._read(path) == value for path, value in _forwarding(self._rules.versions))

    def has_table(self) -> bool:
        """Whether the table of rules is there; a firewall that is loaded anew may have flushed all tables."""
        try:
            self._netfilter_socket().query(nftables.get_table(nftables.FAMILY_INET, self._names.table))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def ports(self) -> list[str]:
        """Names of the pods' devices in the bridge."""
        links = [link.name for link in self._links() if self._index and link.master == self._index]
        return [name for name in links if name.startswith(PORT_PREFIX)]

    def unknown_rules(self, held: Sequence[Reservation]) -> list[str]:
        """What the rules say of pods beyond those in `held`: "pods4 10.88.0.5", "ports4 tcp 8080"."""
        pods = [PodRules(each.ips, each.ports) for each in held]
        unknown = []
        for name, expected in self._rules.keys(pods).items():
            elements = nftables.get_elements(nftables.FAMILY_INET, self._names.table, name)
            with _tolerate(errno.ENOENT):  # without its table nothing is there
                found = nftables.parse_keys(self._netfilter_socket().dump(elements))
                unknown += [describe_key(name, key) for key in sorted(found - expected)]
        return unknown

    def remove_strays(self, keep: Collection[str]) -> None:
        """Ports of the bridge that belong to none of these sandboxes."""
        kept = {port_name(sandbox_id) for sandbox_id in keep}
        self._delete_links([name for name in self.ports() if name not in kept])

    def teardown(self) -> None:
        """Nothing of the instance is left in the kernel; sysctls of the node stay."""
        bridge = next((link for link in self._links() if link.name == self._names.bridge), None)
        if bridge is not None:
            self._index = bridge.index
            self.remove_strays(())
            self._route_socket().request([rtnetlink.delete_link(bridge.name)])
        for family in (nftables.FAMILY_INET, nftables.FAMILY_BRIDGE):
            with _tolerate(errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
                self._transact([nftables.delete_table(family, self._names.table)])
        self._index = 0

    # -- parts of `ensure`

    def _ensure_bridge(self, subnets: Sequence[Subnet]) -> int:
        links = {link.name: link for link in self._links()}
        bridge = links.get(self._names.bridge)
        if bridge is None:
            mac = mac_of(gateway_of(subnets[0]))
            self._route_socket().request([rtnetlink.add_bridge(self._names.bridge, mac=mac, mtu=self._mtu)])
            bridge = rtnetlink.parse_link(self._route_socket().query(rtnetlink.get_link(self._names.bridge)))
        if not bridge.up:
            self._route_socket().request([rtnetlink.set_up(bridge.index)])
        if bridge.mtu != self._mtu:
            self._route_socket().request([rtnetlink.set_mtu(bridge.index, self._mtu)])
        return bridge.index

    def _ensure_addresses(self, wanted: Collection[Subnet]) -> None:
        names = {link.index: link.name for link in self._links()}
        present: set[Interface] = set()
        for address in self._addresses():
            if address.index == self._index:
                present.add(address.interface)
                continue
            clash = next((each for each in wanted if each.overlaps(address.interface.network)), None)
            if clash is not None:
                owner = names.get(address.index, str(address.index))
                message = f"subnet {clash} overlaps address {address.interface} of network device {owner}"
                raise NotReady("SubnetInUse", message)
        gateways = {_gateway_interface(subnet) for subnet in wanted}
        requests = [rtnetlink.add_address(self._index, each) for each in sorted(gateways - present, key=str)]
        requests += [
            rtnetlink.delete_address(self._index, each)
            for each in sorted(present - gateways, key=str)
            if not each.ip.is_link_local
        ]
        if requests:
            self._route_socket().request(requests)

    def _ensure_sysctls(self, versions: Collection[int]) -> None:
        if 6 in versions:
            self._keep_learned_routes()
            self._write(f"net/ipv6/conf/{self._names.bridge}/accept_ra", "0")
        for path, value in _forwarding(versions):
            self._write(path, value)
        if 4 in versions:
            # for host ports on 127.0.0.1; `rules.py` has the rule that makes it safe
            self._write(f"net/ipv4/conf/{self._names.bridge}/route_localnet", "1")

    def _ensure_rules(self, held: Sequence[Reservation]) -> None:
        pods = [PodRules(each.ips, each.ports) for each in held]
        try:
            self._transact(self._rules.replace_all(pods))
        except OSError as error:
            if error.errno in (errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT, errno.EAFNOSUPPORT):
                raise NotReady("NftablesMissing", f"this kernel lacks a part of nftables: {error.strerror}") from error
            raise

    def _keep_learned_routes(self) -> None:
        """A host that forwards ignores router advertisements, and its own default route may come from one."""
        for route in rtnetlink.parse_default_routes(self._route_socket().dump(rtnetlink.get_routes(socket.AF_INET6))):
            name = next((link.name for link in self._links() if link.index == route.index), None)
            if name is not None and self._read(f"net/ipv6/conf/{name}/accept_ra") == "1":
                self._write(f"net/ipv6/conf/{name}/accept_ra", "2")

    def _find_mtu(self) -> int:
        """That of the link that the default route takes: larger packets from pods would not leave the node."""
        links = {link.index: link for link in self._links()}
        for family in (socket.AF_INET, socket.AF_INET6):
            for route in rtnetlink.parse_default_routes(self._route_socket().dump(rtnetlink.get_routes(family))):
                if route.index in links:
                    return links[route.index].mtu
        return _DEFAULT_MTU

    def _find_drop(self) -> str:
        """A chain of somebody else that drops what we forward; nothing in our own tables can undo that."""
        families = {nftables.FAMILY_INET, nftables.FAMILY_IPV4, nftables.FAMILY_IPV6}
        for message in self._netfilter_socket().dump(nftables.get_chains()):
            chain = nftables.parse_base_chain(message)
            if chain and chain.drops and chain.hook == nftables.HOOK_FORWARD and chain.family in families:
                where = f"chain {chain.name} of nftables table {chain.table}"
                return f"{where} drops forwarded packets by its policy: pods may not reach each other or other hosts"
        return ""

    def _forget_flows(self, ips: Collection[Address]) -> None:
        """UDP flows of a pod that is gone: the kernel would send a client's next packets to the old address."""
        for ip in ips:
            flows = [conntrack.parse_flow(each) for each in self._netfilter_socket().dump(conntrack.get_flows_to(ip))]
            deletions = [conntrack.delete_flow(ip.version, flow) for flow in flows]
            for start in range(0, len(deletions), _BATCH):
                self._netfilter_socket().request(deletions[start : start + _BATCH], {errno.ENOENT})

    def _delete_links(self, names: Sequence[str]) -> None:
        if len(names) == 1:
            self._route_socket().request([rtnetlink.delete_link(names[0])], {errno.ENODEV})
        for start in range(0, len(names) if len(names) > 1 else 0, _BATCH):
            leaving = [rtnetlink.set_group(name, self._group) for name in names[start : start + _BATCH]]
            self._route_socket().request(leaving, {errno.ENODEV})
            self._route_socket().request([rtnetlink.delete_group(self._group)], {errno.ENODEV})

    # -- sockets and files

    def _links(self) -> list[rtnetlink.Link]:
        return [rtnetlink.parse_link(each) for each in self._route_socket().dump(rtnetlink.get_links())]

    def _addresses(self) -> list[rtnetlink.LinkAddress]:
        found = (rtnetlink.parse_address(each) for each in self._route_socket().dump(rtnetlink.get_addresses()))
        return [each for each in found if each is not None]

    def _transact(self, requests: Sequence[Request]) -> None:
        if requests:
            self._netfilter_socket().transact(nftables.begin_batch(), requests, nftables.end_batch())

    def _route_socket(self) -> NetlinkSocket:
        if self._route is None:
            self._route = NetlinkSocket.open(NETLINK_ROUTE)
        return self._route

    def _netfilter_socket(self) -> NetlinkSocket:
        if self._netfilter is None:
            self._netfilter = NetlinkSocket.open(NETLINK_NETFILTER)
        return self._netfilter

    def _read(self, path: str) -> str:
        try:
            return (self._sysctl / path).read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return ""

    def _write(self, path: str, value: str) -> None:
        """Only when it differs: some nodes have /proc/sys read-only and the right values."""
        if self._read(path) == value:
            return
        try:
            (self._sysctl / path).write_text(value, encoding="ascii")
        except OSError as error:
            name = path.replace("/", ".")
            raise NotReady("SysctlRefused", f"sysctl {name} cannot be set to {value}: {error.strerror}") from error


def port_name(sandbox_id: str) -> str:
    """Name of the pod's device in the host: 15 characters, the longest that a device may have."""
    return PORT_PREFIX + hashlib.sha256(sandbox_id.encode()).hexdigest()[:12]


def mac_of(ip: Address) -> bytes:
    """A locally administered MAC that follows from the address, so a neighbour's cache is right when it is reused."""
    return b"\x02\xc5" + (ip.packed if ip.version == 4 else hashlib.sha256(ip.packed).digest()[:4])


def _gateway_interface(subnet: Subnet) -> Interface:
    return rtnetlink.interface_of(gateway_of(subnet), subnet.prefixlen)


def _pod_requests(index: int, interfaces: Sequence[Interface]) -> Iterator[Request]:
    yield rtnetlink.set_up(rtnetlink.LOOPBACK_INDEX)
    for interface in interfaces:
        yield rtnetlink.add_address(index, interface)
    yield rtnetlink.set_up(index)
    for interface in interfaces:
        yield rtnetlink.add_default_route(index, gateway_of(interface.network))


def _forwarding(versions: Collection[int]) -> Iterator[tuple[str, str]]:
    """(sysctl, value)."""
    if 4 in versions:
        yield "net/ipv4/ip_forward", "1"
    if 6 in versions:
        yield "net/ipv6/conf/all/forwarding", "1"


@contextmanager
def _tolerate(*numbers: int) -> Iterator[None]:
    """Swallows OSError with one of these numbers: what should go is gone."""
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise
