"""nf_tables messages as bytes: tables, chains, sets, elements, and rules made of expressions. Pure.

Only what the rules of this room need (`rules.py`). Every number on this wire is in network order. Register numbers
are those of 4-byte registers, 8 to 23. Source: linux/netfilter/nf_tables.h; libnftnl is the reference for encodings.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from crishim.network.netlink import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    Message,
    Request,
    attribute,
    attributes,
    be32,
    nested,
    text,
)

FAMILY_INET, FAMILY_IPV4, FAMILY_BRIDGE, FAMILY_IPV6 = 1, 2, 7, 10

HOOK_PREROUTING, HOOK_FORWARD, HOOK_OUTPUT, HOOK_POSTROUTING = 0, 2, 3, 4
PRIORITY_RAW, PRIORITY_DSTNAT, PRIORITY_SRCNAT = -300, -100, 100

FIRST_REGISTER = 8

META_IIFNAME, META_OIFNAME, META_NFPROTO, META_L4PROTO = 6, 7, 15, 16
CT_STATUS = 2
CT_STATUS_DNAT = 1 << 5
BASE_LINK, BASE_NETWORK, BASE_TRANSPORT = 0, 1, 2

_SUBSYSTEM = 10
_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _GETCHAIN, _NEWRULE, _NEWSET = 0, 1, 2, 3, 4, 6, 9
_NEWSETELEM, _GETSETELEM, _DELSETELEM = 12, 13, 14
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11

_LIST_ELEM = 1
_VERDICT_DROP, _VERDICT_ACCEPT = 0, 1
_VERDICT_REGISTER = 0
_SET_MAP = 0x8
_FIB_ADDRTYPE, _FIB_DADDR, _RTN_LOCAL = 3, 2, 2
_IFNAMSIZ = 16


@dataclass(frozen=True, slots=True)
class DataType:
    """How userspace prints a key or value (the kernel does not look at it), and its length in bytes."""

    number: int
    length: int

    def __add__(self, other: DataType) -> DataType:
        """Concatenation: each member fills whole 4-byte registers."""
        return DataType(self.number << 6 | other.number, _padded(self.length) + _padded(other.length))


IPV4_ADDR, IPV6_ADDR = DataType(7, 4), DataType(8, 16)
INET_PROTO, INET_SERVICE = DataType(12, 1), DataType(13, 2)


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain; `type` is "nat" or "filter"; the policy is accept."""

    name: str
    type: str
    hook: int
    priority: int


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A base chain of any table of the host, as listed; `drops` is its policy."""

    family: int
    table: str
    name: str
    hook: int
    drops: bool


def begin_batch() -> Request:
    return Request("begin nftables batch", _BATCH_BEGIN, 0, _header(0, _SUBSYSTEM))


def end_batch() -> Request:
    return Request("end nftables batch", _BATCH_END, 0, _header(0, _SUBSYSTEM))


def add_table(family: int, name: str) -> Request:
    """Nothing happens when it exists."""
    return _request(f"add table {name}", _NEWTABLE, NLM_F_CREATE, family, text(1, name) + be32(2, 0))


def delete_table(family: int, name: str) -> Request:
    """With everything in it; ENOENT when there is none."""
    return _request(f"delete table {name}", _DELTABLE, 0, family, text(1, name))


def get_table(family: int, name: str) -> Request:
    return _request(f"get table {name}", _GETTABLE, 0, family, text(1, name))


def get_chains() -> Request:
    """Of every family; the answers are for `parse_base_chain`."""
    return _request("list chains", _GETCHAIN, 0, 0, b"")


def add_chain(family: int, table: str, chain: Chain) -> Request:
    body = text(1, table) + text(3, chain.name) + nested(4, be32(1, chain.hook), be32(2, chain.priority))
    return _request(f"add chain {chain.name}", _NEWCHAIN, NLM_F_CREATE, family, body + be32(5, 1) + text(7, chain.type))


def add_set(family: int, table: str, name: str, identity: int, key: DataType, value: DataType | None = None) -> Request:
    """A set, or a map when it has a type of values. `identity` is unique within the batch."""
    body = text(1, table) + text(2, name) + be32(3, _SET_MAP if value else 0)
    body += be32(4, key.number) + be32(5, key.length)
    if value:
        body += be32(6, value.number) + be32(7, value.length)
    return _request(f"add set {name}", _NEWSET, NLM_F_CREATE, family, body + be32(10, identity))


def add_elements(family: int, table: str, name: str, elements: Iterable[tuple[bytes, bytes | None]]) -> Request:
    """(key, value) of a map, (key, None) of a set. EEXIST when a key has another value."""
    return _elements(f"add elements to {name}", _NEWSETELEM, NLM_F_CREATE, family, table, name, elements)


def delete_elements(family: int, table: str, name: str, elements: Iterable[tuple[bytes, bytes | None]]) -> Request:
    """ENOENT when one is missing."""
    return _elements(f"delete elements of {name}", _DELSETELEM, 0, family, table, name, elements)


def get_elements(family: int, table: str, name: str) -> Request:
    """The answers are for `parse_keys`."""
    return _request(f"list elements of {name}", _GETSETELEM, 0, family, text(1, table) + text(2, name))


def add_rule(family: int, table: str, chain: str, expressions: Sequence[bytes]) -> Request:
    """At the end of the chain."""
    body = text(1, table) + text(2, chain) + nested(4, *expressions)
    return _request(f"add rule to {chain}", _NEWRULE, NLM_F_CREATE | NLM_F_APPEND, family, body)


# -- expressions: each takes and gives registers


def load_meta(key: int, register: int = FIRST_REGISTER) -> bytes:
    return _expression("meta", be32(1, register), be32(2, key))


def load_payload(base: int, offset: int, length: int, register: int = FIRST_REGISTER) -> bytes:
    return _expression("payload", be32(1, register), be32(2, base), be32(3, offset), be32(4, length))


def load_ct(key: int, register: int = FIRST_REGISTER) -> bytes:
    return _expression("ct", be32(1, register), be32(2, key))


def mask(value: bytes, register: int = FIRST_REGISTER) -> bytes:
    zero = nested(5, attribute(1, bytes(len(value))))
    return _expression(
        "bitwise", be32(1, register), be32(2, register), be32(3, len(value)), nested(4, attribute(1, value)), zero
    )


def is_equal(value: bytes, register: int = FIRST_REGISTER) -> bytes:
    return _expression("cmp", be32(1, register), be32(2, 0), nested(3, attribute(1, value)))


def is_not_equal(value: bytes, register: int = FIRST_REGISTER) -> bytes:
    return _expression("cmp", be32(1, register), be32(2, 1), nested(3, attribute(1, value)))


def is_in(name: str, register: int = FIRST_REGISTER) -> bytes:
    """The rule ends here when the register's content is not in the set."""
    return _expression("lookup", text(1, name), be32(2, register), be32(4, 0))


