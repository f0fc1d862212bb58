"""The embedded bridge network: pods in one bridge with addresses, masquerade and host ports, without any plugin.

`BridgeNetwork` is the door's `Network`: it decides and keeps order; `pool.py` remembers, `bridge_kernel.py` acts. All
of it runs in one thread of its own, since the pool syncs a disk. Attach is reserve, then rules, then link; detach is
rules, then link, then release: at each point the record on disk names whatever the kernel may hold.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from crishim.errors import CrishimError, InvalidSpec, Unavailable
from crishim.model.sandbox import PortMapping
from crishim.network.bandwidth import bandwidth_of
from crishim.network.bridge_kernel import BridgeKernel
from crishim.network.deadline import deadline
from crishim.network.door import Attachment, NetworkObject, NetworkResult, Readiness
from crishim.network.host_ports import require_family, validated_ports
from crishim.network.kernel_access import NotReady
from crishim.network.names import BridgeNames, port_name, shaper_name
from crishim.network.pool import AddressPool, Reservation, Subnet, gateway_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

_READY_WAIT_S = 1.0
#: the kernel is asked for our table at most this often; the kubelet asks for Status every 5 s, each run of a pod too
_TABLE_EVERY_S = 3.0
_NOT_OPEN = Readiness(False, "NetworkStarting", "the pod network is not set up yet")


@dataclass(slots=True)
class _Leaving:
    """A sandbox whose detach waits, and what became of it."""

    sandbox_id: str
    error: CrishimError | None = None


class BridgeNetwork:
    """See `Network` for the contract of each method that has no words here."""

    def __init__(
        self,
        instance: str,
        subnets: Sequence[str],
        database: Path,
        *,
        kernel: BridgeKernel | None = None,
    ) -> None:
        """Nothing happens before `open`. `database` is a file in a directory that outlives a reboot.

        `subnets` are at most one of each IP version, the preferred first, used until the kubelet tells its pod CIDR.
        InvalidSpec when they are not understood.
        """
        self._configured = parse_subnets(subnets, "network.bridge.subnets")
        self._database = database
        self._kernel = kernel or BridgeKernel(BridgeNames.of(instance))
        self._pool: AddressPool | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="crishim-network")
        #: what the last setup found; read by the loop's thread, replaced by the other one
        self._readiness = _NOT_OPEN
        #: when the table of rules was there (monotonic)
        self._table_seen_at = -math.inf
        #: detaches that wait for the thread; whichever gets it serves all
        self._leaving: deque[_Leaving] = deque()

    async def open(self) -> None:
        await self._run(self._open)

    async def close(self) -> None:
        await self._run(self._close)
        self._thread.shutdown()

    async def ready(self) -> Readiness:
        """Sets the bridge up again when it was not ready or lost its rules, so that a repaired node needs no restart.

        A disk that hangs must not hang Status, so the answer is the last known one when the thread is busy for long.
        """
        seen_lately = time.monotonic() - self._table_seen_at < _TABLE_EVERY_S
        if seen_lately and self._readiness.ready and self._kernel.is_forwarding():
            return self._readiness
        try:
            return await asyncio.wait_for(self._run(self._look_after), _READY_WAIT_S)
        except TimeoutError:
            return self._readiness

    async def attach(self, attachment: Attachment, *, deadline_s: float) -> NetworkResult:
        ports = validated_ports(attachment.sandbox)
        bandwidth_of(attachment.sandbox.annotations)  # told before anything is made
        # at the deadline the thread goes on, and a later detach waits its turn behind it
        async with deadline(deadline_s, f"the network of sandbox {attachment.sandbox_id} was not set up"):
            return await asyncio.wrap_future(self._submit_attach(attachment, ports))

    async def detach(self, sandbox_id: str, netns_path: str | None, *, deadline_s: float) -> None:
        async with deadline(deadline_s, f"the network of sandbox {sandbox_id} was not removed"):
            leaving = _Leaving(sandbox_id)
            self._leaving.append(leaving)
            await self._run(self._detach_waiting)
            if leaving.error is not None:
                raise leaving.error

    async def check(self, sandbox_id: str, netns_path: str, *, deadline_s: float) -> None:
        async with deadline(deadline_s, f"the network of sandbox {sandbox_id} was not checked"):
            await self._run(lambda: self._check(sandbox_id))

    async def survey(self, *, deadline_s: float) -> tuple[NetworkObject, ...]:
        async with deadline(deadline_s, "the pod network was not looked at"):
            return await self._run(self._survey)

    async def reconcile(self, live_ids: Iterable[str], *, deadline_s: float) -> tuple[str, ...]:
        live = frozenset(live_ids)
        async with deadline(deadline_s, "the leftovers of networks were not removed"):
            return await self._run(lambda: self._reconcile(live))

    async def set_pod_cidr(self, pod_cidr: str) -> None:
        texts = [text.strip() for text in pod_cidr.split(",") if text.strip()]
        if texts:
            subnets = parse_subnets(texts, "pod_cidr")
            await self._run(lambda: self._set_pod_cidr(subnets))

    async def teardown(self) -> None:
        """Removes the instance from the kernel, for the end of a node or of a test. The pool's file stays."""
        await self._run(self._kernel.teardown)

    def _submit_attach(self, attachment: Attachment, ports: tuple[PortMapping, ...]) -> Future[NetworkResult]:
        """With descriptors of its own: the caller closes its own at the deadline, and the numbers get a new meaning."""
        copies = ExitStack()
        try:
            netns_fd = _duplicate(attachment.netns_fd, copies)
            netlink_fd = _duplicate(attachment.pod_netlink_fd, copies)
            own = replace(attachment, netns_fd=netns_fd, pod_netlink_fd=netlink_fd)
            future = self._thread.submit(self._attach, own, ports)
        except OSError as error:
            copies.close()
            what = f"the network of sandbox {attachment.sandbox_id} cannot be set up: {error.strerror}"
            raise Unavailable(what) from error
        except BaseException:
            copies.close()
            raise
        # also called when it is cancelled before its turn
        future.add_done_callback(lambda _: copies.close())
        return future

    # -- in the thread

    def _open(self) -> None:
        self._pool = AddressPool(self._database)
        self._setup()

    def _close(self) -> None:
        self._kernel.close()
        if self._pool is not None:
            self._pool.close()
        self._pool, self._readiness = None, _NOT_OPEN

    def _setup(self) -> None:
        pool = self._opened()
        try:
            warning = self._kernel.ensure(self._subnets(), pool.list())
        except NotReady as error:
            readiness = error.readiness
        except OSError as error:
            readiness = Readiness(False, "BridgeFailed", f"the bridge cannot be set up: {error.strerror}")
        except CrishimError as error:
            readiness = Readiness(False, "AddressPoolFailed", str(error))
        else:
            readiness = Readiness(True, message=warning)
            self._table_seen_at = time.monotonic()
        if readiness != self._readiness and readiness.message:
            logger.warning("pod network: %s", readiness.message)
        self._readiness = readiness

    def _refresh(self) -> Readiness:
        if self._pool is not None and not (self._readiness.ready and self._kernel.is_forwarding()):
            self._setup()
        return self._readiness

    def _look_after(self) -> Readiness:
        """`_refresh`, and the rules are made again when somebody deleted them: nothing else tells of it."""
        if not self._refresh().ready or time.monotonic() - self._table_seen_at < _TABLE_EVERY_S:
            return self._readiness
        try:
            present = self._kernel.has_table()
        except OSError as error:
            logger.warning("the nftables rules of pods cannot be looked at: %s", error.strerror)
            present = False
        if present:
            self._table_seen_at = time.monotonic()
        else:
            logger.warning("the nftables rules of pods were deleted; they are made again")
            self._setup()
        return self._readiness

    def _attach(self, attachment: Attachment, ports: tuple[PortMapping, ...]) -> NetworkResult:
        pool = self._opened()
        if not self._refresh().ready:
            raise Unavailable(self._readiness.message)
        subnets = self._subnets()
        require_family(ports, subnets)
        reservation = pool.reserve(attachment.sandbox_id, subnets, ports)
        try:
            mac = self._connect(reservation, attachment)
        except Exception as error:
            self._undo(attachment.sandbox_id, error)
            if isinstance(error, OSError):
                what = f"the network of sandbox {attachment.sandbox_id} cannot be set up: {error.strerror}"
                raise Unavailable(what) from error
            raise
        return NetworkResult(
            ips=tuple(str(ip) for ip in reservation.ips),
            mac=mac,
            gateways=tuple(str(gateway_of(each.network)) for each in reservation.interfaces),
        )

    def _connect(self, reservation: Reservation, attachment: Attachment) -> str:
        bandwidth = bandwidth_of(attachment.sandbox.annotations)
        try:
            return self._kernel.connect(reservation, bandwidth, attachment.netns_fd, attachment.pod_netlink_fd)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EINVAL):
                raise
            # somebody deleted the table or the bridge, as a reload of a firewall does
            self._setup()
            if not self._readiness.ready:
                raise Unavailable(self._readiness.message) from error
            return self._kernel.connect(reservation, bandwidth, attachment.netns_fd, attachment.pod_netlink_fd)

    def _undo(self, sandbox_id: str, error: BaseException) -> None:
        try:
            self._detach([sandbox_id])
        except CrishimError as another:
            error.add_note(f"and it was not undone: {another}")

    def _detach_waiting(self) -> None:
        """Everybody who waits, together; who came too late for this turn has a turn of their own."""
        waiting = []
        while self._leaving:
            waiting.append(self._leaving.popleft())
        failed = self._detach_each([each.sandbox_id for each in waiting])
        for each in waiting:
            each.error = failed.get(each.sandbox_id)

    def _detach_each(self, sandbox_ids: Sequence[str]) -> dict[str, CrishimError]:
        """Errors by sandbox: when all together fail, one by one tells which."""
        failed: dict[str, CrishimError] = {}
        if len(sandbox_ids) > 1:
            try:
                self._detach(sandbox_ids)
                return failed
            except CrishimError:
                pass
        for sandbox_id in sandbox_ids:
            try:
                self._detach([sandbox_id])
            except CrishimError as error:
                failed[sandbox_id] = error
        return failed

    def _detach(self, sandbox_ids: Sequence[str]) -> None:
        pool = self._opened()
        held = pool.find_all(sandbox_ids)
        try:
            self._kernel.disconnect(sandbox_ids, held)
        except OSError as error:
            which = ", ".join(sandbox_ids)
            raise Unavailable(f"the network of sandbox {which} cannot be removed: {error.strerror}") from error
        pool.release(*sandbox_ids)

    def _check(self, sandbox_id: str) -> None:
        reservation = self._opened().find(sandbox_id)
        if reservation is None:
            raise Unavailable(f"sandbox {sandbox_id} has no address")
        try:
            connected = self._kernel.is_connected(reservation)
        except OSError as error:
            raise Unavailable(f"the network of sandbox {sandbox_id} cannot be checked: {error.strerror}") from error
        if not connected:
            raise Unavailable(f"the network of sandbox {sandbox_id} lost its link or its rules")

    def _survey(self) -> tuple[NetworkObject, ...]:
        held = self._opened().list()
        owners = {name(each.sandbox_id): each.sandbox_id for each in held for name in (port_name, shaper_name)}
        found = [NetworkObject("address", str(ip), each.sandbox_id) for each in held for ip in each.ips]
        try:
            found += [NetworkObject("device", name, owners.get(name, "")) for name in self._kernel.devices()]
            found += [NetworkObject("rule", name) for name in self._kernel.unknown_rules(held)]
        except OSError as error:
            raise Unavailable(f"the pod network cannot be looked at: {error.strerror}") from error
        return tuple(found)

    def _reconcile(self, live: frozenset[str]) -> tuple[str, ...]:
        pool = self._opened()
        failed = self._detach_each([each.sandbox_id for each in pool.list() if each.sandbox_id not in live])
        for error in failed.values():
            logger.warning("%s", error)
        self._setup()
        if self._readiness.ready:
            self._kernel.remove_strays({each.sandbox_id for each in pool.list()})
        return tuple(failed)

    def _set_pod_cidr(self, subnets: tuple[Subnet, ...]) -> None:
        pool = self._opened()
        if pool.pod_cidr() != subnets:
            pool.set_pod_cidr(subnets)
            self._setup()

    def _subnets(self) -> tuple[Subnet, ...]:
        return self._opened().pod_cidr() or self._configured

    def _opened(self) -> AddressPool:
        if self._pool is None:
            raise Unavailable(_NOT_OPEN.message)
        return self._pool

    async def _run(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


def _duplicate(descriptor: int, owner: ExitStack) -> int:
    copy = os.dup(descriptor)
    owner.callback(os.close, copy)
    return copy


def parse_subnets(texts: Sequence[str], field: str) -> tuple[Subnet, ...]:
    """At least one, and at most one of each IP version; host bits are cut off. InvalidSpec names the field."""
    subnets: list[Subnet] = []
    for text in texts:
        try:
            subnet = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise InvalidSpec(f"{field}: {text!r} is not a subnet such as 10.88.0.0/16") from None
        if subnet.max_prefixlen - subnet.prefixlen < 2:
            raise InvalidSpec(f"{field}: {text!r} has no room for a bridge and a pod")
        if any(each.version == subnet.version for each in subnets):
            raise InvalidSpec(f"{field}: {text!r} is a second subnet of IPv{subnet.version}")
        subnets.append(subnet)
    if not subnets:
        raise InvalidSpec(f"{field}: a subnet is missing")
    return tuple(subnets)
