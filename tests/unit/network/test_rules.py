from __future__ import annotations

import ipaddress
import struct

import pytest

from crishim.model.sandbox import PortMapping
from crishim.network import nftables
from crishim.network.netlink import Request, attributes
from crishim.network.rules import PodRules, RuleSet, describe_key

RULES = RuleSet("crishim-default", "crishim0", (4, 6))
IPS = (ipaddress.ip_address("10.88.0.2"), ipaddress.ip_address("fd00::2"))
ADD, DELETE = 12, 14


def _elements(requests: list[Request], kind: int) -> list[tuple[str, bytes, bytes | None]]:
    """(set, key, value) of the requests of one kind that carry a single element each."""
    found = []
    for request in requests:
        if request.type & 0xFF == kind:
            fields = attributes(request.body[4:])
            element = attributes(attributes(fields[3])[1])
            value = attributes(element[2])[1] if 2 in element else None
            found.append((fields[2].rstrip(b"\0").decode(), attributes(element[1])[1], value))
    return found


def _named(port: PortMapping, ips: tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...] = IPS) -> list[str]:
    return [name for name, _, _ in _elements(RULES.add_pod(PodRules(ips, (port,))), ADD) if name.startswith("ports")]


def test_a_host_port_on_every_address_is_one_element_per_family() -> None:
    requests = RULES.add_pod(PodRules(IPS, (PortMapping("udp", 53, 5353),)))
    assert _elements(requests, ADD) == [
        ("pods4", bytes([10, 88, 0, 2]), None),
        ("ports4", b"\x11\0\0\0" + struct.pack(">H", 5353) + b"\0\0", bytes([10, 88, 0, 2, 0, 53, 0, 0])),
        ("pods6", IPS[1].packed, None),
        ("ports6", b"\x11\0\0\0" + struct.pack(">H", 5353) + b"\0\0", IPS[1].packed + b"\0\x35\0\0"),
    ]


@pytest.mark.parametrize(
    ("host_ip", "sets"),
    [
        ("", ["ports4", "ports6"]),
        ("0.0.0.0", ["ports4"]),
        ("::", ["ports6"]),
        ("127.0.0.1", ["ports_at4"]),
        ("fd00::9", ["ports_at6"]),
    ],
)
def test_a_host_ip_chooses_the_map_and_the_family(host_ip: str, sets: list[str]) -> None:
    assert _named(PortMapping("tcp", 80, 8080, host_ip)) == sets


def test_a_host_port_of_one_address_has_the_address_in_its_key() -> None:
    requests = RULES.add_pod(PodRules(IPS[:1], (PortMapping("tcp", 80, 8080, "127.0.0.1"),)))
    _, key, _ = _elements(requests, ADD)[1]
    assert key == bytes([127, 0, 0, 1]) + b"\x06\0\0\0" + struct.pack(">H", 8080) + b"\0\0"


def test_the_keys_of_all_pods_are_those_that_their_elements_have() -> None:
    ports = (PortMapping("tcp", 80, 8080), PortMapping("udp", 53, 53, "127.0.0.1"))
    pod = PodRules(IPS, ports)
    keys = RULES.keys([pod])
    assert {(name, key) for name, key, _ in _elements(RULES.add_pod(pod), ADD)} == {
        (name, key) for name, members in keys.items() for key in members
    }
    assert RULES.keys([]) == {key: set() for key in ("pods4", "pods6", "ports4", "ports6", "ports_at4", "ports_at6")}
    described = {describe_key(name, key) for name, members in keys.items() for key in members}
    assert described == {
        *("pods4 10.88.0.2", "pods6 fd00::2", "ports4 tcp 8080", "ports6 tcp 8080"),
        "ports_at4 127.0.0.1 udp 53",
    }


def test_removal_deletes_each_element_that_it_makes_sure_of() -> None:
    pod = PodRules(IPS, (PortMapping("tcp", 80, 8080),))
    requests = RULES.remove_pod(pod)
    assert _elements(requests, DELETE) == _elements(requests, ADD)
    assert {request.type & 0xFF for request in requests[: len(requests) // 2]} == {ADD}


def test_addresses_of_a_family_without_subnets_have_no_rules() -> None:
    only_four = RuleSet("t", "b", (4,))
    names = [name for name, _, _ in _elements(only_four.add_pod(PodRules(IPS, (PortMapping("tcp", 1, 2),))), ADD)]
    assert names == ["pods4", "ports4"]
    families = {request.body[0] for request in only_four.replace_all([])}
    assert families == {nftables.FAMILY_INET}


def test_many_pods_are_added_in_parts_that_fit_an_attribute() -> None:
    pods = [PodRules((ipaddress.ip_address("10.88.0.0") + index,)) for index in range(2, 1202)]
    added = [request for request in RULES.replace_all(pods) if request.type & 0xFF == ADD]
    assert len(added) == 3
    assert all(len(request.body) < 65536 for request in added)


def test_a_concatenated_type_pads_its_members_to_registers() -> None:
    kind = nftables.INET_PROTO + nftables.INET_SERVICE
    assert (kind.number, kind.length) == (12 << 6 | 13, 8)


def test_only_base_chains_have_a_policy() -> None:
    from crishim.network.netlink import Message, be32, nested, text

    header = struct.pack(">BBH", nftables.FAMILY_IPV4, 0, 0)
    names = text(1, "filter") + text(3, "FORWARD")
    base = Message(0, 0, 1, header + names + nested(4, be32(1, 2), be32(2, 0)) + be32(5, 0))
    assert nftables.parse_base_chain(base) == nftables.BaseChain(2, "filter", "FORWARD", 2, True)
    assert nftables.parse_base_chain(Message(0, 0, 1, header + names)) is None