def map_by(name: str, register: int = FIRST_REGISTER) -> bytes:
    """Replaces the key by its value, in the same register; the rule ends here when there is none."""
    return _expression("lookup", text(1, name), be32(2, register), be32(3, register), be32(4, 0))


def daddr_is_local() -> tuple[bytes, ...]:
    """The destination is an address of this host."""
    fib = _expression("fib", be32(1, FIRST_REGISTER), be32(2, _FIB_ADDRTYPE), be32(3, _FIB_DADDR))
    return fib, is_equal(struct.pack("=I", _RTN_LOCAL))


def interface_name(name: str) -> bytes:
    """A device name as registers hold it."""
    return name.encode().ljust(_IFNAMSIZ, b"\0")


def masquerade() -> bytes:
    return _expression("masq")


def dnat(family: int, address_register: int, port_register: int) -> bytes:
    return _expression("nat", be32(1, 1), be32(2, family), be32(3, address_register), be32(5, port_register))


def drop() -> bytes:
    return _verdict(_VERDICT_DROP)


def accept() -> bytes:
    """The rest of the chain does not look at the packet."""
    return _verdict(_VERDICT_ACCEPT)


def _verdict(code: int) -> bytes:
    return _expression("immediate", be32(1, _VERDICT_REGISTER), nested(2, nested(2, be32(1, code))))


# -- answers


def parse_base_chain(message: Message) -> BaseChain | None:
    """None for a chain that no hook calls."""
    found = attributes(message.body[4:])
    if 4 not in found:
        return None
    hook = attributes(found[4])
    name, table = (found[kind].rstrip(b"\0").decode(errors="replace") for kind in (3, 1))
    return BaseChain(message.body[0], table, name, _number(hook.get(1)), 5 in found and _number(found[5]) == 0)


def parse_keys(messages: Iterable[Message]) -> set[bytes]:
    """Keys of the elements in a dump."""
    keys = set()
    for message in messages:
        elements = attributes(message.body[4:]).get(3, b"")
        offset = 0
        while offset < len(elements):
            (length,) = struct.unpack_from("=H", elements, offset)
            keys.add(attributes(attributes(elements[offset + 4 : offset + length])[1])[1])
            offset += _padded(length)
    return keys


def concat(*members: bytes) -> bytes:
    """A key or value of several members, each padded to whole registers."""
    return b"".join(member.ljust(_padded(len(member)), b"\0") for member in members)


def _elements(
    what: str,
    kind: int,
    flags: int,
    family: int,
    table: str,
    name: str,
    elements: Iterable[tuple[bytes, bytes | None]],
) -> Request:
    members = [
        nested(
            _LIST_ELEM,
            nested(1, attribute(1, key)),
            *(() if value is None else (nested(2, attribute(1, value)),)),
        )
        for key, value in elements
    ]
    return _request(what, kind, flags, family, text(1, table) + text(2, name) + nested(3, *members))


def _expression(name: str, *members: bytes) -> bytes:
    return nested(_LIST_ELEM, text(1, name), nested(2, *members))


def _request(what: str, kind: int, flags: int, family: int, body: bytes) -> Request:
    return Request(what, _SUBSYSTEM << 8 | kind, flags, _header(family, 0) + body)


def _header(family: int, resource: int) -> bytes:
    return struct.pack(">BBH", family, 0, resource)


def _number(value: bytes | None) -> int:
    return int.from_bytes(value or b"", "big")


def _padded(length: int) -> int:
    return length + -length % 4
