"""Sandboxes that are reserved and nothing more: their run or their removal was cut, and is taken back here.

A server that starts finds those of the one before it; a server that runs finds those whose last steps failed after the
kubelet had its answer. What cannot be taken back becomes NOTREADY, so that the kubelet stops and removes it again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable

from crishim.errors import CrishimError, Unavailable
from crishim.model.sandbox import Sandbox, SandboxConfig, SandboxState
from crishim.network.door import Network
from crishim.runtime.answers import end_listener, end_monitor
from crishim.runtime.helper import Helper
from crishim.runtime.live import Live
from crishim.runtime.places import Places
from crishim.runtime.removal import Removal
from crishim.runtime.settings import Settings
from crishim.spec.cgroup import known_pod_cgroup
from crishim.store import codec
from crishim.store.durable import DurableStore, SandboxReservation
from crishim.store.store import Store

logger = logging.getLogger(__name__)


class TakeBack:
    """Undoes reservations."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        durable: DurableStore,
        network: Network,
        live: Live,
        places: Places,
        removal: Removal,
        helper: Helper,
    ) -> None:
        self._settings = settings
        self._store = store
        self._durable = durable
        self._network = network
        self._live = live
        self._places = places
        self._removal = removal
        self._helper = helper

    async def undo(self, reservation: SandboxReservation) -> None:
        """Take back a run that was cut, finish a removal, or end the network of a pod of another boot.

        Unavailable when something stays; the sandbox is in the store then.
        """
        sandbox_id = reservation.id
        problems: list[str] = []

        async def attempt(what: str, work: Awaitable[object]) -> None:
            try:
                await work
            except (CrishimError, OSError) as error:
                logger.warning("%s of sandbox %s could not be taken back: %s", what, sandbox_id, error)
                problems.append(f"{what} could not be taken back: {error}")

        if reservation.netns_path is not None:
            present = reservation.netns_path if os.path.exists(reservation.netns_path) else None
            deadline_s = self._settings.network_deadline_s
            await attempt("the network", self._network.detach(sandbox_id, present, deadline_s=deadline_s))
        await attempt("the monitor", self._end_monitor(sandbox_id))
        await attempt("the namespace", self._removal.remove_pin(reservation.netns_path))
        config = config_of(reservation)
        path = known_pod_cgroup(
            config.cgroup_parent, self._settings.cgroup_root, sandbox_id, self._settings.cgroup_driver
        )
        if not config.cgroup_parent or self._places.owns_cgroup(sandbox_id):
            await attempt("the cgroup", self._removal.end_cgroup(f"sandbox {sandbox_id}", path))
        if not problems:
            await attempt("the directory", self._helper.run(self._places.remove_sandbox, sandbox_id))
        if not problems:
            await self._durable.release_sandbox(sandbox_id)
            logger.info("sandbox %s was taken back: its run or its removal had been cut", sandbox_id)
            return
        self._places.make_sandbox(sandbox_id)
        self._store.put_sandbox(
            Sandbox(
                id=sandbox_id,
                config=config,
                state=SandboxState.NOTREADY,
                created_at_ns=1,
                netns_path=reservation.netns_path,
                cgroup_path=path,
                reason="NotTakenBack",
            )
        )
        raise Unavailable("; ".join(problems))

    async def _end_monitor(self, sandbox_id: str) -> None:
        monitor = self._live.find_monitor(sandbox_id)
        if monitor is None:
            await end_listener(self._places.sandbox(sandbox_id))
            return
        try:
            await end_monitor(monitor)
        finally:
            self._live.drop_monitor(sandbox_id)


def config_of(reservation: SandboxReservation) -> SandboxConfig:
    """The configuration as it was asked for; one that is not understood any more is replaced by its identity."""
    try:
        return codec.from_bytes(SandboxConfig, reservation.config)
    except codec.DecodeError:
        return SandboxConfig(reservation.name, reservation.uid, reservation.namespace, reservation.attempt)
