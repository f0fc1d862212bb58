from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from crishim.errors import AlreadyExists, InvalidSpec, TimedOut, Unavailable
from crishim.model.sandbox import PortMapping, SandboxConfig
from crishim.network import bridge
from crishim.network.bandwidth import Bandwidth
from crishim.network.bridge import BridgeNetwork, parse_subnets
from crishim.network.bridge_kernel import BridgeKernel
from crishim.network.door import Attachment, NetworkObject, Readiness
from crishim.network.kernel_access import NotReady
from crishim.network.names import BridgeNames, mac_of, port_name, shaper_name
from crishim.network.pool import Reservation, Subnet

SANDBOX = SandboxConfig("pod", "uid", "ns")


@dataclass
class FakeKernel(BridgeKernel):
    """Remembers what it was asked, and fails once with what a test puts into `failures`."""

    calls: list[str] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    forwarding: bool = True
    table: bool = True

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if self.failures:
            raise self.failures.pop(0)

    def ensure(self, subnets: Sequence[Subnet], held: Sequence[Reservation]) -> str:
        self._note(f"ensure {','.join(map(str, subnets))} for {len(held)}")
        return ""

    def connect(self, reservation: Reservation, bandwidth: Bandwidth, netns_fd: int, pod_netlink_fd: int) -> str:
        self._note(f"connect {reservation.sandbox_id}")
        return "02:00:00:00:00:01"

    def disconnect(self, sandbox_ids: Sequence[str], reservations: Sequence[Reservation]) -> None:
        self._note(f"disconnect {','.join(sandbox_ids)}")

    def is_forwarding(self) -> bool:
        return self.forwarding

    def has_table(self) -> bool:
        self._note("table?")
        return self.table

    def close(self) -> None: ...

    def devices(self) -> list[str]:
        self._note("devices?")
        return [port_name("a"), shaper_name("a"), "crvffffffffffff"]

    def unknown_rules(self, held: Sequence[Reservation]) -> list[str]:
        return [f"pods4 of nobody, {len(held)} known"]

    def remove_strays(self, keep: object) -> None: ...


def _network(tmp_path: Path, kernel: FakeKernel) -> BridgeNetwork:
    return BridgeNetwork("default", ["10.88.0.0/24"], tmp_path / "network.db", kernel=kernel)


def _attachment(sandbox_id: str, sandbox: SandboxConfig = SANDBOX) -> Attachment:
    # any descriptors that are open will do: the fake does not use them
    return Attachment(sandbox_id, sandbox, "/run/netns/x", 1, 2)


def test_an_attach_answers_address_gateway_and_mac(tmp_path: Path) -> None:
    async def scenario() -> None:
        network = _network(tmp_path, FakeKernel())
        await network.open()
        result = await network.attach(_attachment("a"), deadline_s=5)
        assert (result.ips, result.gateways, result.mac) == (("10.88.0.2",), ("10.88.0.1",), "02:00:00:00:00:01")
        await network.close()

    asyncio.run(scenario())


def test_an_attach_that_fails_is_undone_and_releases_its_address(tmp_path: Path) -> None:
    async def scenario() -> None:
        kernel = FakeKernel()
        network = _network(tmp_path, kernel)
        await network.open()
        kernel.failures = [OSError(errno.ENOMEM, "no memory for a veth")]
        with pytest.raises(Unavailable, match="sandbox a cannot be set up: no memory for a veth"):
            await network.attach(_attachment("a"), deadline_s=5)
        assert kernel.calls[-2:] == ["connect a", "disconnect a"]
        assert (await network.attach(_attachment("b"), deadline_s=5)).ips == ("10.88.0.3",)
        await network.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV])
def test_a_table_or_a_bridge_that_somebody_deleted_is_made_again(tmp_path: Path, number: int) -> None:
    async def scenario() -> None:
        kernel = FakeKernel()
        network = _network(tmp_path, kernel)
        await network.open()
        kernel.failures = [OSError(number, "gone")]
        assert (await network.attach(_attachment("a"), deadline_s=5)).ips
        assert kernel.calls[-3:] == ["connect a", "ensure 10.88.0.0/24 for 1", "connect a"]
        await network.close()

    asyncio.run(scenario())


def test_a_detach_that_fails_keeps_the_address_for_the_next_attempt(tmp_path: Path) -> None:
    async def scenario() -> None:
        kernel = FakeKernel()
        network = _network(tmp_path, kernel)
        await network.open()
        await network.attach(_attachment("a"), deadline_s=5)
        kernel.failures = [OSError(errno.EBUSY, "busy")]
        with pytest.raises(Unavailable, match="busy"):
            await network.detach("a", None, deadline_s=5)
        assert (await network.attach(_attachment("a"), deadline_s=5)).ips == ("10.88.0.2",)
        await network.detach("a", None, deadline_s=5)
        await network.detach("a", None, deadline_s=5)
        await network.close()

    asyncio.run(scenario())


