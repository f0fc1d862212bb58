"""CNI networks with the plugins that distributions ship, in network namespaces of the test's own."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from crishim.errors import Unavailable
from crishim.model.sandbox import PortMapping, SandboxConfig
from crishim.network.cni.network import CniNetwork
from crishim.network.door import Attachment, NetworkResult
from tests.support.netns import Netns, in_new_netns

PLUGIN_DIRS = [path for path in (Path("/usr/lib/cni"), Path("/opt/cni/bin")) if (path / "bridge").exists()]

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(not PLUGIN_DIRS, reason="CNI plugins are not installed"),
]

WAIT_S = 5.0


def _configure(directory: Path) -> None:
    plugins: list[dict[str, Any]] = [
        {
            "type": "bridge",
            "bridge": "cnitest0",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(directory / "ipam"),
                "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd00:77::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    ]
    (directory / "net.d").mkdir()
    document = {"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}
    (directory / "net.d" / "10-pods.conflist").write_text(json.dumps(document))


def _network(directory: Path) -> CniNetwork:
    return CniNetwork(directory / "net.d", PLUGIN_DIRS, directory / "records")


def _attachment(sandbox_id: str, pod: Netns, *ports: PortMapping) -> Attachment:
    annotations = {"kubernetes.io/egress-bandwidth": "10M"}
    sandbox = SandboxConfig("pod", "uid", "ns", port_mappings=ports, annotations=annotations)
    return Attachment(sandbox_id, sandbox, pod.path, pod.fd, pod.netlink.fileno())


def _addresses_held(directory: Path) -> list[str]:
    names = os.listdir(directory / "ipam" / "pods")
    return sorted(name for name in names if not name.startswith(("last_reserved", "lock")))


def _ports() -> set[str]:
    """Devices in the bridge, and those that shape bandwidth."""
    links = json.loads(subprocess.run(("ip", "-j", "link"), check=True, stdout=subprocess.PIPE).stdout)
    return {link["ifname"] for link in links} - {"lo", "cnitest0"}


def _rules() -> str:
    listed = subprocess.run(("iptables-save",), check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return listed.stdout.decode()


def _scenario(directory: Path, body: Callable[[CniNetwork], Coroutine[None, None, None]]) -> None:
    subprocess.run(("ip", "link", "set", "lo", "up"), check=True)
    _configure(directory)
    asyncio.run(body(_network(directory)))


def _answer(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.sendall(b"hello")


def _listen() -> socket.socket:
    server = socket.create_server(("", 80))
    server.settimeout(WAIT_S)
    return server


async def _attach(network: CniNetwork, sandbox_id: str, pod: Netns, *ports: PortMapping) -> NetworkResult:
    return await network.attach(_attachment(sandbox_id, pod, *ports), deadline_s=60)


@in_new_netns
def test_add_check_and_del_of_a_chain_with_host_port_and_bandwidth(tmp_path: Path) -> None:
    async def body(network: CniNetwork) -> None:
        assert (await network.ready()).ready
        with Netns() as pod, Netns() as neighbour:
            result = await _attach(network, "a", pod, PortMapping("tcp", 80, 8080))
            await _attach(network, "b", neighbour)
            assert result.ips == ("10.77.0.2", "fd00:77::2") and result.gateways == ("10.77.0.1", "fd00:77::1")
            assert _addresses_held(tmp_path) == ["10.77.0.2", "10.77.0.3", "fd00:77::2", "fd00:77::3"]

            def loopback() -> bytes:
                return subprocess.run(("ip", "link", "show", "lo"), check=True, stdout=subprocess.PIPE).stdout

            assert b"LOOPBACK,UP" in pod.run(loopback)
            with pod.run(_listen) as server:
                for caller, address in (
                    (neighbour.run, ("10.77.0.2", 80)),
                    (lambda call: call(), ("127.0.0.1", 8080)),
                ):
                    with caller(lambda address=address: socket.create_connection(address, WAIT_S)) as client:
                        _answer(server)
                        assert client.recv(5) == b"hello"
            # not of "a": CHECK of portmap 1.1.1 looks for the host ports of IPv4 among the rules of IPv6
            await network.check("b", neighbour.path, deadline_s=60)
            assert any(name.startswith("bwp") for name in _ports()), "a device that shapes what the pod sends"

            await network.detach("a", pod.path, deadline_s=60)
            assert _addresses_held(tmp_path) == ["10.77.0.3", "fd00:77::3"]
            assert "8080" not in _rules()
            await network.detach("b", neighbour.path, deadline_s=60)
        assert (_ports(), _addresses_held(tmp_path)) == (set(), [])

    _scenario(tmp_path, body)


@in_new_netns
def test_check_tells_that_a_pod_lost_its_address(tmp_path: Path) -> None:
    async def body(network: CniNetwork) -> None:
        with Netns() as pod:
            await _attach(network, "a", pod)
            await network.check("a", pod.path, deadline_s=60)
            pod.run(lambda: subprocess.run(("ip", "addr", "flush", "dev", "eth0"), check=True))
            with pytest.raises(Unavailable, match="'bridge' refused CHECK"):
                await network.check("a", pod.path, deadline_s=60)
            await network.detach("a", pod.path, deadline_s=60)

    _scenario(tmp_path, body)


@in_new_netns
def test_del_after_a_reboot_releases_the_addresses(tmp_path: Path) -> None:
    async def body(network: CniNetwork) -> None:
        with Netns() as pod:
            await _attach(network, "a", pod, PortMapping("tcp", 80, 8080))
        after = _network(tmp_path)
        assert await after.reconcile((), deadline_s=60) == ()
        assert _addresses_held(tmp_path) == []

    _scenario(tmp_path, body)


@in_new_netns
def test_an_attach_that_a_crash_cut_off_is_repeated(tmp_path: Path) -> None:
    """The record says that plugins may have run; the new ADD begins with their DEL."""

    async def body(network: CniNetwork) -> None:
        with Netns() as pod:
            first = await _attach(network, "a", pod, PortMapping("tcp", 80, 8080))
            again = await _attach(_network(tmp_path), "a", pod, PortMapping("tcp", 80, 8080))
            assert first.ips != again.ips, "host-local gives addresses in turn"
            assert _addresses_held(tmp_path) == sorted(again.ips)
            await network.detach("a", pod.path, deadline_s=60)
        assert (_ports(), _addresses_held(tmp_path), "8080" in _rules()) == (set(), [], False)

    _scenario(tmp_path, body)


@in_new_netns
def test_an_add_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    async def body(network: CniNetwork) -> None:
        # portmap refuses it, after bridge has given an address
        with Netns() as pod, pytest.raises(Unavailable, match="'portmap' refused ADD"):
            await _attach(network, "a", pod, PortMapping("nonsense", 80, 8080))
        assert (_ports(), _addresses_held(tmp_path)) == (set(), [])

    _scenario(tmp_path, body)
