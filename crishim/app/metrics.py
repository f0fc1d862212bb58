"""What happens to processes, brought to both kinds of series: those of the node and those of each container."""

from __future__ import annotations

from collections.abc import Mapping

from crishim.cgroups.stats import Stats
from crishim.metrics.containers import ContainerMetrics, SeriesSample
from crishim.metrics.node import NodeMetrics


class Metrics:
    """The observer of the use cases."""

    def __init__(self, node: NodeMetrics, containers: ContainerMetrics) -> None:
        self._node = node
        self._containers = containers

    def process_started(self, kind: str, phases: Mapping[str, float]) -> None:
        """A process passed execve(2)."""
        self._node.process_started(kind, phases)

    def process_start_failed(self, kind: str, outcome: str) -> None:
        """A process never ran."""
        self._node.process_start_failed(kind, outcome)

    def process_exited(self, reason: str) -> None:
        """An init process ended."""
        self._node.process_exited(reason)

    def signal_sent(self, signal: str, sender: str) -> None:
        """We sent a signal."""
        self._node.signal_sent(signal, sender)

    def oom_killed(self, container_id: str, count: int) -> None:
        """The kernel killed processes for want of memory."""
        self._node.oom_killed(count)
        self._containers.oom_killed(container_id, count)

    def exec_ended(self, container_id: str, outcome: str, seconds: float) -> None:
        """An exec is over."""
        self._node.exec_ended(outcome, seconds)
        self._containers.exec_ended(container_id, "failed" if outcome == "nonzero" else outcome, seconds)

    def pull_ended(self, outcome: str, seconds: float, fetched_bytes: int) -> None:
        """An image pull is over."""
        self._node.pull_ended(outcome, seconds, fetched_bytes)

    def log_bytes_were_lost(self, container_id: str, count: int) -> None:
        """Output was dropped."""
        self._node.log_bytes_were_lost(count)
        self._containers.log_bytes_were_lost(container_id, count)

    def leftover_freed(self, kind: str) -> None:
        """Something that belonged to nobody is gone."""
        self._node.leftover_freed(kind)

    def leftover_failed(self, kind: str) -> None:
        """Something could not be freed."""
        self._node.leftover_failed(kind)

    def leftovers_looked_for(self, seconds: float) -> None:
        """The node was looked at."""
        self._node.leftovers_looked_for(seconds)

    def sampled(self, container_id: str, raw: Stats) -> None:
        """A container's cgroup was read."""
        self._containers.sampled(
            container_id,
            SeriesSample(
                cpu_usage_seconds_total=None if raw.cpu_usage_ns is None else raw.cpu_usage_ns / 1e9,
                memory_working_set_bytes=raw.working_set_bytes,
                memory_usage_bytes=raw.usage_bytes,
                memory_limit_bytes=raw.memory_limit_bytes,
                pids=raw.pids_current,
            ),
        )

    def render(self) -> bytes:
        """The page."""
        return self._node.render() + self._containers.render()
