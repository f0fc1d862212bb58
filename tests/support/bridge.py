"""The embedded bridge network in namespaces of a test's own: pods on it, and a look at what the kernel has of it."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from crishim.model.sandbox import PortMapping, SandboxConfig
from crishim.network.bridge import BridgeNetwork
from crishim.network.door import Attachment
from tests.support.netns import Netns

SUBNETS = ("10.88.0.0/16", "fd00:88::/64")
WAIT_S = 5.0


def attachment(sandbox_id: str, pod: Netns, *ports: PortMapping, **bandwidth: str) -> Attachment:
    """A pod with host ports and rates, as the runtime would have it attached."""
    annotations = {f"kubernetes.io/{way}-bandwidth": rate for way, rate in bandwidth.items()}
    sandbox = SandboxConfig("pod", "uid", "ns", port_mappings=ports, annotations=annotations)
    return Attachment(sandbox_id, sandbox, pod.path, pod.fd, pod.netlink.fileno())


def with_bridge(
    directory: Path, scenario: Callable[[BridgeNetwork], Awaitable[None]], instance: str = "default"
) -> None:
    """Runs the scenario with an open network, in whose namespace nothing may be left after its teardown."""

    async def run() -> None:
        network = BridgeNetwork(instance, SUBNETS, directory / f"{instance}.db")
        await network.open()
        try:
            await scenario(network)
        finally:
            await network.teardown()
            await network.close()

    asyncio.run(run())
    assert link_names() == {"lo"}
    assert ruleset() == []


def run(command: str) -> None:
    """Run a command of words."""
    subprocess.run(command.split(), check=True)


def ask_json(*command: str) -> Any:
    """What a command says, as JSON."""
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout or b"[]")


def link_names() -> set[str]:
    """Devices of the calling thread's network namespace."""
    return {link["ifname"] for link in ask_json("ip", "-j", "link")}


def ruleset() -> list[dict[str, Any]]:
    """What nftables has in it."""
    listed = ask_json("nft", "-j", "list", "ruleset")["nftables"]
    return [each for each in listed if "metainfo" not in each]


def pods_in_rules() -> list[str]:
    """Addresses of pods that the rules know, of both families."""
    sets = [each["set"] for each in ruleset() if "set" in each]
    return sorted(ip for each in sets if each["name"].startswith("pods") for ip in each.get("elem", ()))


def ports_in_rules() -> int:
    """How many host ports they know."""
    maps = [each["map"] for each in ruleset() if "map" in each]
    return sum(len(each.get("elem", ())) for each in maps)


@contextmanager
def serve(pod: Netns, family: int, kind: int, port: int) -> Iterator[socket.socket]:
    """A socket bound inside the pod; TCP listens."""

    def make() -> socket.socket:
        made = socket.socket(family, kind)
        made.settimeout(WAIT_S)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(("", port))
        if kind == socket.SOCK_STREAM:
            made.listen()
        return made

    with pod.run(make) as server:
        yield server


def peer_of_call(client: Netns | None, address: tuple[str, int], server: socket.socket) -> str:
    """The client's address as the server sees it, after a byte went each way."""
    kind = server.type

    def dial() -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, kind)
        try:
            made.settimeout(WAIT_S)
            made.connect(address)
        except OSError:
            made.close()
            raise
        return made

    with client.run(dial) if client else dial() as caller:
        caller.send(b"?")
        if kind == socket.SOCK_DGRAM:
            asked, peer = server.recvfrom(1)
            server.sendto(b"!", peer)
        else:
            connection, peer = server.accept()
            with connection:
                connection.settimeout(WAIT_S)
                asked = connection.recv(1)
                connection.send(b"!")
                assert caller.recv(1) == b"!"
                return str(peer[0]) if asked == b"?" else ""
        assert (asked, caller.recv(1)) == (b"?", b"!")
        return str(peer[0])


def connect_outside(outside: Netns) -> None:
    """A host beside the node: 192.0.2.2 and 2001:db8::2, behind a link with mtu 1300 and the default route."""
    run("ip link set lo up")
    run(f"ip link add outer mtu 1300 type veth peer name far netns {outside.path} mtu 1300")
    run("ip addr add 192.0.2.1/24 dev outer")
    run("ip addr add 2001:db8::1/64 dev outer nodad")
    run("ip link set outer up")
    run("ip route add default via 192.0.2.2")

    def configure() -> None:
        run("ip addr add 192.0.2.2/24 dev far")
        run("ip addr add 2001:db8::2/64 dev far nodad")
        run("ip link set far up")

    outside.run(configure)


def let_the_bridge_call_ip6tables(value: str) -> None:
    """Write the switch of br_netfilter; skips when it is to be on and the kernel has none."""
    switch = Path("/proc/sys/net/bridge/bridge-nf-call-ip6tables")
    if switch.exists():  # br_netfilter is in this kernel
        switch.write_text(value)
    elif value == "1":
        pytest.skip("br_netfilter is not loaded")


def succeeds(call: Callable[[], object]) -> bool:
    """Whether a call ends without an OSError."""
    try:
        call()
    except OSError:
        return False
    return True


def wait_until(condition: Callable[[], bool]) -> None:
    """Ask again and again, for WAIT_S."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "the condition did not come"
        time.sleep(0.02)