def test_detaches_that_wait_are_served_together_and_each_has_its_own_error(tmp_path: Path) -> None:
    async def scenario() -> None:
        kernel = FakeKernel()
        network = _network(tmp_path, kernel)
        await network.open()
        for name in "abc":
            await network.attach(_attachment(name), deadline_s=5)
        kernel.failures = [OSError(errno.EBUSY, "busy"), OSError(errno.EBUSY, "busy")]
        kernel.calls.clear()
        outcomes = await asyncio.gather(
            *(network.detach(name, None, deadline_s=5) for name in "abc"), return_exceptions=True
        )
        assert [str(each) for each in outcomes if each] == ["the network of sandbox a cannot be removed: busy"]
        await network.detach("a", None, deadline_s=5)
        assert network._opened().list() == ()
        await network.close()

    asyncio.run(scenario())


def test_what_a_node_lacks_is_said_until_it_is_repaired(tmp_path: Path) -> None:
    async def scenario() -> None:
        kernel = FakeKernel(failures=[NotReady("NftablesMissing", "no nftables"), NotReady("X", "still not")])
        network = _network(tmp_path, kernel)
        assert (await network.ready()).reason == "NetworkStarting"
        await network.open()
        assert await network.ready() == Readiness(False, "X", "still not")
        assert await network.ready() == Readiness(True)
        kernel.forwarding = False
        kernel.failures = [NotReady("SysctlRefused", "net.ipv4.ip_forward")]
        assert (await network.ready()).reason == "SysctlRefused"
        kernel.failures = [NotReady("SysctlRefused", "net.ipv4.ip_forward")]
        with pytest.raises(Unavailable, match="ip_forward"):
            await network.attach(_attachment("a"), deadline_s=5)
        await network.close()

    asyncio.run(scenario())


def test_a_pool_that_cannot_be_read_is_told_as_not_ready(tmp_path: Path) -> None:
    async def scenario() -> None:
        kernel = FakeKernel()
        network = _network(tmp_path, kernel)
        await network.open()
        network._opened()._database.execute("DROP TABLE pod_cidr")
        kernel.forwarding = False
        assert (await network.ready()).reason == "AddressPoolFailed"
        await network.close()

    asyncio.run(scenario())


def test_rules_that_somebody_deleted_are_made_again_when_readiness_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        kernel = FakeKernel()
        network = _network(tmp_path, kernel)
        await network.open()
        await network.attach(_attachment("a"), deadline_s=5)
        kernel.calls.clear()
        assert await network.ready() == Readiness(True)
        assert kernel.calls == []  # the setup was a moment ago
        monkeypatch.setattr(bridge, "_TABLE_EVERY_S", 0.0)
        assert await network.ready() == Readiness(True)
        kernel.table = False
        assert await network.ready() == Readiness(True)
        assert kernel.calls == ["table?", "table?", "ensure 10.88.0.0/24 for 1"]
        kernel.failures = [OSError(errno.ENOBUFS, "no room"), NotReady("NftablesMissing", "no nftables")]
        assert (await network.ready()).reason == "NftablesMissing"
        await network.close()

    asyncio.run(scenario())


def test_reconcile_detaches_what_is_not_live_and_tells_what_it_could_not(tmp_path: Path) -> None:
    async def scenario() -> None:
        kernel = FakeKernel()
        network = _network(tmp_path, kernel)
        await network.open()
        for name in "abc":
            await network.attach(_attachment(name), deadline_s=5)
        # together, and then each alone
        kernel.failures = [OSError(errno.EBUSY, "busy"), OSError(errno.EBUSY, "busy")]
        assert await network.reconcile({"b"}, deadline_s=5) == ("a",)
        assert kernel.calls[-4:-1] == ["disconnect a,c", "disconnect a", "disconnect c"]
        assert await network.reconcile({"b"}, deadline_s=5) == ()
        assert kernel.calls[-1] == "ensure 10.88.0.0/24 for 1"
        await network.close()

    asyncio.run(scenario())


def test_a_survey_tells_whose_each_thing_is_as_far_as_it_is_known(tmp_path: Path) -> None:
    async def scenario() -> None:
        kernel = FakeKernel()
        network = _network(tmp_path, kernel)
        await network.open()
        await network.attach(_attachment("a"), deadline_s=5)
        assert await network.survey(deadline_s=5) == (
            NetworkObject("address", "10.88.0.2", "a"),
            NetworkObject("device", port_name("a"), "a"),
            NetworkObject("device", shaper_name("a"), "a"),
            NetworkObject("device", "crvffffffffffff"),
            NetworkObject("rule", "pods4 of nobody, 1 known"),
        )
        kernel.failures = [OSError(errno.ENOBUFS, "no buffer")]
        with pytest.raises(Unavailable, match="cannot be looked at: no buffer"):
            await network.survey(deadline_s=5)
        await network.close()

    asyncio.run(scenario())


