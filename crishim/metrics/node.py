"""Series of the node: each method is an event in the past tense, its labels are words from small fixed sets.

The registry is our own, so nothing of the process or of other libraries gets onto the page by itself. What belongs to
one container is in `containers.py`: labels of containers here would stay when the containers go.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest

_FAST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_PULL_S = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

#: (stage, age in seconds) of each operation under way
InFlight = Callable[[], Iterable[tuple[str, float]]]
#: how many things of each kind were found that belong to nobody, or that somebody lacks
Leftovers = Callable[[], Mapping[str, int]]


class NodeMetrics:
    """Counters and histograms of one server. Cheap to call from the event loop; `render` may run in another thread."""

    def __init__(self, version: str, in_flight: InFlight, leftovers: Leftovers = dict) -> None:
        """`in_flight` and `leftovers` are asked at each scrape, in the thread of the scrape."""
        # Else each counter has a gauge that says when it was made: twice the page for nothing.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry(auto_describe=False)
        self._starts = self._counter("process_starts", "Processes started, or failed to start.", "kind", "outcome")
        self._phases = self._histogram(
            "start_phase_seconds", "Time of each phase of a container's start.", _FAST_S, "phase"
        )
        self._exits = self._counter("process_exits", "Init processes that ended, by the reason told to CRI.", "reason")
        self._signals = self._counter("signals_sent", "Signals sent to processes.", "signal", "sender")
        self._ooms = self._counter("oom_kills", "Processes killed by the kernel for want of memory.")
        self._execs = self._histogram("exec_seconds", "Duration of exec processes.", _FAST_S, "outcome")
        self._rpcs = self._histogram("rpc_seconds", "Duration of CRI calls.", _FAST_S, "method", "code")
        self._pulls = self._histogram("pull_seconds", "Duration of image pulls.", _PULL_S, "outcome")
        self._pulled = self._counter("pulled_bytes", "Bytes of images fetched from registries.")
        self._log_bytes_lost = self._counter("log_bytes_lost", "Bytes of output that no log file took.")
        self._freed = self._counter("leftovers_freed", "Things that belonged to nobody and were freed.", "kind")
        self._unfreed = self._counter("leftover_failures", "Attempts to free something that failed.", "kind")
        self._looks = self._histogram("leftover_check_seconds", "Duration of a look for leftovers.", _FAST_S)
        build = self._gauge("build_info", "Version of crishim and of its Python; always 1.", ["version", "python"])
        build.add_metric([version, platform.python_version()], 1)
        self._build = build
        self._in_flight = in_flight
        self._leftovers = leftovers
        self.registry.register(_Asked(self._ask))

    def process_started(self, kind: str, phases: Mapping[str, float]) -> None:
        """A process passed execve(2). kind is "init" or "exec"; phases maps a phase's name to its seconds."""
        self._starts.labels(kind, "started").inc()
        for phase, seconds in phases.items():
            self._phases.labels(phase).observe(seconds)

    def process_start_failed(self, kind: str, outcome: str) -> None:
        """A process never ran; outcome is a word such as "not_found", "denied" or "error"."""
        self._starts.labels(kind, outcome).inc()

    def process_exited(self, reason: str) -> None:
        """An init process ended; reason as in ContainerStatus ("Completed", "Error", "OOMKilled", ...)."""
        self._exits.labels(reason).inc()

    def signal_sent(self, signal: str, sender: str) -> None:
        """signal is a name ("SIGTERM"); sender a value of `model.events.Sender`."""
        self._signals.labels(signal, sender).inc()

    def oom_killed(self, count: int = 1) -> None:
        """The kernel killed `count` processes of a container for want of memory."""
        self._ooms.inc(count)

    def exec_ended(self, outcome: str, seconds: float) -> None:
        """An exec is over; outcome is "ok", "nonzero", "timeout" or "failed" (it never ran)."""
        self._execs.labels(outcome).observe(seconds)

    def rpc_ended(self, method: str, code: str, seconds: float) -> None:
        """A CRI call was answered; method without its service ("RunPodSandbox"), code by name ("OK")."""
        self._rpcs.labels(method, code).observe(seconds)

    def pull_ended(self, outcome: str, seconds: float, fetched_bytes: int = 0) -> None:
        """An image pull is over; outcome is "ok" or "failed"."""
        self._pulls.labels(outcome).observe(seconds)
        self._pulled.inc(fetched_bytes)

    def log_bytes_were_lost(self, count: int) -> None:
        """Output was dropped because the log could not be written."""
        self._log_bytes_lost.inc(count)

    def leftover_freed(self, kind: str) -> None:
        """Something that belonged to nobody is gone; kind is a word ("cgroup", "netns", ...)."""
        self._freed.labels(kind).inc()

    def leftover_failed(self, kind: str) -> None:
        """It could not be freed."""
        self._unfreed.labels(kind).inc()

    def leftovers_looked_for(self, seconds: float) -> None:
        """The node was compared with what the server knows."""
        self._looks.observe(seconds)

    def render(self) -> bytes:
        """The series in the text format 0.0.4, UTF-8."""
        return generate_latest(self.registry)

    def _ask(self) -> Iterable[GaugeMetricFamily]:
        count: dict[str, int] = {}
        oldest: dict[str, float] = {}
        for stage, age in self._in_flight():
            count[stage] = count.get(stage, 0) + 1
            oldest[stage] = max(age, oldest.get(stage, 0.0))
        operations = self._gauge("operations_in_flight", "Operations under way, by the stage they are in.", ["stage"])
        ages = self._gauge("operation_oldest_age_seconds", "Age of the oldest operation in a stage.", ["stage"])
        for stage, number in count.items():
            operations.add_metric([stage], number)
            ages.add_metric([stage], oldest[stage])
        leftovers = self._gauge("leftovers", "Things found that belong to nobody, or that a pod lacks.", ["kind"])
        for kind, number in self._leftovers().items():
            leftovers.add_metric([kind], number)
        return (self._build, operations, ages, leftovers)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"crishim_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"crishim_{name}", text, labels, buckets=buckets, registry=self.registry)

    @staticmethod
    def _gauge(name: str, text: str, labels: list[str]) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"crishim_{name}", text, labels=labels)


class _Asked:
    """A collector that asks a function at each scrape."""

    def __init__(self, ask: Callable[[], Iterable[GaugeMetricFamily]]) -> None:
        self._ask = ask

    def collect(self) -> Iterable[GaugeMetricFamily]:
        return self._ask()
