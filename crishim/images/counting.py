"""The role that counts what containers wrote: directories whose contents are hostile, so in a child that can be killed.

A container decides how many files there are and how deep, and its disk may hang. The count is bounded here in entries
and in time, and by the caller's deadline from outside.
"""

from __future__ import annotations

import os
import time

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
    used = inodes = 0
    try:
        for _, directories, files, fd in os.fwalk(top, follow_symlinks=False):
            for name in (*directories, *files):
                try:
                    used += os.stat(name, dir_fd=fd, follow_symlinks=False).st_blocks * 512
                except OSError:
                    continue  # it went away, or the disk cannot read it: the rest still counts
                inodes += 1
                if inodes >= max_entries or (inodes % _CHECK_EVERY == 0 and time.monotonic() > deadline):
                    return [used, inodes]
    except OSError:
        return None
    return [used, inodes]
