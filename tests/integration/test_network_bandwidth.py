"""Bandwidth of pods on the embedded bridge network, on the real kernel."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from crishim.errors import InvalidSpec
from crishim.network.bridge import BridgeNetwork
from crishim.network.names import port_name, shaper_name
from crishim.network.pool import AddressPool
from tests.support.bridge import WAIT_S, ask_json, attachment, link_names, serve, with_bridge
from tests.support.netns import Netns, in_new_netns

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

RATE = 16_000_000
"""Bits per second: a megabyte takes half a second, and without a shape a millisecond."""


def _seconds_for_a_megabyte(sender: Netns, address: tuple[str, int], receiver: Netns) -> float:
    with serve(receiver, socket.AF_INET, socket.SOCK_STREAM, address[1]) as server:

        def dial() -> socket.socket:
            return socket.create_connection(address, WAIT_S)

        with sender.run(dial) as caller, server.accept()[0] as connection:
            connection.settimeout(30)
            writer = threading.Thread(target=lambda: (caller.sendall(bytes(1 << 20)), caller.shutdown(socket.SHUT_WR)))
            began = time.monotonic()
            writer.start()
            while connection.recv(1 << 16):
                pass
            writer.join()
            return time.monotonic() - began


@pytest.mark.parametrize("way", ["ingress", "egress"])
@in_new_netns
def test_a_pod_receives_and_sends_as_fast_as_its_annotations_say(tmp_path: Path, way: str) -> None:
    async def scenario(network: BridgeNetwork) -> None:
        with Netns() as shaped, Netns() as free:
            rate = {way: f"{RATE // 1_000_000}M"}
            own = (await network.attach(attachment("a", shaped, **rate), deadline_s=5)).ips[0]
            other = (await network.attach(attachment("b", free), deadline_s=5)).ips[0]
            received = _seconds_for_a_megabyte(free, (own, 80), shaped)
            sent = _seconds_for_a_megabyte(shaped, (other, 80), free)
            slow, fast = (received, sent) if way == "ingress" else (sent, received)
            # less what the bucket holds at rest, a tenth of a second; a busy machine only makes it slower
            assert 0.3 < slow < 5 and fast < slow / 2, (slow, fast)

    with_bridge(tmp_path, scenario)


@in_new_netns
def test_the_shape_of_a_pod_is_on_the_side_of_the_node_and_goes_with_the_pod(tmp_path: Path) -> None:
    def shapes() -> dict[str, Any]:
        return {each["dev"]: each["options"] for each in ask_json("tc", "-j", "qdisc") if each["kind"] == "tbf"}

    async def scenario(network: BridgeNetwork) -> None:
        with Netns() as pod, Netns() as other:
            await network.attach(attachment("a", pod, ingress="80M", egress="8M"), deadline_s=5)
            await network.attach(attachment("b", other), deadline_s=5)
            port, shaper = port_name("a"), shaper_name("a")
            assert {name: (each["rate"], each["burst"]) for name, each in shapes().items()} == {
                port: (10_000_000, 1_000_000),
                shaper: (1_000_000, 100_000),
            }
            assert {each["kind"] for each in pod.run(lambda: ask_json("tc", "-j", "qdisc"))} == {"noqueue"}
            found = {each.name for each in await network.survey(deadline_s=5) if each.kind == "device"}
            assert found == {port, shaper, port_name("b")}
            await network.detach("a", None, deadline_s=5)
            assert shapes() == {} and shaper not in link_names()

    with_bridge(tmp_path, scenario)


@in_new_netns
def test_a_device_that_shaped_for_a_pod_nobody_knows_is_removed(tmp_path: Path) -> None:
    async def scenario(network: BridgeNetwork) -> None:
        with Netns() as pod:
            await network.attach(attachment("a", pod, egress="8M"), deadline_s=5)
            with closing(AddressPool(tmp_path / "default.db")) as pool:
                pool.release("a")
            assert shaper_name("a") in {each.name for each in await network.survey(deadline_s=5)}
            await network.reconcile((), deadline_s=5)
            assert link_names() == {"lo", "crishim0"}

    with_bridge(tmp_path, scenario)


@in_new_netns
def test_a_rate_that_is_none_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    async def scenario(network: BridgeNetwork) -> None:
        with Netns() as pod:
            with pytest.raises(
                InvalidSpec, match=r"annotation kubernetes.io/egress-bandwidth: '2P' is not within 1k..1P"
            ):
                await network.attach(attachment("a", pod, egress="2P"), deadline_s=5)
            assert link_names() == {"lo", "crishim0"} and await network.survey(deadline_s=5) == ()

    with_bridge(tmp_path, scenario)
