"""How much each container has written into its root: counted now and then by a child that can be killed.

Containers are asked for in batches. A batch that does not come back in time is tried in halves, and one container that
hangs by itself is left alone for a while, so it costs the others nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from crishim.errors import CrishimError
from crishim.images.rootfs import RootFsStore
from crishim.model.image import FilesystemUsage
from crishim.runtime.executor import Executor

logger = logging.getLogger(__name__)

#: name of the role that counts; `app/serve.py` gives it to the zygote
COUNT_ROLE = "count_layers"
#: entries that are counted of one container; one with more is shown with these
_MAX_ENTRIES = 100_000
_BATCH = 256
#: the child stops by itself after the first, and is killed after the second
_COUNT_MS, _KILL_S = 1000, 3.0
#: a count is good for this long
_AT_LEAST_S = 9.0
_REST_AFTER_HANG_S = 600.0


@dataclass(frozen=True, slots=True)
class _Count:
    #: None when the layer could not be counted
    usage: FilesystemUsage | None
    due_s: float


class WritableLayers:
    """Usage of writable layers by container id, remembered between counts."""

    def __init__(self, rootfs: RootFsStore, executor: Executor, mountpoint: str) -> None:
        """mountpoint: a path that statfs(2) takes, shown as the file system of the layers."""
        self._rootfs = rootfs
        self._executor = executor
        self._mountpoint = mountpoint
        self._counts: dict[str, _Count] = {}
        self._batch = _BATCH
        self._counting = asyncio.Lock()

    def usage(self, container_id: str) -> FilesystemUsage | None:
        """The last count; None when there is none yet, or the layer cannot be counted."""
        known = self._counts.get(container_id)
        return None if known is None else known.usage

    async def refresh(self, container_ids: Sequence[str]) -> None:
        """Count again what is due; what hangs is given up after a few seconds."""
        async with self._counting:
            now = time.monotonic()
            due = [each for each in container_ids if each not in self._counts or self._counts[each].due_s <= now]
            while due and time.monotonic() < now + _KILL_S:
                batch, due = due[: self._batch], due[self._batch :]
                await self._count(batch)

    def forget(self, container_id: str) -> None:
        """A container is gone."""
        self._counts.pop(container_id, None)

    async def _count(self, batch: Sequence[str]) -> None:
        layers = [os.fsencode(self._rootfs.path(each) / "upper") for each in batch]
        volumes = [os.fsencode(self._rootfs.volumes(each)) for each in batch]  # most have none, and count as nothing
        paths = [path for both in zip(layers, volumes) for path in both]
        request = {"paths": paths, "max_entries": _MAX_ENTRIES, "milliseconds": _COUNT_MS}
        began = time.monotonic()
        try:
            answer = await self._executor.run_role(COUNT_ROLE, request, timeout_s=_KILL_S)
        except CrishimError as error:
            self._failed(batch, error)
            return
        self._batch = min(self._batch * 2, _BATCH)
        counts = answer["counts"]
        assert isinstance(counts, list)
        took = time.monotonic() - began
        for container_id, layer, volume in zip(batch, counts[::2], counts[1::2]):
            usage = None
            if layer is not None:
                used, inodes = (sum(parts) for parts in zip(layer, volume or (0, 0)))
                usage = FilesystemUsage(self._mountpoint, used, inodes, time.time_ns())
            # many files: at most a fiftieth of the time goes into counting
            self._counts[container_id] = _Count(usage, began + max(_AT_LEAST_S, took * 50))

    def _failed(self, batch: Sequence[str], error: CrishimError) -> None:
        self._batch = max(1, len(batch) // 2)
        if len(batch) == 1:
            logger.warning("the writable layer of container %s cannot be counted: %s", batch[0], error)
            self._counts[batch[0]] = _Count(self.usage(batch[0]), time.monotonic() + _REST_AFTER_HANG_S)
