"""Network devices of the host in a container: moved in with what they are, and back when it ends, whatever it did."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crishim.errors import StartFailed
from crishim.executor.client import PodSpec
from crishim.model.hook import Hook, Hooks
from crishim.model.id_mapping import IdMapping
from crishim.model.process import Namespace, NamespaceKind
from tests.support.container import (
    IDLE,
    NAMESPACES,
    Container,
    Node,
    Pod,
    all_capabilities,
    program,
    read_line,
    script,
    wait_until,
)
from tests.support.netns import Netns

MAC = "02:00:00:00:00:07"
V4, V6 = "192.0.2.7/24", "2001:db8::7/64"


class Host:
    """A network namespace that stands for the host's, and an executor in it."""

    def __init__(self, netns: Netns) -> None:
        self.netns = netns

    def ip(self, *args: str) -> str:
        """iproute2 in it."""
        call = lambda: subprocess.run(["ip", *args], capture_output=True, text=True, check=True).stdout  # noqa: E731
        return self.netns.run(call)

    def device(self, name: str) -> dict[str, Any] | None:
        """mtu, mac, up, addresses of global scope; None when there is none."""
        found = [each for each in json.loads(self.ip("-j", "addr", "show")) if each["ifname"] == name]
        return facts(found[0]) if found else None


