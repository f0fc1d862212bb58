from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.errors import Unavailable
from crishim.network.cni.result import describe_failure, network_result, parse_result

FULL: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "interfaces": [
        {"name": "cni0", "mac": "aa:00"},
        {"name": "veth1", "mac": "bb:00"},
        {"name": "eth0", "mac": "cc:00", "sandbox": "/run/netns/x"},
        {"name": "net1", "mac": "dd:00", "sandbox": "/run/netns/x"},
    ],
    "ips": [
        {"interface": 2, "address": "10.1.0.5/24", "gateway": "10.1.0.1"},
        {"interface": 3, "address": "10.9.0.5/24"},
        {"interface": 2, "address": "fd00::5/64", "gateway": "fd00::1"},
    ],
}


def test_the_addresses_of_the_pods_device_are_the_result() -> None:
    result = network_result(FULL)
    assert (result.ips, result.mac) == (("10.1.0.5", "fd00::5"), "cc:00")
    assert result.gateways == ("10.1.0.1", "fd00::1")


def test_addresses_without_a_device_count() -> None:
    assert network_result({"ips": [{"version": "4", "address": "10.1.0.5/24"}]}).ips == ("10.1.0.5",)
    assert network_result({**FULL, "ips": [{"address": "10.1.0.5/24"}]}).ips == ("10.1.0.5",)


@pytest.mark.parametrize("ips", [[], None, "x", [{"interface": 3, "address": "10.9.0.5/24"}]])
def test_a_result_without_an_address_for_the_pod_is_refused(ips: Any) -> None:
    with pytest.raises(Unavailable, match="no IP address for eth0"):
        network_result({**FULL, "ips": ips})


@pytest.mark.parametrize("interface", [[], {"a": 1}, "2", True, 2.0])
def test_an_interface_that_is_no_number_is_refused_with_its_text(interface: Any) -> None:
    with pytest.raises(Unavailable, match=r"an address of interface .*, which is not a number"):
        network_result({**FULL, "ips": [{"interface": interface, "address": "10.1.0.5/24"}]})


def test_an_interface_that_is_null_is_the_pods_device() -> None:
    assert network_result({**FULL, "ips": [{"interface": None, "address": "10.1.0.5/24"}]}).ips == ("10.1.0.5",)


@pytest.mark.parametrize("entry", [{"address": "x"}, {}, {"address": 5}, {"address": ["10.1.0.5/24"]}, {"address": {}}])
def test_an_address_that_is_none_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(Unavailable, match="has the address"):
        network_result({"ips": [entry]})


@pytest.mark.parametrize("output", [b"{", b"[]", b"hello", b"\xff"])
def test_an_answer_that_is_no_object_is_refused(output: bytes) -> None:
    with pytest.raises(Unavailable):
        parse_result(output)


def test_an_empty_answer_is_an_empty_object() -> None:
    assert parse_result(b" \n") == {}


@given(st.binary(max_size=60))
def test_any_output_is_understood_or_refused(output: bytes) -> None:
    describe_failure(output, output, 1)
    try:
        network_result(parse_result(output))
    except Unavailable:
        return


def test_a_failure_has_the_plugins_own_words_and_its_stderr() -> None:
    output = b'{"cniVersion": "1.0.0", "code": 11, "msg": "try later", "details": "no lease"}'
    assert describe_failure(output, b"a warning\n", 1) == "try later; no lease (CNI code 11); stderr: a warning"
    assert describe_failure(b"", b"", -9) == "it ended with -9"
    assert describe_failure(b"panic", b"", 2) == "it ended with 2 and wrote panic"


def test_a_flood_of_words_is_cut_at_its_beginning() -> None:
    said = describe_failure(b"", b"x" * 10_000 + b"the end", 1)
    assert len(said) < 600 and said.endswith("the end")
