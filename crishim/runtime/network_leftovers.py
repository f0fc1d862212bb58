"""Networks of sandboxes that are gone, now and then: what a start could not remove, and what plugins ask to collect.

The start of the server does the same once (`recovery.py`); a plugin that failed then, or one whose daemon was away,
gets its next attempt here. Reconciling also makes the devices and rules of the bridge again as they should be.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Protocol

from crishim.errors import CrishimError
from crishim.runtime.places import Places
from crishim.store.store import Store

logger = logging.getLogger(__name__)

#: after the start, when the daemons of plugins have had time to come up too
_FIRST_S = 300.0
_EVERY_S = 3600.0
#: of one run; many leftovers go one by one
_DEADLINE_S = 300.0


class Reconciles(Protocol):
    """The part of `network.door.Network` that is used here."""

    async def reconcile(self, live_ids: Iterable[str], *, deadline_s: float) -> tuple[str, ...]:
        """See there."""
        ...


class NetworkLeftovers:
    """Removes them for as long as the server runs."""

    def __init__(
        self, store: Store, places: Places, network: Reconciles, *, first_s: float = _FIRST_S, every_s: float = _EVERY_S
    ) -> None:
        self._store = store
        self._places = places
        self._network = network
        self._first_s = first_s
        self._every_s = every_s

    async def run(self) -> None:
        """Never ends; `Operations.spawn` is its caller."""
        await asyncio.sleep(self._first_s)
        while True:
            await self.remove()
            await asyncio.sleep(self._every_s)

    async def remove(self) -> None:
        """Once. What fails is logged and tried again at the next time."""
        try:
            left = await self._network.reconcile(self._live_ids(), deadline_s=_DEADLINE_S)
        except CrishimError as error:
            logger.warning("what is left of earlier pod networks cannot be removed, it is tried again: %s", error)
            return
        for sandbox_id in left:
            logger.warning("the network of sandbox %s could not be removed; it is tried again later", sandbox_id)

    def _live_ids(self) -> set[str]:
        """Found without waiting, and the network looks at its records before anybody else has a turn.

        A sandbox that is being run is not in the store yet, but its directory is there from before its attach until
        after its detach.
        """
        known = {sandbox.id for sandbox in self._store.list_sandboxes()}
        return known | {directory.name for directory in self._places.sandboxes.glob("*/")}
