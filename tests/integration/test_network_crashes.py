"""A server that dies between any two exchanges of the embedded bridge network with the kernel."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from crishim.model.sandbox import PortMapping
from crishim.network import netlink_socket
from crishim.network.bridge import BridgeNetwork
from crishim.network.bridge_kernel import BridgeKernel
from crishim.network.names import BridgeNames
from tests.support.bridge import SUBNETS, attachment, link_names, pods_in_rules, ports_in_rules
from tests.support.netns import Netns, in_new_netns

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


class Crash(BaseException):
    """The server dies here: no undo runs."""


class DyingSocket(netlink_socket.NetlinkSocket):
    """Dies before or after its n-th exchange of any socket."""

    left = 0
    after = False

    def _die(self, request: Callable[[], None]) -> None:
        DyingSocket.left -= 1
        if DyingSocket.left == 0 and not self.after:
            raise Crash
        request()
        if DyingSocket.left == 0:
            raise Crash

    def request(self, requests: Any, tolerate: Any = ()) -> None:
        self._die(lambda: super(DyingSocket, self).request(requests, tolerate))

    def transact(self, begin: Any, requests: Any, end: Any) -> None:
        self._die(lambda: super(DyingSocket, self).transact(begin, requests, end))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("operation", ["attach", "detach"])
@in_new_netns
def test_a_crash_at_any_exchange_with_the_kernel_leaves_nothing_after_reconcile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, after: bool
) -> None:
    """Each exchange of an attach or a detach is hit once; then a new server reconciles, or attaches again."""
    port = PortMapping("udp", 53, 53)
    crashes = 0
    while _crash_and_recover(tmp_path, monkeypatch, operation, crashes + 1, after, port):
        crashes += 1
    # rules, link with hairpin mode, four of its shape, and the pod's own configuration; or rules and two of links
    assert crashes >= (7 if operation == "attach" else 3)
    assert link_names() == {"lo"}


def _crash_and_recover(
    directory: Path, monkeypatch: pytest.MonkeyPatch, operation: str, step: int, after: bool, port: PortMapping
) -> bool:
    """Whether the crash happened: False when the operation has fewer exchanges."""
    database = directory / f"{operation}-{step}-{after}.db"

    async def before(pod: Netns) -> bool:
        network = BridgeNetwork("default", SUBNETS, database)
        await network.open()
        if operation == "detach":
            await network.attach(attachment("dying", pod, port, ingress="1G", egress="1G"), deadline_s=5)
        await network.close()
        with monkeypatch.context() as patch:
            for module in ("bridge_kernel", "kernel_access"):
                patch.setattr(f"crishim.network.{module}.NetlinkSocket", DyingSocket)
            dying = BridgeNetwork("default", SUBNETS, database)
            DyingSocket.left, DyingSocket.after = 0, after
            await dying.open()
            DyingSocket.left = step
            try:
                if operation == "attach":
                    await dying.attach(attachment("dying", pod, port, ingress="1G", egress="1G"), deadline_s=5)
                else:
                    await dying.detach("dying", None, deadline_s=5)
                return False
            except Crash:
                return True
            finally:
                DyingSocket.left = 0
                await dying.close()

    async def recover(pod: Netns) -> None:
        network = BridgeNetwork("default", SUBNETS, database)
        await network.open()
        if step % 2:
            # a retry of the same sandbox meets what is left of it
            await network.attach(attachment("dying", pod, port, ingress="1G", egress="1G"), deadline_s=5)
            await network.check("dying", pod.path, deadline_s=5)
        assert await network.reconcile((), deadline_s=5) == ()
        assert (link_names(), pods_in_rules(), ports_in_rules()) == ({"lo", "crishim0"}, [], 0)
        await network.attach(attachment("next", pod, port), deadline_s=5)
        await network.detach("next", None, deadline_s=5)
        await network.teardown()
        await network.close()

    with ExitStack() as stack:
        pod = stack.enter_context(Netns())
        crashed = asyncio.run(before(pod))
        asyncio.run(recover(pod))
        return crashed


@in_new_netns
def test_after_a_reboot_everything_is_there_again_but_the_pods(tmp_path: Path) -> None:
    database = tmp_path / "network.db"

    async def life(attach: bool) -> None:
        network = BridgeNetwork("default", SUBNETS, database)
        await network.open()
        if attach:
            with Netns() as pod:
                await network.attach(attachment("a", pod), deadline_s=5)
        else:
            await network.detach("a", None, deadline_s=5)
            assert (await network.ready()).ready
            assert pods_in_rules() == []
            await network.teardown()
        await network.close()

    asyncio.run(life(attach=True))
    in_new_netns(lambda: asyncio.run(life(attach=False)))()
    kernel = BridgeKernel(BridgeNames.of("default"))
    kernel.teardown()
    kernel.close()
    assert link_names() == {"lo"}
