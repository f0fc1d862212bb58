"""Host ports of the embedded bridge network on the real kernel: where they answer, and where they must not."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from crishim.model.sandbox import PortMapping
from crishim.network.bridge import BridgeNetwork
from tests.support.bridge import (
    WAIT_S,
    attachment,
    connect_outside,
    let_the_bridge_call_ip6tables,
    peer_of_call,
    ports_in_rules,
    run,
    serve,
    with_bridge,
)
from tests.support.netns import Netns, in_new_netns

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@in_new_netns
def test_a_host_port_answers_from_loopback_node_outside_and_the_pod_itself(tmp_path: Path) -> None:
    async def scenario(network: BridgeNetwork) -> None:
        with Netns() as pod, Netns() as neighbour, Netns() as outside:
            connect_outside(outside)
            ports = (PortMapping("tcp", 80, 8080), PortMapping("udp", 53, 5353))
            await network.attach(attachment("a", pod, *ports), deadline_s=5)
            await network.attach(attachment("b", neighbour), deadline_s=5)
            with serve(pod, socket.AF_INET, socket.SOCK_STREAM, 80) as server:
                assert peer_of_call(None, ("127.0.0.1", 8080), server) == "10.88.0.1"
                assert peer_of_call(None, ("192.0.2.1", 8080), server) == "192.0.2.1"
                assert peer_of_call(outside, ("192.0.2.1", 8080), server) == "192.0.2.2"
                assert peer_of_call(neighbour, ("192.0.2.1", 8080), server) == "10.88.0.1"
                assert peer_of_call(pod, ("192.0.2.1", 8080), server) == "10.88.0.1"
            with serve(pod, socket.AF_INET, socket.SOCK_DGRAM, 53) as server:
                assert peer_of_call(outside, ("192.0.2.1", 5353), server) == "192.0.2.2"
            with serve(pod, socket.AF_INET6, socket.SOCK_STREAM, 80) as server:
                assert peer_of_call(outside, ("2001:db8::1", 8080), server) == "2001:db8::2"
            await network.detach("a", pod.path, deadline_s=5)
            assert ports_in_rules() == 0
            with pytest.raises(OSError):
                socket.create_connection(("127.0.0.1", 8080), WAIT_S).close()
        run("ip link delete outer")

    with_bridge(tmp_path, scenario)


@in_new_netns
def test_a_host_port_of_one_address_answers_there_alone(tmp_path: Path) -> None:
    async def scenario(network: BridgeNetwork) -> None:
        with Netns() as pod, Netns() as outside:
            connect_outside(outside)
            await network.attach(attachment("a", pod, PortMapping("tcp", 80, 8080, "127.0.0.1")), deadline_s=5)
            with serve(pod, socket.AF_INET, socket.SOCK_STREAM, 80) as server:
                assert peer_of_call(None, ("127.0.0.1", 8080), server) == "10.88.0.1"
                with pytest.raises(ConnectionRefusedError):
                    peer_of_call(outside, ("192.0.2.1", 8080), server)
        run("ip link delete outer")

    with_bridge(tmp_path, scenario)


@in_new_netns
def test_a_host_port_answers_on_the_loopback_of_ipv6(tmp_path: Path) -> None:
    async def scenario(network: BridgeNetwork) -> None:
        run("ip link set lo up")
        with Netns() as pod:
            ports = (PortMapping("tcp", 80, 8080), PortMapping("udp", 53, 5353, "::1"))
            await network.attach(attachment("a", pod, *ports), deadline_s=5)
            with serve(pod, socket.AF_INET6, socket.SOCK_STREAM, 80) as server:
                assert peer_of_call(None, ("::1", 8080), server) == "fd00:88::1"
            with serve(pod, socket.AF_INET6, socket.SOCK_DGRAM, 53) as server:
                assert peer_of_call(None, ("::1", 5353), server) == "fd00:88::1"
            # what else is on ::1 goes on as if we were not there
            with socket.create_server(("::1", 9), family=socket.AF_INET6) as other:
                other.settimeout(WAIT_S)
                assert peer_of_call(None, ("::1", 9), other) == "::1"
            await network.detach("a", None, deadline_s=5)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("::1", 8080), WAIT_S).close()

    let_the_bridge_call_ip6tables("0")
    with_bridge(tmp_path, scenario)
    assert "crishim" not in subprocess.run(("ip", "-6", "rule"), check=True, stdout=subprocess.PIPE, text=True).stdout


@in_new_netns
def test_where_bridged_packets_pass_ip6tables_a_call_to_the_loopback_is_refused_at_once(tmp_path: Path) -> None:
    async def scenario(network: BridgeNetwork) -> None:
        run("ip link set lo up")
        with Netns() as pod:
            await network.attach(attachment("a", pod, PortMapping("tcp", 80, 8080)), deadline_s=5)
            with serve(pod, socket.AF_INET6, socket.SOCK_STREAM, 80) as server:
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(("::1", 8080), WAIT_S).close()
                assert peer_of_call(None, ("fd00:88::1", 8080), server) == "fd00:88::1"

    let_the_bridge_call_ip6tables("1")
    with_bridge(tmp_path, scenario)


@in_new_netns
def test_a_udp_client_reaches_the_pod_that_took_over_the_port(tmp_path: Path) -> None:
    """A flow that goes on would else be sent to the address of the pod that is gone."""

    async def scenario(network: BridgeNetwork) -> None:
        port = PortMapping("udp", 53, 5353)
        with Netns() as old, Netns() as new, Netns() as outside:
            connect_outside(outside)

            def dial() -> socket.socket:
                made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                made.settimeout(WAIT_S)
                made.connect(("192.0.2.1", 5353))
                return made

            with outside.run(dial) as client:
                for name, pod in (("old", old), ("new", new)):
                    await network.attach(attachment(name, pod, port), deadline_s=5)
                    with serve(pod, socket.AF_INET, socket.SOCK_DGRAM, 53) as server:
                        client.send(name.encode())
                        assert server.recv(10) == name.encode()
                    await network.detach(name, pod.path, deadline_s=5)
        run("ip link delete outer")

    with_bridge(tmp_path, scenario)
