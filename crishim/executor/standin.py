"""A process that does nothing: it stands in a new cgroup until a container is born there. A role of the zygote's."""

from __future__ import annotations

from _signal import pause


def hold(request: dict[str, object], fds: list[int]) -> dict[str, object]:
    """Until it is killed: by who asked for it, or with the zygote."""
    while True:
        pause()
