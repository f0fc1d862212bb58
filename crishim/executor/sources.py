"""The role that looks at the sources of bind mounts: a process of its own, since a dead file server may hold it.

A thread of the server would do harm there: whoever looks up the same name waits for it, and cannot be killed.
"""

from __future__ import annotations

import os


def look_at_sources(request: dict[str, object], descriptors: list[int]) -> dict[str, object]:
    """Of "paths" (bytes): "missing" are the positions of those that are not there, "astray" of links among them."""
    paths = request["paths"]
    assert isinstance(paths, list)
    missing = [index for index, path in enumerate(paths) if not os.path.exists(path)]
    return {"missing": missing, "astray": [index for index in missing if os.path.islink(paths[index])]}