def test_the_pod_cidr_is_for_new_pods_and_outlives_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        network = _network(tmp_path, FakeKernel())
        await network.open()
        old = await network.attach(_attachment("a"), deadline_s=5)
        await network.set_pod_cidr("")
        await network.set_pod_cidr("10.1.2.0/24, fd01::/64")
        assert (await network.attach(_attachment("b"), deadline_s=5)).ips == ("10.1.2.2", "fd01::2")
        await network.close()
        restarted = _network(tmp_path, FakeKernel())
        await restarted.open()
        assert await restarted.attach(_attachment("a"), deadline_s=5) == old
        assert (await restarted.attach(_attachment("c"), deadline_s=5)).ips[0] == "10.1.2.3"
        with pytest.raises(InvalidSpec, match="pod_cidr: 'x' is not a subnet"):
            await restarted.set_pod_cidr("x")
        await restarted.close()

    asyncio.run(scenario())


def test_a_deadline_is_told_as_such(tmp_path: Path) -> None:
    async def scenario() -> None:
        network = _network(tmp_path, FakeKernel())
        await network.open()
        with pytest.raises(TimedOut, match="network of sandbox a was not set up within 0 s"):
            await network.attach(_attachment("a"), deadline_s=0)
        await network.close()

    asyncio.run(scenario())


@dataclass
class SlowKernel(FakeKernel):
    """Its `connect` says when it has begun, waits, and remembers which files the descriptors are."""

    begun: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    files: list[tuple[int, int]] = field(default_factory=list)

    def connect(self, reservation: Reservation, bandwidth: Bandwidth, netns_fd: int, pod_netlink_fd: int) -> str:
        self.begun.set()
        assert self.go_on.wait(30)
        self.files = [(os.fstat(each).st_dev, os.fstat(each).st_ino) for each in (netns_fd, pod_netlink_fd)]
        return super().connect(reservation, bandwidth, netns_fd, pod_netlink_fd)


def _open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_an_attach_that_goes_on_after_its_deadline_never_uses_a_number_that_means_another_file(tmp_path: Path) -> None:
    async def scenario() -> None:
        kernel = SlowKernel()
        network = _network(tmp_path, kernel)
        await network.open()
        before = _open_descriptors()
        files = [os.memfd_create(name) for name in ("netns", "netlink")]
        wanted = [(os.fstat(each).st_dev, os.fstat(each).st_ino) for each in files]
        late = asyncio.ensure_future(
            network.attach(Attachment("a", SANDBOX, "/run/netns/x", files[0], files[1]), deadline_s=60)
        )
        await asyncio.to_thread(kernel.begun.wait, 30)
        late.cancel()
        # one that is cancelled before the thread takes it
        with pytest.raises(TimedOut):
            await network.attach(_attachment("b"), deadline_s=0.01)
        for each in files:
            os.close(each)
        others = [os.memfd_create("of another pod") for _ in files]
        assert set(others) == set(files)
        kernel.go_on.set()
        await network.detach("a", None, deadline_s=30)
        assert kernel.files == wanted
        assert kernel.calls[-2:] == ["connect a", "disconnect a"]
        for each in others:
            os.close(each)
        assert _open_descriptors() == before
        await network.close()

    asyncio.run(scenario())


def test_a_host_address_of_a_family_that_pods_lack_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        network = _network(tmp_path, FakeKernel())
        await network.open()
        sandbox = replace(SANDBOX, port_mappings=(PortMapping("tcp", 80, 80, "::1"),))
        with pytest.raises(InvalidSpec, match="no IPv6 address"):
            await network.attach(_attachment("a", sandbox), deadline_s=5)
        await network.close()

    asyncio.run(scenario())


def test_the_wildcard_of_a_second_pod_in_another_spelling_is_refused_and_the_first_can_leave(tmp_path: Path) -> None:
    async def scenario() -> None:
        network = _network(tmp_path, FakeKernel())
        await network.open()
        first, second = (
            replace(SANDBOX, port_mappings=(PortMapping("tcp", 80, 8080, address),)) for address in ("", "0.0.0.0")
        )
        await network.attach(_attachment("a", first), deadline_s=5)
        with pytest.raises(AlreadyExists, match="is taken by sandbox a"):
            await network.attach(_attachment("b", second), deadline_s=5)
        await network.detach("a", None, deadline_s=5)
        await network.attach(_attachment("b", second), deadline_s=5)
        await network.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["x"], "'x' is not a subnet"),
        (["10.0.0.0/31"], "no room"),
        (["10.0.0.0/24", "10.1.0.0/24"], "second subnet of IPv4"),
        ([], "missing"),
    ],
)
def test_subnets_that_cannot_be_used_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        parse_subnets(texts, "network.bridge.subnets")


@pytest.mark.parametrize("instance", ["default", "other", "a-name-of-an-instance-that-is-long"])
def test_device_names_fit_the_kernel(instance: str) -> None:
    assert len(BridgeNames.of(instance).bridge) <= 15
    assert len(port_name(instance)) <= 15


def test_a_mac_follows_from_the_address_and_is_locally_administered() -> None:
    mac = mac_of(parse_subnets(["10.88.0.0/16"], "x")[0].network_address)
    assert mac == b"\x02\xc5\x0a\x58\0\0"
    assert mac[0] & 0b11 == 0b10