def facts(link: dict[str, Any]) -> dict[str, Any]:
    addresses = [f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"] if each["scope"] == "global"]
    return {"mtu": link["mtu"], "mac": link["address"], "up": "UP" in link["flags"], "addresses": sorted(addresses)}


#: of the device that every test begins with
DEV0 = {"mtu": 1400, "mac": MAC, "up": True, "addresses": sorted((V4, V6))}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with Netns() as netns:
        yield Host(netns)


@pytest.fixture(scope="module")
def own_node(host: Host) -> Iterator[Node]:
    node = host.netns.run(lambda: Node(f"/crishim-net-devices-test-{os.getpid()}"))
    yield node
    node.close()


@pytest.fixture
def make_own_pod(own_node: Node, busybox_root: Path, tmp_path: Path) -> Iterator[Callable[..., Pod]]:
    pods: list[Pod] = []

    def make(**fields: Any) -> Pod:
        pods.append(Pod(own_node, busybox_root, tmp_path, f"p{len(pods)}", PodSpec(**{"network": True, **fields})))
        return pods[-1]

    yield make
    for pod in pods:
        pod.stop()


@pytest.fixture
def dev0(host: Host, make_own_pod: Callable[..., Pod]) -> Iterator[str]:
    """A device of the host, one end of a pair."""
    host.ip("link", "add", "dev0", "address", MAC, "mtu", "1400", "type", "veth", "peer", "name", "far0")
    host.ip("addr", "add", V4, "dev", "dev0")
    host.ip("addr", "add", V6, "dev", "dev0", "nodad")
    host.ip("link", "set", "dev0", "up")
    assert host.device("dev0") == DEV0
    yield "dev0"
    if host.device("far0") is not None:
        host.ip("link", "del", "far0")


def inside(container: Container) -> dict[str, Any]:
    """Devices as the container's network namespace has them."""
    command = ["nsenter", f"--net=/proc/{container.pid}/ns/net", "ip", "-j", "addr", "show"]
    shown = subprocess.run(command, capture_output=True, check=True)
    return {each["ifname"]: facts(each) for each in json.loads(shown.stdout) if each["ifname"] != "lo"}


def test_a_device_moves_in_with_all_that_it_is_and_back_at_the_end(
    make_own_pod: Callable[..., Pod], host: Host, dev0: str
) -> None:
    pod = make_own_pod()
    for inner in ("net0", ""):  # a second container finds it on the host again
        container = pod.start(program(*IDLE), net_devices={dev0: inner})
        assert inside(container) == {inner or dev0: DEV0}
        assert host.device(dev0) is None
        container.kill()
        wait_until(lambda: host.device(dev0) == DEV0, "the device's way back")


def test_a_device_that_was_down_is_down_again(make_own_pod: Callable[..., Pod], host: Host, dev0: str) -> None:
    host.ip("link", "set", dev0, "down")
    before = host.device(dev0)
    container = make_own_pod().start(program(*IDLE), net_devices={dev0: ""})
    assert inside(container)[dev0]["up"]
    container.kill()
    wait_until(lambda: host.device(dev0) == before, "the device's way back")


def test_addresses_that_mean_something_there_alone_stay_behind(
    make_own_pod: Callable[..., Pod], host: Host, dev0: str
) -> None:
    host.ip("addr", "add", "169.254.7.7/16", "scope", "link", "dev", dev0)
    host.ip("addr", "add", "192.0.2.8/24", "dev", dev0, "valid_lft", "1000", "preferred_lft", "1000")
    container = make_own_pod().start(program(*IDLE), net_devices={dev0: ""})
    assert inside(container)[dev0] == DEV0


def test_a_pod_with_users_of_its_own_gets_devices(make_own_pod: Callable[..., Pod], host: Host, dev0: str) -> None:
    ids = (IdMapping(0, 300_000, 65536),)
    container = make_own_pod(uid_mappings=ids, gid_mappings=ids).start(program(*IDLE), net_devices={dev0: "net0"})
    assert inside(container) == {"net0": DEV0}
    container.kill()
    wait_until(lambda: host.device(dev0) == DEV0, "the device's way back")


def test_a_container_in_a_namespace_that_it_joins_gets_devices(
    make_own_pod: Callable[..., Pod], host: Host, dev0: str
) -> None:
    with Netns() as other:
        namespaces = (*NAMESPACES, Namespace(NamespaceKind.NETWORK, other.path))
        pod = make_own_pod(network=False)
        container = pod.start(program(*IDLE), net_devices={dev0: "net0"}, namespaces=namespaces)
        assert inside(container) == {"net0": DEV0}
        container.kill()
        wait_until(lambda: host.device(dev0) == DEV0, "the device's way back")


@pytest.mark.parametrize(
    ("devices", "sentence"),
    [
        ({"dev9": ""}, 'net_devices["dev9"]: no such device on the host'),
        ({"dev0": "lo"}, 'net_devices["dev0"]: the name "lo" is taken in the container'),
        ({"lo": "net0"}, 'net_devices["lo"]: a loopback device stays where it is'),
        ({"br0": ""}, 'net_devices["br0"]: it cannot be moved: invalid argument'),
        ({"dev0": "net0", "dev9": ""}, 'net_devices["dev9"]: no such device on the host'),
    ],
)
def test_what_cannot_be_moved_is_named_and_everything_is_where_it_was(
    make_own_pod: Callable[..., Pod], host: Host, dev0: str, devices: dict[str, str], sentence: str
) -> None:
    host.ip("link", "add", "br0", "type", "bridge")
    try:
        with pytest.raises(StartFailed, match=f"^{re.escape(sentence)}$"):
            make_own_pod().start(program(*IDLE), net_devices=devices)
        assert host.device(dev0) == DEV0
    finally:
        host.ip("link", "del", "br0")


def test_the_hosts_network_has_its_devices_already(make_own_pod: Callable[..., Pod], dev0: str) -> None:
    with pytest.raises(StartFailed, match="net_devices: the container has the host's network"):
        make_own_pod(network=False).start(program(*IDLE), net_devices={dev0: ""})


def test_a_start_that_fails_gives_its_devices_back(make_own_pod: Callable[..., Pod], host: Host, dev0: str) -> None:
    with pytest.raises(StartFailed, match="no/such"):
        make_own_pod().start(program("/no/such"), net_devices={dev0: "net0"})
    assert host.device(dev0) == DEV0


def test_a_start_that_is_cancelled_gives_its_devices_back(
    make_own_pod: Callable[..., Pod], host: Host, dev0: str, tmp_path: Path
) -> None:
    (tmp_path / "bundle/rootfs").mkdir(parents=True)
    hooks = Hooks(create_runtime=(Hook("/bin/sleep", ("sleep", "600")),))
    pod = make_own_pod()
    spec = pod.spec(program(*IDLE), net_devices={dev0: ""}, hooks=hooks, bundle=str(tmp_path / "bundle"))
    start = pod.node.submit(pod.monitor.start_container(spec))
    wait_until(lambda: host.device(dev0) is None, "the device's way in")
    pod.node.run(pod.monitor.cancel_start(spec.id))
    with pytest.raises(StartFailed, match="a stop ended it"):
        start.result(20)
    assert host.device(dev0) == DEV0


def test_what_a_container_did_to_a_device_does_not_come_back_with_it(
    make_own_pod: Callable[..., Pod], host: Host, dev0: str
) -> None:
    text = f"ip link set {dev0} down && ip link set {dev0} name mine && ip addr add 198.51.100.1/24 dev mine && echo up"
    admin = script(f"{text}; exec sleep 600", capabilities=all_capabilities(make_own_pod().node))
    container = make_own_pod().start(admin, net_devices={dev0: ""})
    assert read_line(container.stdout) == "up"
    assert "mine" in inside(container)
    container.kill()
    wait_until(lambda: host.device(dev0) == DEV0, "the device's way back")


def test_another_device_does_not_take_the_place_of_one_that_a_container_removed(
    make_own_pod: Callable[..., Pod], host: Host, dev0: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It could be one whose other end the container keeps: a way into the host's network."""
    pod = make_own_pod()
    container = pod.start(program(*IDLE), net_devices={dev0: ""})
    enter = ["nsenter", f"--net=/proc/{container.pid}/ns/net", "ip"]
    shown = subprocess.run([*enter, "-j", "link", "show", dev0], capture_output=True, check=True)
    index = str(json.loads(shown.stdout)[0]["ifindex"])
    subprocess.run([*enter, "link", "del", dev0], check=True)
    subprocess.run([*enter, "link", "add", dev0, "index", index, "type", "veth", "peer", "name", "mine"], check=True)
    assert inside(container)[dev0]
    with caplog.at_level(logging.ERROR):
        container.kill()
        wait_until(lambda: "is not back" in caplog.text, "the monitor's note")
    assert f"network device {dev0} ({dev0} inside) is not back: no such device" in caplog.text
    assert host.device(dev0) is None


def test_the_monitor_keeps_nothing_of_a_container_that_ended(
    make_own_pod: Callable[..., Pod], host: Host, dev0: str
) -> None:
    pod = make_own_pod()
    pod.start(program(*IDLE)).kill()
    before = len(os.listdir(f"/proc/{pod.monitor.pid}/fd"))
    for _ in range(2):
        container = pod.start(program(*IDLE), net_devices={dev0: ""})
        container.signal(signal.SIGKILL)
        container.wait()
        wait_until(lambda: host.device(dev0) == DEV0, "the device's way back")
    wait_until(lambda: len(os.listdir(f"/proc/{pod.monitor.pid}/fd")) == before, "the monitor's release of descriptors")
