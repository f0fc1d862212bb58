"""The embedded bridge network on the real kernel, in network namespaces of the test's own."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from crishim.errors import Unavailable
from crishim.model.sandbox import PortMapping
from crishim.network import bridge
from crishim.network.bridge import BridgeNetwork, parse_subnets
from crishim.network.names import port_name
from crishim.network.pool import AddressPool
from tests.support.bridge import (
    SUBNETS,
    ask_json,
    attachment,
    connect_outside,
    link_names,
    peer_of_call,
    pods_in_rules,
    ports_in_rules,
    run,
    serve,
    with_bridge,
)
from tests.support.netns import Netns, in_new_netns

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@in_new_netns
def test_two_pods_talk_to_each_other_in_both_families(tmp_path: Path) -> None:
    async def scenario(network: BridgeNetwork) -> None:
        with Netns() as one, Netns() as other:
            first = await network.attach(attachment("a", one), deadline_s=5)
            second = await network.attach(attachment("b", other), deadline_s=5)
            for index, family in enumerate((socket.AF_INET, socket.AF_INET6)):
                with serve(other, family, socket.SOCK_STREAM, 80) as server:
                    assert peer_of_call(one, (second.ips[index], 80), server) == first.ips[index]
            await network.check("a", one.path, deadline_s=5)
            await network.detach("a", one.path, deadline_s=5)
            await network.detach("b", other.path, deadline_s=5)

    with_bridge(tmp_path, scenario)


@in_new_netns
def test_a_pod_has_loopback_eth0_its_addresses_and_default_routes(tmp_path: Path) -> None:
    async def scenario(network: BridgeNetwork) -> None:
        with Netns() as pod:
            result = await network.attach(attachment("a", pod), deadline_s=5)
            links = {link["ifname"]: link for link in pod.run(lambda: ask_json("ip", "-j", "addr"))}
            assert {"UP"} <= set(links["lo"]["flags"]) and {"UP"} <= set(links["eth0"]["flags"])
            assert links["eth0"]["address"] == result.mac
            wanted = {("10.88.0.2", 16), ("fd00:88::2", 64)}
            assert wanted <= {(each["local"], each["prefixlen"]) for each in links["eth0"]["addr_info"]}
            assert not any(each.get("tentative") for each in links["eth0"]["addr_info"] if each["scope"] == "global")
            for family, gateway in (("-4", "10.88.0.1"), ("-6", "fd00:88::1")):
                routes = pod.run(lambda family=family: ask_json("ip", "-j", family, "route", "show", "default"))
                assert [each["gateway"] for each in routes] == [gateway]

    with_bridge(tmp_path, scenario)


@in_new_netns
def test_pods_leave_the_node_under_its_address(tmp_path: Path) -> None:
    async def scenario(network: BridgeNetwork) -> None:
        with Netns() as pod, Netns() as outside:
            connect_outside(outside)
            await network.attach(attachment("a", pod), deadline_s=5)
            for family, ip, node in (
                (socket.AF_INET, "192.0.2.2", "192.0.2.1"),
                (socket.AF_INET6, "2001:db8::2", "2001:db8::1"),
            ):
                with serve(outside, family, socket.SOCK_STREAM, 80) as server:
                    assert peer_of_call(pod, (ip, 80), server) == node
        run("ip link delete outer")

    with_bridge(tmp_path, scenario)


@in_new_netns
def test_detach_leaves_no_link_no_rule_and_no_address_and_may_be_repeated(tmp_path: Path) -> None:
    async def scenario(network: BridgeNetwork) -> None:
        with Netns() as pod:
            for _ in range(2):
                await network.attach(attachment("a", pod, PortMapping("tcp", 80, 80)), deadline_s=5)
                assert pods_in_rules() and ports_in_rules() == 2
                for _ in range(2):
                    await network.detach("a", None, deadline_s=5)
                assert (link_names(), pods_in_rules(), ports_in_rules()) == ({"lo", "crishim0"}, [], 0)

    with_bridge(tmp_path, scenario)


@in_new_netns
def test_thousands_of_pods_come_back_and_leave_in_one_transaction_each(tmp_path: Path) -> None:
    """Rules of pods that the pool knows, as after a restart; their number must not meet a limit of the wire."""
    pool = AddressPool(tmp_path / "default.db")
    subnets = parse_subnets(SUBNETS, "subnets")
    # one commit each is what a pod pays, and not what this test is about
    pool._database.execute("PRAGMA synchronous = OFF")
    for index in range(1000):
        pool.reserve(f"pod{index}", subnets, (PortMapping("tcp", 80, 10_000 + index),))
    pool.close()

    async def scenario(network: BridgeNetwork) -> None:
        assert (await network.ready()).ready
        assert (len(pods_in_rules()), ports_in_rules()) == (2000, 2000)
        assert await network.reconcile({"pod0"}, deadline_s=60) == ()
        assert (pods_in_rules(), ports_in_rules()) == (["10.88.0.2", "fd00:88::2"], 2)

    with_bridge(tmp_path, scenario)


@in_new_netns
def test_detaches_at_once_leave_nothing_but_who_stays(tmp_path: Path) -> None:
    async def scenario(network: BridgeNetwork) -> None:
        with ExitStack() as stack:
            pods = [stack.enter_context(Netns()) for _ in range(12)]
            for index, pod in enumerate(pods):
                await network.attach(attachment(f"pod{index}", pod), deadline_s=5)
            await asyncio.gather(*(network.detach(f"pod{index}", None, deadline_s=5) for index in range(1, 12)))
            assert (link_names(), len(pods_in_rules())) == ({"lo", "crishim0", port_name("pod0")}, 2)
            await network.check("pod0", pods[0].path, deadline_s=5)

    with_bridge(tmp_path, scenario)


@in_new_netns
def test_a_flushed_ruleset_and_a_deleted_bridge_come_back(tmp_path: Path) -> None:
    async def scenario(network: BridgeNetwork) -> None:
        with Netns() as one, Netns() as other, Netns() as third:
            await network.attach(attachment("a", one), deadline_s=5)
            run("nft flush ruleset")
            with pytest.raises(Unavailable, match="lost its link or its rules"):
                await network.check("a", one.path, deadline_s=5)
            await network.attach(attachment("b", other), deadline_s=5)
            assert pods_in_rules() == ["10.88.0.2", "10.88.0.3", "fd00:88::2", "fd00:88::3"]
            await network.check("a", one.path, deadline_s=5)
            run("ip link delete crishim0")
            await network.attach(attachment("c", third), deadline_s=5)
            await network.detach("a", one.path, deadline_s=5)
            await network.detach("b", other.path, deadline_s=5)

    with_bridge(tmp_path, scenario)


@in_new_netns
def test_instances_live_side_by_side(tmp_path: Path) -> None:
    async def scenario(network: BridgeNetwork) -> None:
        other = BridgeNetwork("second", ("10.99.0.0/24",), tmp_path / "second.db")
        await other.open()
        with Netns() as one, Netns() as two:
            await network.attach(attachment("a", one), deadline_s=5)
            assert (await other.attach(attachment("a2", two), deadline_s=5)).ips == ("10.99.0.2",)
            await other.reconcile((), deadline_s=5)
            await network.check("a", one.path, deadline_s=5)
        await other.teardown()
        await other.close()

    with_bridge(tmp_path, scenario)


@in_new_netns
def test_a_subnet_that_the_node_uses_already_is_said(tmp_path: Path) -> None:
    async def scenario(network: BridgeNetwork) -> None:
        rival = BridgeNetwork("rival", ("10.88.128.0/24",), tmp_path / "rival.db")
        await rival.open()
        readiness = await rival.ready()
        assert (readiness.ready, readiness.reason) == (False, "SubnetInUse")
        assert "10.88.0.1/16 of network device crishim0" in readiness.message
        await rival.teardown()
        await rival.close()

    with_bridge(tmp_path, scenario)


@in_new_netns
def test_the_mtu_is_that_of_the_default_route(tmp_path: Path) -> None:
    with Netns() as outside:
        connect_outside(outside)

        async def scenario(network: BridgeNetwork) -> None:
            with Netns() as pod:
                await network.attach(attachment("a", pod), deadline_s=5)
                (eth0,) = pod.run(lambda: ask_json("ip", "-j", "link", "show", "eth0"))
                (port,) = ask_json("ip", "-j", "-d", "link", "show", port_name("a"))
                assert eth0["mtu"] == port["mtu"] == 1300
                assert port["linkinfo"]["info_slave_data"]["hairpin"] is True
            run("ip link delete outer")

        with_bridge(tmp_path, scenario)


@in_new_netns
def test_a_policy_that_drops_forwarded_packets_is_told(tmp_path: Path) -> None:
    drop = "add table ip strict; add chain ip strict forward { type filter hook forward priority 0; policy drop; }"
    subprocess.run(("nft", drop), check=True)

    async def scenario(network: BridgeNetwork) -> None:
        readiness = await network.ready()
        assert readiness.ready and "chain forward of nftables table strict drops" in readiness.message
        run("nft delete table ip strict")

    with_bridge(tmp_path, scenario)


@in_new_netns
def test_forwarding_that_was_turned_off_is_turned_on_again(tmp_path: Path) -> None:
    async def scenario(network: BridgeNetwork) -> None:
        forward = Path("/proc/sys/net/ipv4/ip_forward")
        await asyncio.to_thread(forward.write_text, "0")
        assert (await network.ready()).ready
        assert await asyncio.to_thread(forward.read_text) == "1\n"

    with_bridge(tmp_path, scenario)


@in_new_netns
def test_rules_that_a_firewall_flushed_come_back_when_readiness_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "_TABLE_EVERY_S", 0.0)

    async def scenario(network: BridgeNetwork) -> None:
        with Netns() as pod:
            await network.attach(attachment("a", pod, PortMapping("tcp", 80, 8080)), deadline_s=5)
            held = pods_in_rules()
            assert (await network.ready()).ready and pods_in_rules() == held
            run("nft flush ruleset")
            assert pods_in_rules() == []
            assert (await network.ready()).ready
            assert pods_in_rules() == held and ports_in_rules() == 2
            await network.detach("a", None, deadline_s=5)

    with_bridge(tmp_path, scenario)
