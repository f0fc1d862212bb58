"""Links, addresses and routes as netlink messages, and the dumps of them as values. Pure. Source: rtnetlink(7)."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from crishim.network.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    Request,
    attribute,
    attributes,
    nested,
    text,
    u8,
    u32,
)

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

LOOPBACK_INDEX = 1
"""The first device of every network namespace."""

_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_RTM_NEWADDR, _RTM_DELADDR, _RTM_GETADDR = 20, 21, 22
_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_RTM_NEWRULE, _RTM_DELRULE = 32, 33

_IFF_UP = 0x1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER = 1, 3, 4, 10
_IFLA_LINKINFO, _IFLA_GROUP, _IFLA_NET_NS_FD = 18, 27, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_INFO_SLAVE_KIND, _IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
_VETH_INFO_PEER = 1
_IFLA_BRPORT_MODE = 4

_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_F_NODAD = 0x02

_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_TABLE = 1, 4, 5, 6, 15
_RT_TABLE_MAIN, _RTPROT_STATIC, _RT_SCOPE_UNIVERSE, _RTN_UNICAST, _RTN_LOCAL = 254, 4, 0, 1, 2
_FRA_IIFNAME, _FRA_PRIORITY, _FRA_TABLE, _FR_ACT_TO_TBL = 3, 6, 15, 1
#: priority of a rule; that of the main table is 32766
_BEFORE_MAIN = 32765

_LINK = struct.Struct("=BxHiII")
#: IFLA_EXT_MASK with RTEXT_FILTER_SKIP_STATS: half of the answer is counters
_WITHOUT_STATS = u32(29, 1 << 3)
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")


@dataclass(frozen=True, slots=True)
class Link:
    """A network device; `mac` is six bytes or empty, `master` the index of its bridge or 0, `group` 0 for most."""

    index: int
    name: str
    mac: bytes
    mtu: int
    master: int
    up: bool
    group: int = 0


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """An address of a device."""

    index: int
    interface: Interface


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """A default route of the main table."""

    family: int
    index: int
    metric: int


def add_bridge(name: str, *, mac: bytes, mtu: int) -> Request:
    """A bridge that is up. Its MAC is given, since else it follows its ports and neighbour caches go stale."""
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, _IFF_UP, _IFF_UP)
    body += text(_IFLA_IFNAME, name) + attribute(_IFLA_ADDRESS, mac) + u32(_IFLA_MTU, mtu)
    body += nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, "bridge"))
    return Request(f"add bridge {name}", _RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def add_veth(name: str, *, master: int, mtu: int, peer: str, peer_mac: bytes, peer_netns_fd: int) -> Request:
    """A pair: `name` here, up and in the bridge `master`; `peer` in another network namespace, down.

    One message, so there is no moment at which only half of it exists. ENODEV when the bridge is gone.
    """
    far = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + text(_IFLA_IFNAME, peer) + u32(_IFLA_MTU, mtu)
    far += attribute(_IFLA_ADDRESS, peer_mac) + u32(_IFLA_NET_NS_FD, peer_netns_fd)
    kind = text(_IFLA_INFO_KIND, "veth") + nested(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, far))
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, _IFF_UP, _IFF_UP)
    body += text(_IFLA_IFNAME, name) + u32(_IFLA_MTU, mtu) + u32(_IFLA_MASTER, master) + nested(_IFLA_LINKINFO, kind)
    return Request(f"add veth {name}", _RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def add_ifb(name: str, *, mtu: int, group: int) -> Request:
    """A device that is up and gives back what is sent through it. EOPNOTSUPP when the kernel has no ifb."""
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, _IFF_UP, _IFF_UP)
    body += text(_IFLA_IFNAME, name) + u32(_IFLA_MTU, mtu) + u32(_IFLA_GROUP, group)
    body += nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, "ifb"))
    return Request(f"add ifb {name}", _RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def set_hairpin(name: str) -> Request:
    """Let a bridge port send frames back where they came from: a pod that calls its own host port."""
    mode = nested(_IFLA_INFO_SLAVE_DATA, u8(_IFLA_BRPORT_MODE, 1))
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + text(_IFLA_IFNAME, name)
    body += nested(_IFLA_LINKINFO, text(_IFLA_INFO_SLAVE_KIND, "bridge"), mode)
    return Request(f"set hairpin mode of {name}", _RTM_NEWLINK, 0, body)


def set_up(index: int) -> Request:
    return Request(f"set link {index} up", _RTM_NEWLINK, 0, _LINK.pack(socket.AF_UNSPEC, 0, index, _IFF_UP, _IFF_UP))


def set_mtu(index: int, mtu: int) -> Request:
    body = _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0) + u32(_IFLA_MTU, mtu)
    return Request(f"set mtu {mtu} of link {index}", _RTM_NEWLINK, 0, body)


def delete_link(name: str) -> Request:
    """ENODEV when there is none. The peer of a veth goes with it, in whatever namespace it is."""
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + text(_IFLA_IFNAME, name)
    return Request(f"delete link {name}", _RTM_DELLINK, 0, body)


def set_group(name: str, group: int) -> Request:
    """ENODEV when there is no such link."""
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + text(_IFLA_IFNAME, name) + u32(_IFLA_GROUP, group)
    return Request(f"set group of link {name}", _RTM_NEWLINK, 0, body)


def delete_group(group: int) -> Request:
    """All links of a group, for little more than the price of one; ENODEV when there is none."""
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + u32(_IFLA_GROUP, group)
    return Request(f"delete links of group {group}", _RTM_DELLINK, 0, body)


def get_link(name: str) -> Request:
    """ENODEV when there is none; else the answer is for `parse_link`."""
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + text(_IFLA_IFNAME, name) + _WITHOUT_STATS
    return Request(f"get link {name}", _RTM_GETLINK, 0, body)


def get_links() -> Request:
    return Request("list links", _RTM_GETLINK, 0, _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _WITHOUT_STATS)


def add_address(index: int, interface: Interface) -> Request:
    """IPv6 without duplicate address detection: the pool knows that it is ours, and detection costs a second."""
    return _address(f"add address {interface} to link {index}", _RTM_NEWADDR, index, interface)


def delete_address(index: int, interface: Interface) -> Request:
    """EADDRNOTAVAIL when it is not there."""
    return _address(f"delete address {interface} of link {index}", _RTM_DELADDR, index, interface)


def get_addresses() -> Request:
    return Request("list addresses", _RTM_GETADDR, 0, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0))


def add_default_route(index: int, gateway: Address) -> Request:
    """Through a gateway that a connected subnet covers."""
    body = _ROUTE.pack(_family(gateway), 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, _RT_SCOPE_UNIVERSE, _RTN_UNICAST, 0)
    body += attribute(_RTA_GATEWAY, gateway.packed) + u32(_RTA_OIF, index)
    return Request(f"add default route by {gateway}", _RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body)


def add_loopback_route(index: int, table: int) -> Request:
    """In a table of its own: packets for ::1 that arrive by a device are for this node. EEXIST when it is there."""
    body = _ROUTE.pack(socket.AF_INET6, 128, 0, 0, 0, _RTPROT_STATIC, _RT_SCOPE_UNIVERSE, _RTN_LOCAL, 0)
    body += attribute(_RTA_DST, ipaddress.IPv6Address("::1").packed) + u32(_RTA_OIF, index) + u32(_RTA_TABLE, table)
    return Request(f"add route to ::1 by link {index}", _RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, body)


def add_table_rule(device: str, table: int) -> Request:
    """IPv6 packets that arrive by a device look into a table before the main one. EEXIST when it is there."""
    return Request(f"add rule for {device}", _RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, _table_rule(device, table))


def delete_table_rule(device: str, table: int) -> Request:
    """ENOENT when it is not there."""
    return Request(f"delete rule for {device}", _RTM_DELRULE, 0, _table_rule(device, table))


def _table_rule(device: str, table: int) -> bytes:
    body = _ROUTE.pack(socket.AF_INET6, 0, 0, 0, 0, 0, 0, _FR_ACT_TO_TBL, 0)
    return body + text(_FRA_IIFNAME, device) + u32(_FRA_PRIORITY, _BEFORE_MAIN) + u32(_FRA_TABLE, table)


def get_routes(family: int) -> Request:
    return Request("list routes", _RTM_GETROUTE, 0, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))


def parse_link(message: Message) -> Link:
    """ValueError when the message is not one about a link."""
    _expect(message, _RTM_NEWLINK, _LINK)
    _, _, index, flags, _ = _LINK.unpack_from(message.body)
    found = attributes(message.body[_LINK.size :])
    name = found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
    up = bool(flags & _IFF_UP)
    mac, mtu, master = found.get(_IFLA_ADDRESS, b""), _number(found, _IFLA_MTU), _number(found, _IFLA_MASTER)
    return Link(index, name, mac, mtu, master, up, _number(found, _IFLA_GROUP))


def parse_address(message: Message) -> LinkAddress | None:
    """None for an address family that is not IP."""
    _expect(message, _RTM_NEWADDR, _ADDRESS)
    family, prefix, _, _, index = _ADDRESS.unpack_from(message.body)
    found = attributes(message.body[_ADDRESS.size :])
    # IPv4: LOCAL is ours and ADDRESS the far end of a point-to-point link; IPv6 has ADDRESS alone
    packed = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS, b""))
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    return LinkAddress(index, ipaddress.ip_interface((packed, prefix)))


def parse_default_routes(messages: Iterable[Message]) -> list[DefaultRoute]:
    """Those of the main table, best metric first."""
    routes = []
    for message in messages:
        _expect(message, _RTM_NEWROUTE, _ROUTE)
        family, length, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(message.body)
        found = attributes(message.body[_ROUTE.size :])
        if length == 0 and _RTA_DST not in found and table == _RT_TABLE_MAIN and kind == _RTN_UNICAST:
            routes.append(DefaultRoute(family, _number(found, _RTA_OIF), _number(found, _RTA_PRIORITY)))
    return sorted(routes, key=lambda route: route.metric)


def interface_of(ip: Address, prefix: int) -> Interface:
    """An address with the length of its subnet's prefix."""
    if ip.version == 4:
        return ipaddress.IPv4Interface((ip.packed, prefix))
    return ipaddress.IPv6Interface((ip.packed, prefix))


def _address(what: str, kind: int, index: int, interface: Interface) -> Request:
    flags = _IFA_F_NODAD if interface.version == 6 else 0
    body = _ADDRESS.pack(_family(interface.ip), interface.network.prefixlen, flags, _RT_SCOPE_UNIVERSE, index)
    body += attribute(_IFA_LOCAL, interface.ip.packed) + attribute(_IFA_ADDRESS, interface.ip.packed)
    return Request(what, kind, NLM_F_CREATE | NLM_F_REPLACE if kind == _RTM_NEWADDR else 0, body)


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _number(found: dict[int, bytes], kind: int) -> int:
    return int(struct.unpack("=I", found[kind])[0]) if len(found.get(kind, b"")) == 4 else 0


def _expect(message: Message, kind: int, header: struct.Struct) -> None:
    if message.type != kind or len(message.body) < header.size:
        raise ValueError(f"a netlink message of type {message.type} with {len(message.body)} bytes, not of type {kind}")
