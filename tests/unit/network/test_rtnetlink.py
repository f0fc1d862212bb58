from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.network import rtnetlink
from crishim.network.netlink import Message, attribute, attributes, u32


def test_a_veth_pair_is_one_message_with_its_far_end_in_another_namespace() -> None:
    request = rtnetlink.add_veth("crv1", master=7, mtu=1400, peer="eth0", peer_mac=b"\x02\0\0\0\0\1", peer_netns_fd=11)
    near = attributes(request.body[16:])
    assert (near[3], near[4], near[10]) == (b"crv1\0", struct.pack("=I", 1400), struct.pack("=I", 7))
    kind = attributes(near[18])
    assert kind[1] == b"veth\0"
    peer = attributes(kind[2])[1]
    far = attributes(peer[16:])
    assert (far[3], far[1], far[28]) == (b"eth0\0", b"\x02\0\0\0\0\1", struct.pack("=I", 11))


def test_hairpin_mode_is_set_on_the_port_by_name() -> None:
    # RTM_NEWLINK without NLM_F_CREATE changes a device; hand-checked against the kernel's rtnl_newlink
    request = rtnetlink.set_hairpin("p")
    assert (request.type, request.flags) == (16, 0)
    link = attributes(attributes(request.body[16:])[18])
    assert link[4] == b"bridge\0"
    assert attributes(link[5]) == {4: b"\1"}


def test_an_ipv6_address_skips_duplicate_detection_and_an_ipv4_address_has_no_flags() -> None:
    six = rtnetlink.add_address(3, ipaddress.ip_interface("fd00::2/64"))
    four = rtnetlink.add_address(3, ipaddress.ip_interface("10.0.0.2/24"))
    assert six.body[:8] == struct.pack("=BBBBI", socket.AF_INET6, 64, 0x02, 0, 3)
    assert four.body[:8] == struct.pack("=BBBBI", socket.AF_INET, 24, 0, 0, 3)
    assert attributes(four.body[8:])[2] == bytes([10, 0, 0, 2])


def test_a_default_route_names_gateway_and_device() -> None:
    request = rtnetlink.add_default_route(5, ipaddress.ip_address("10.0.0.1"))
    assert request.body[:12] == struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 254, 4, 0, 1, 0)
    assert attributes(request.body[12:]) == {5: bytes([10, 0, 0, 1]), 4: struct.pack("=I", 5)}


def test_a_link_is_parsed_with_its_bridge_and_state() -> None:
    body = struct.pack("=BxHiII", 0, 1, 9, 0x1, 0) + attribute(3, b"crv1\0") + attribute(1, b"\x02\0\0\0\0\1")
    link = rtnetlink.parse_link(Message(16, 0, 1, body + u32(4, 1400) + u32(10, 7)))
    assert link == rtnetlink.Link(9, "crv1", b"\x02\0\0\0\0\1", 1400, 7, True)


def test_the_own_end_of_a_point_to_point_address_is_taken() -> None:
    body = struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, 4) + attribute(1, bytes([10, 0, 0, 9]))
    body += attribute(2, bytes([10, 0, 0, 8]))
    found = rtnetlink.parse_address(Message(20, 0, 1, body))
    assert found == rtnetlink.LinkAddress(4, ipaddress.ip_interface("10.0.0.8/32"))


def test_only_default_routes_of_the_main_table_count_and_the_best_metric_is_first() -> None:
    def route(length: int, table: int, index: int, metric: int, kind: int = 1) -> Message:
        header = struct.pack("=BBBBBBBBI", socket.AF_INET, length, 0, 0, table, 3, 0, kind, 0)
        target = attribute(1, bytes([10, 0, 0, 0])) if length else b""
        return Message(24, 0, 1, header + target + u32(4, index) + u32(6, metric))

    messages = [route(0, 254, 2, 600), route(8, 254, 3, 0), route(0, 255, 4, 0), route(0, 254, 5, 100)]
    messages.append(route(0, 254, 6, 0, kind=7))
    assert [each.index for each in rtnetlink.parse_default_routes(messages)] == [5, 2]


@given(st.binary(max_size=100), st.sampled_from([16, 20, 24]))
def test_any_answer_is_understood_or_an_error(body: bytes, kind: int) -> None:
    message = Message(kind, 0, 1, body)
    for parse in (rtnetlink.parse_link, rtnetlink.parse_address, lambda each: rtnetlink.parse_default_routes([each])):
        try:
            parse(message)
        except ValueError:
            continue


def test_an_answer_about_something_else_is_an_error() -> None:
    with pytest.raises(ValueError, match="type 20"):
        rtnetlink.parse_link(Message(20, 0, 1, bytes(32)))
