from __future__ import annotations

import struct

import pytest

from crishim.errors import InvalidSpec
from crishim.network.bandwidth import Bandwidth, bandwidth_of, parse_rate
from crishim.network.netlink import attributes
from crishim.network.shaping import token_bucket
from crishim.network.traffic_control import add_redirect


@pytest.mark.parametrize(
    ("text", "rate"),
    [("1000", 1000), ("1k", 1000), ("1.5M", 1_500_000), ("1Ki", 1024), ("0.5Gi", 2**29), ("1P", 10**15)],
)
def test_rates_are_read_as_quantities(text: str, rate: int) -> None:
    assert parse_rate(text, "a") == rate


@pytest.mark.parametrize("text", ["", "10 M", "-1M", "1e6", "1Z", "999", "2P", "ten"])
def test_what_is_no_rate_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(InvalidSpec, match="annotation a: "):
        parse_rate(text, "a")


@pytest.mark.parametrize("text", ["1" * 5000, "0." + "1" * 5000 + "Ei", "١" * 4])
def test_a_hostile_rate_is_refused_in_a_short_sentence(text: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        parse_rate(text, "a")
    assert len(str(refused.value)) < 200


def test_annotations_of_a_pod_are_its_bandwidth() -> None:
    ingress, egress = "kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"
    assert bandwidth_of({ingress: "1M", egress: "2k", "other": "x"}) == Bandwidth(1_000_000, 2000)
    assert bandwidth_of({egress: "1M"}) == Bandwidth(None, 1_000_000)
    assert not bandwidth_of({"other": "x"}) and bandwidth_of({ingress: "1k"})
    with pytest.raises(InvalidSpec, match=f"annotation {egress}: '999' is not within 1k..1P"):
        bandwidth_of({ingress: "1M", egress: "999"})


@pytest.mark.parametrize(
    ("bits_per_s", "rate", "burst", "limit"),
    [
        (1000, 125, 15_000, 15_003),  # some packets fit, however slow it is
        (80_000_000, 10_000_000, 1_000_000, 1_250_000),
        (10**15, 125 * 10**12, 16 << 20, 32 << 20),
    ],
)
def test_a_bucket_holds_a_tenth_of_a_second_within_bounds(bits_per_s: int, rate: int, burst: int, limit: int) -> None:
    body = token_bucket(7, bits_per_s, mtu=1500).body
    assert struct.unpack_from("=BxxxiIII", body) == (0, 7, 0x10000, 0xFFFFFFFF, 0)
    found = attributes(body[20:])
    options = attributes(found[2])
    assert found[1] == b"tbf\0" and len(options[1]) == 36
    # tc_tbf_qopt: the rate of the first tc_ratespec has 32 bits, and the limit follows the second
    assert (struct.unpack_from("=I", options[1], 8)[0], struct.unpack_from("=I", options[1], 24)[0]) == (
        min(rate, 2**32 - 1),
        limit,
    )
    assert (struct.unpack("=Q", options[4])[0], struct.unpack("=I", options[6])[0]) == (rate, burst)


def test_a_redirect_matches_every_packet_and_names_the_other_device() -> None:
    options = attributes(attributes(add_redirect(3, 9).body[20:])[2])
    assert options[5][2] == 1 and options[5][16:24] == bytes(8)  # one key, with an empty mask
    action = attributes(attributes(options[7])[1])
    assert action[1] == b"mirred\0"
    assert struct.unpack("=IIiiiiI", attributes(action[2])[2])[2:] == (4, 0, 0, 1, 9)
