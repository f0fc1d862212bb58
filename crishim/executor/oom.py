"""How many processes of a container the kernel killed for memory, also when its cgroup is gone before it is asked.

systemd removes a scope at the moment its last process ends, so it may be faster than the monitor that reads the
counter. The pod's counter, which has those of all its containers in it, still tells: what nobody else accounts for.
"""

from __future__ import annotations

from crishim.cgroups import effects
from crishim.cgroups.hierarchy import Hierarchy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from crishim.executor.init import InitProcess


class OomKills:
    """Of one pod's containers."""

    __slots__ = ("_before", "_hierarchy", "_told")

    def __init__(self, hierarchy: Hierarchy) -> None:
        self._hierarchy = hierarchy
        #: of the pod's cgroup when the present containers began to start: it may be older than this pod
        self._before = 0
        #: of containers that ended since
        self._told = 0

    def starting(self, cgroup: str, running: Iterable[InitProcess]) -> None:
        """A container is about to start beside those that run."""
        if cgroup.endswith(".scope") and not any(running):
            self._before, self._told = self._read(_pod(cgroup)), 0

    def of(self, init: InitProcess, running: Iterable[InitProcess]) -> int:
        """Kills in a container that has ended; `running` are the others that have not."""
        kills = self._read(init.cgroup)
        if not kills and init.cgroup.endswith(".scope"):
            others = sum(self._read(other.cgroup) for other in running)
            kills = max(self._read(_pod(init.cgroup)) - self._before - self._told - others, 0)
        self._told += kills
        return kills

    def _read(self, cgroup: str) -> int:
        try:
            return effects.oom_kills(self._hierarchy, cgroup)
        except OSError:
            return 0


def _pod(cgroup: str) -> str:
    return cgroup.rpartition("/")[0]
