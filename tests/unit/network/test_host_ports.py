from __future__ import annotations

from dataclasses import replace

import pytest

from crishim.errors import InvalidSpec
from crishim.model.sandbox import PortMapping, SandboxConfig
from crishim.network.host_ports import validated_ports

SANDBOX = SandboxConfig("pod", "uid", "ns")


@pytest.mark.parametrize(
    ("port", "message"),
    [
        (PortMapping("icmp", 80, 80), "'icmp' is not one of tcp, udp, sctp"),
        (PortMapping("tcp", 80, 70000), "70000, 80 are not within"),
        (PortMapping("tcp", 0, 80), "80, 0 are not within"),
        (PortMapping("tcp", 80, 80, "localhost"), "'localhost' is not an IP address"),
    ],
)
def test_a_bad_port_mapping_is_refused_with_its_value(port: PortMapping, message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        validated_ports(replace(SANDBOX, port_mappings=(port,)))


def test_mappings_without_host_port_and_repetitions_are_left_out() -> None:
    port = PortMapping("tcp", 80, 8080)
    assert validated_ports(replace(SANDBOX, port_mappings=(PortMapping("tcp", 80, 0), port, port))) == (port,)


def _ports(*addresses: str) -> list[str]:
    mappings = tuple(PortMapping("tcp", 80, 8080, each) for each in addresses)
    return [each.host_ip for each in validated_ports(replace(SANDBOX, port_mappings=mappings))]


def test_a_host_address_has_one_spelling_and_one_that_is_included_is_left_out() -> None:
    assert _ports("0:0:0:0:0:0:0:1", "FE80::1%eth0", "::1") == ["::1", "fe80::1"]
    assert _ports("", "0.0.0.0", "::") == [""]
    assert _ports("0.0.0.0", "0:0::0", "") == [""]
    assert _ports("0.0.0.0", "::", "127.0.0.1") == ["0.0.0.0", "::", "127.0.0.1"]


def test_one_host_port_for_two_container_ports_is_refused() -> None:
    mappings = (PortMapping("tcp", 80, 8080), PortMapping("tcp", 81, 8080, "0.0.0.0"))
    with pytest.raises(InvalidSpec, match=r"host_port 8080 \(0.0.0.0, tcp\) has two container ports"):
        validated_ports(replace(SANDBOX, port_mappings=mappings))
