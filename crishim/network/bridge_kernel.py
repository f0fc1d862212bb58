"""The kernel's side of the embedded bridge network: what the node has of it, and each pod's link, rules and shape.

Each method brings the kernel to a described state, whatever it was before, so that every one can be repeated after a
crash. Acts in the network namespace of this process, and in a pod's through a socket that was opened there. Blocking
for a millisecond or two; one thread at a time. Beyond its scope: who has which address (`pool.py`).
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from crishim.network import conntrack, nftables, rtnetlink
from crishim.network.bandwidth import Bandwidth
from crishim.network.bridge_setup import BridgeSetup
from crishim.network.door import POD_INTERFACE
from crishim.network.kernel_access import KernelAccess, tolerate
from crishim.network.names import BridgeNames, mac_of, port_name, shaper_name
from crishim.network.netlink import Request
from crishim.network.netlink_socket import NETLINK_ROUTE, NetlinkSocket
from crishim.network.pool import Reservation, Subnet, gateway_of
from crishim.network.rtnetlink import Address, Interface
from crishim.network.rules import PORT_PREFIX, PodRules, describe_key
from crishim.network.shaping import Shaping

#: requests in one datagram; their acknowledgements must fit the socket's buffer
_BATCH = 100


class BridgeKernel:
    """The bridge of one instance. OSError (NetlinkError mostly) is what the kernel refused."""

    def __init__(self, names: BridgeNames, sysctl: Path = Path("/proc/sys")) -> None:
        self._names = names
        self._access = KernelAccess(sysctl)
        self._setup = BridgeSetup(names, self._access)
        self._shaping = Shaping(names, self._access)
        #: links that are about to be deleted
        self._group = names.number("leaving")

    def close(self) -> None:
        """Ends the sockets; what they made stays."""
        self._access.close()

    def ensure(self, subnets: Sequence[Subnet], held: Sequence[Reservation]) -> str:
        """See `BridgeSetup.ensure`."""
        return self._setup.ensure(subnets, held)

    def is_forwarding(self) -> bool:
        """See `BridgeSetup.is_forwarding`."""
        return self._setup.is_forwarding()

    def connect(self, reservation: Reservation, bandwidth: Bandwidth, netns_fd: int, pod_netlink_fd: int) -> str:
        """Rules, a veth pair with its shape, and the pod's device configured and up; the MAC of that device, "02:..".

        ENOENT when the table is gone and ENODEV when the bridge is: `ensure` brings them back. Unsupported when the
        kernel cannot shape.
        """
        self._access.transact(self._setup.rules.add_pod(PodRules(reservation.ips, reservation.ports)))
        name, mac = port_name(reservation.sandbox_id), mac_of(reservation.ips[0])
        pair = [
            rtnetlink.add_veth(
                name,
                master=self._setup.index,
                mtu=self._setup.mtu,
                peer=POD_INTERFACE,
                peer_mac=mac,
                peer_netns_fd=netns_fd,
            ),
            rtnetlink.set_hairpin(name),
        ]
        try:
            self._access.route().request(pair)
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
            # left by an attach that a crash cut off
            self._access.route().request([rtnetlink.delete_link(name)])
            self._access.route().request(pair)
        self._shaping.apply(reservation.sandbox_id, bandwidth, self._setup.mtu)
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
        with tolerate(errno.ENOENT):
            self._access.transact([request for each in rules for request in self._setup.rules.remove_pod(each)])
        for each in reservations:
            if any(port.protocol == "udp" for port in each.ports):
                self._forget_flows(each.ips)
        self._delete_links([name for each in sandbox_ids for name in (port_name(each), shaper_name(each))])

    def is_connected(self, reservation: Reservation) -> bool:
        """The pod's port is in the bridge and its addresses are in the rules."""
        try:
            link = rtnetlink.parse_link(
                self._access.route().query(rtnetlink.get_link(port_name(reservation.sandbox_id)))
            )
            bridge = rtnetlink.parse_link(self._access.route().query(rtnetlink.get_link(self._names.bridge)))
            known: set[bytes] = set()
            for version in {ip.version for ip in reservation.ips}:
                elements = nftables.get_elements(nftables.FAMILY_INET, self._names.table, f"pods{version}")
                known |= nftables.parse_keys(self._access.netfilter().dump(elements))
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ENOENT):
                return False
            raise
        return link.up and link.master == bridge.index and known.issuperset(ip.packed for ip in reservation.ips)

    def has_table(self) -> bool:
        """Whether the table of rules is there; a firewall that is loaded anew may have flushed all tables."""
        try:
            self._access.netfilter().query(nftables.get_table(nftables.FAMILY_INET, self._names.table))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def devices(self) -> list[str]:
        """Names of the pods' devices: ports in the bridge, and what shapes their traffic."""
        links = [link for link in self._access.links() if self._setup.index and link.master == self._setup.index]
        return [*(link.name for link in links if link.name.startswith(PORT_PREFIX)), *self._shaping.devices()]

    def unknown_rules(self, held: Sequence[Reservation]) -> list[str]:
        """What the rules say of pods beyond those in `held`: "pods4 10.88.0.5", "ports4 tcp 8080"."""
        pods = [PodRules(each.ips, each.ports) for each in held]
        unknown = []
        for name, expected in self._setup.rules.keys(pods).items():
            elements = nftables.get_elements(nftables.FAMILY_INET, self._names.table, name)
            with tolerate(errno.ENOENT):  # without its table nothing is there
                found = nftables.parse_keys(self._access.netfilter().dump(elements))
                unknown += [describe_key(name, key) for key in sorted(found - expected)]
        return unknown

    def remove_strays(self, keep: Collection[str]) -> None:
        """Devices that belong to none of these sandboxes."""
        kept = {name for sandbox_id in keep for name in (port_name(sandbox_id), shaper_name(sandbox_id))}
        self._delete_links([name for name in self.devices() if name not in kept])

    def teardown(self) -> None:
        """Nothing of the instance is left in the kernel; sysctls of the node stay."""
        bridge = next((link for link in self._access.links() if link.name == self._names.bridge), None)
        if bridge is not None:
            self._setup.index = bridge.index
            self.remove_strays(())
            self._access.route().request([rtnetlink.delete_link(bridge.name)])
        self._setup.remove_loopback_route()
        for family in (nftables.FAMILY_INET, nftables.FAMILY_BRIDGE):
            with tolerate(errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
                self._access.transact([nftables.delete_table(family, self._names.table)])
        self._setup.index = 0

    def _forget_flows(self, ips: Collection[Address]) -> None:
        """UDP flows of a pod that is gone: the kernel would send a client's next packets to the old address."""
        for ip in ips:
            flows = [conntrack.parse_flow(each) for each in self._access.netfilter().dump(conntrack.get_flows_to(ip))]
            deletions = [conntrack.delete_flow(ip.version, flow) for flow in flows]
            for start in range(0, len(deletions), _BATCH):
                self._access.netfilter().request(deletions[start : start + _BATCH], {errno.ENOENT})

    def _delete_links(self, names: Sequence[str]) -> None:
        """Those that are there. Their groups tell them from each other's, so one request deletes all."""
        for start in range(0, len(names), _BATCH):
            leaving = [rtnetlink.set_group(name, self._group) for name in names[start : start + _BATCH]]
            self._access.route().request(leaving, {errno.ENODEV})
            self._access.route().request([rtnetlink.delete_group(self._group)], {errno.ENODEV})


def _pod_requests(index: int, interfaces: Sequence[Interface]) -> Iterator[Request]:
    yield rtnetlink.set_up(rtnetlink.LOOPBACK_INDEX)
    for interface in interfaces:
        yield rtnetlink.add_address(index, interface)
    yield rtnetlink.set_up(index)
    for interface in interfaces:
        yield rtnetlink.add_default_route(index, gateway_of(interface.network))
