"""Entries of the kernel's connection table as netlink messages: list those that lead to an address, delete them. Pure.

Source: linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import socket
import struct

from crishim.network.netlink import Message, Request, attribute, attributes, nested, u32
from crishim.network.rtnetlink import Address

_SUBSYSTEM = 1
_GET, _DELETE = 1, 2
_TUPLE_ORIGINAL, _TUPLE_REPLY, _FILTER = 1, 2, 25
_TUPLE_IP = 1
_FILTER_REPLY_FLAGS = 2
_FILTER_BY_SOURCE = 1 << 0
_IP_SOURCE = {4: 1, 6: 3}
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


def get_flows_to(ip: Address) -> Request:
    """Entries whose replies come from `ip`, however the first packet was addressed; the kernel filters (Linux 5.8)."""
    replies_from = nested(_TUPLE_REPLY, nested(_TUPLE_IP, attribute(_IP_SOURCE[ip.version], ip.packed)))
    chosen = nested(_FILTER, u32(1, 0), u32(_FILTER_REPLY_FLAGS, _FILTER_BY_SOURCE))
    return _request(f"list flows to {ip}", _GET, ip.version, replies_from + chosen)


def parse_flow(message: Message) -> bytes:
    """The tuple of the entry's first packet, opaque, for `delete_flow`."""
    return attributes(message.body[4:])[_TUPLE_ORIGINAL]


def delete_flow(version: int, flow: bytes) -> Request:
    """ENOENT when it is gone."""
    return _request("delete flow", _DELETE, version, nested(_TUPLE_ORIGINAL, flow))


def _request(what: str, kind: int, version: int, body: bytes) -> Request:
    return Request(what, _SUBSYSTEM << 8 | kind, 0, struct.pack(">BBH", _FAMILY[version], 0, 0) + body)
