"""What a pod on the embedded bridge network tries against the node and its neighbours, on the real kernel."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from crishim.network.bridge import BridgeNetwork
from tests.support.bridge import (
    ask_json,
    attachment,
    let_the_bridge_call_ip6tables,
    run,
    serve,
    succeeds,
    wait_until,
    with_bridge,
)
from tests.support.netns import Netns, in_new_netns

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.mark.parametrize("switch", ["0", "1"])
@in_new_netns
def test_a_pod_cannot_reach_the_loopback_of_ipv6(tmp_path: Path, switch: str) -> None:
    """A frame of the pod's own making: its kernel would not send to ::1 by a device."""

    async def scenario(network: BridgeNetwork) -> None:
        with Netns() as pod, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as service:
            run("ip link set lo up")
            service.bind(("::", 9))
            service.settimeout(0.3)
            await network.attach(attachment("a", pod), deadline_s=5)
            (bridge,) = ask_json("ip", "-j", "link", "show", "crishim0")
            to = bytes.fromhex(bridge["address"].replace(":", ""))
            pod.run(lambda: _send_frame(to, "::1"))
            with pytest.raises(TimeoutError):
                service.recv(1)
            # the frame is right: to an address of the bridge it arrives
            pod.run(lambda: _send_frame(to, "fd00:88::1"))
            assert service.recv(1) == b"x"

    let_the_bridge_call_ip6tables(switch)
    with_bridge(tmp_path, scenario)


def _send_frame(mac: bytes, target: str) -> None:
    """One UDP datagram to port 9 in an Ethernet frame."""
    source, to = socket.inet_pton(socket.AF_INET6, "fd00:88::2"), socket.inet_pton(socket.AF_INET6, target)
    datagram = struct.pack(">HHHH", 9, 9, 9, 0) + b"x"
    words = source + to + struct.pack(">II", len(datagram), socket.IPPROTO_UDP) + datagram + b"\0"
    total = sum(struct.unpack(f">{len(words) // 2}H", words))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    datagram = datagram[:6] + struct.pack(">H", ~total & 0xFFFF) + datagram[8:]
    header = struct.pack(">IHBB", 6 << 28, len(datagram), socket.IPPROTO_UDP, 64) + source + to
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x86DD)) as raw:
        raw.bind(("eth0", 0))
        raw.send(mac + raw.getsockname()[4] + b"\x86\xdd" + header + datagram)


@in_new_netns
def test_a_pod_cannot_reach_the_loopback_of_the_node(tmp_path: Path) -> None:
    """route_localnet would let it (CVE-2020-8558): the packet is counted at its socket unless the rule drops it."""

    async def scenario(network: BridgeNetwork) -> None:
        with Netns() as pod, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
            run("ip link set lo up")
            service.bind(("127.0.0.1", 9))
            service.settimeout(0.3)
            await network.attach(attachment("a", pod), deadline_s=5)

            def attack() -> None:
                Path("/proc/sys/net/ipv4/conf/eth0/route_localnet").write_text("1")
                # no local table for 127/8, so that the packet leaves by the device
                for route in ("127.0.0.0/8", "127.0.0.1"):
                    run(f"ip route del local {route} dev lo table local")
                run("ip route add 127.0.0.0/8 via 10.88.0.1 dev eth0 src 10.88.0.2")
                _send_to_loopback()

            pod.run(attack)
            with pytest.raises(TimeoutError):
                service.recv(1)
            # the attack itself works: without the table the packet arrives
            run("nft flush chain inet crishim-default guard")
            pod.run(_send_to_loopback)
            assert service.recv(1) == b"x"

    with_bridge(tmp_path, scenario)


def _send_to_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attacker:
        attacker.sendto(b"x", ("127.0.0.1", 9))


@in_new_netns
def test_a_pod_cannot_make_itself_the_router_of_its_neighbours(tmp_path: Path) -> None:
    async def scenario(network: BridgeNetwork) -> None:
        with Netns() as attacker, Netns() as victim:
            await network.attach(attachment("a", attacker), deadline_s=5)
            target = await network.attach(attachment("b", victim), deadline_s=5)
            with serve(victim, socket.AF_INET, socket.SOCK_DGRAM, 9) as marker:
                attacker.run(lambda: _advertise_router(target.ips[0]))
                assert marker.recv(1) == b"x"
                assert _learned_routes(victim) == []
                # the attack itself works: without the rule it succeeds
                run("nft delete table bridge crishim-default")
                attacker.run(lambda: _advertise_router(target.ips[0]))
                assert marker.recv(1) == b"x"
            wait_until(lambda: len(_learned_routes(victim)) == 1)

    with_bridge(tmp_path, scenario)


def _advertise_router(marker: str) -> None:
    """A router advertisement to everyone on the link, then a packet to `marker` that arrives after it."""
    index = socket.if_nametoindex("eth0")
    advertisement = bytes([134, 0, 0, 0, 64, 0]) + (1800).to_bytes(2, "big") + bytes(8)
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        found = [each for link in ask_json("ip", "-j", "addr", "show", "eth0") for each in link.get("addr_info", ())]
        (own,) = [each["local"] for each in found if each["scope"] == "link"]
        # only a link-local source counts, and it is tentative for a second
        wait_until(lambda: succeeds(lambda: raw.bind((own, 0, 0, index))))
        raw.sendto(advertisement, ("ff02::1", 0, 0, index))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (marker, 9))


def _learned_routes(pod: Netns) -> list[Any]:
    routes = pod.run(lambda: ask_json("ip", "-j", "-6", "route", "show", "default"))
    return [route for route in routes if route["protocol"] == "ra"]
