"""The role that counts what containers wrote: directories whose contents are hostile, so in a child that can be killed.

A container decides how many files there are and how deep, and its disk may hang. The count is bounded here in entries
and in time, and by the caller's deadline from outside.
"""

from __future__ import annotations

import os
import time

from crishim.images.trees import DIRECTORY, enter

_CHECK_EVERY = 512


def count_layers(request: dict[str, object], descriptors: list[int]) -> dict[str, object]:
    """Bytes on disk and inodes below each of "paths" (bytes); "max_entries" bounds each, "milliseconds" all of them.

    Reply: "counts" has [bytes, inodes] in the order of the paths, None for one that is gone or was not reached. What
    was counted when a bound was met is told as it is: too little, never too much. Links are not followed.
    """
    paths, max_entries, time_ms = request["paths"], request["max_entries"], request["milliseconds"]
    assert isinstance(paths, list) and isinstance(max_entries, int) and isinstance(time_ms, int)
    deadline = time.monotonic() + time_ms / 1000
    counts: list[list[int] | None] = []
    for path in paths:
        counts.append(_count(path, max_entries, deadline) if time.monotonic() < deadline else None)
    return {"counts": counts}


def _count(top: bytes, max_entries: int, deadline: float) -> list[int] | None:
    try:
        current = os.open(top, DIRECTORY)
    except OSError:
        return None
    count = _Count(max_entries, deadline)
    try:
        device = os.fstat(current).st_dev
        #: for each directory above: its inode and its other directories still to be counted
        way: list[tuple[int, list[str]]] = []
        pending = count.add(current)
        while not count.over and (pending or way):
            inode = os.fstat(current).st_ino
            if pending:
                name = pending.pop()
                try:
                    current = enter(current, name, device, None)
                except OSError:
                    continue  # it went away, or something is mounted on it
                way.append((inode, pending))
                pending = count.add(current)
            else:
                inode, pending = way.pop()
                current = enter(current, "..", device, inode)
    except OSError:
        pass  # moved while we were in it: what was counted so far is told
    finally:
        os.close(current)
    return [count.used, count.inodes]


class _Count:
    """What was counted, and whether a bound was met."""

    def __init__(self, max_entries: int, deadline: float) -> None:
        self.used = 0
        self.inodes = 0
        self.over = False
        self._max_entries = max_entries
        self._deadline = deadline

    def add(self, directory: int) -> list[str]:
        """Count the entries of a directory, and return the names of its directories."""
        directories: list[str] = []
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    self._add_entry(directory, entry, directories)
                    if self.over:
                        break
        except OSError:
            pass  # the disk cannot read it: the rest still counts
        return directories

    def _add_entry(self, directory: int, entry: os.DirEntry[str], directories: list[str]) -> None:
        try:
            self.used += os.stat(entry.name, dir_fd=directory, follow_symlinks=False).st_blocks * 512
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.name)
        except OSError:
            return  # it went away
        self.inodes += 1
        late = self.inodes % _CHECK_EVERY == 0 and time.monotonic() > self._deadline
        self.over = late or self.inodes >= self._max_entries
