"""How much a container has written into its root: counted now and then, never for long. Blocking.

A container decides how many files there are, so a count stops at a bound and costs at most a small share of the time.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from crishim.images.rootfs import RootFsStore
from crishim.model.image import FilesystemUsage

#: entries that are counted; a container with more is shown with these
_MAX_ENTRIES = 100_000
#: a count that took a second is not repeated for so many
_REST = 50
_AT_LEAST_S = 9.0


@dataclass(frozen=True, slots=True)
class _Count:
    usage: FilesystemUsage
    at_s: float
    took_s: float


class WritableLayers:
    """Usage of writable layers by container id, remembered between counts."""

    def __init__(self, rootfs: RootFsStore, mountpoint: str) -> None:
        """mountpoint: a path that statfs(2) takes, shown as the file system of the layers."""
        self._rootfs = rootfs
        self._mountpoint = mountpoint
        self._counts: dict[str, _Count] = {}

    def usage(self, container_id: str) -> FilesystemUsage | None:
        """The last count, or a new one when it is time; None when the layer is gone."""
        known = self._counts.get(container_id)
        now = time.monotonic()
        if known is not None and now - known.at_s < max(_AT_LEAST_S, known.took_s * _REST):
            return known.usage
        try:
            used_bytes, inodes = _count(str(self._rootfs.path(container_id) / "upper"))
        except OSError:
            return None
        usage = FilesystemUsage(self._mountpoint, used_bytes, inodes, time.time_ns())
        self._counts[container_id] = _Count(usage, now, time.monotonic() - now)
        return usage

    def forget(self, container_id: str) -> None:
        """A container is gone."""
        self._counts.pop(container_id, None)


def _count(top: str) -> tuple[int, int]:
    """(bytes on disk, inodes) below a directory, by descriptors, so that no link put there meanwhile is followed."""
    used = inodes = 0
    for _, directories, files, fd in os.fwalk(top, follow_symlinks=False):
        for name in (*directories, *files):
            try:
                used += os.stat(name, dir_fd=fd, follow_symlinks=False).st_blocks * 512
            except FileNotFoundError:
                continue
            inodes += 1
        if inodes >= _MAX_ENTRIES:
            break
    return used, inodes
