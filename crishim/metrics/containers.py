"""Series per container as text: lines are made when something changes, a scrape only joins them.

At most 18 series per container, gone with the container. The text format wants all lines of a family together, so a
container keeps one piece of text per family and the page is joined column by column.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from crishim.model.container import Container, ContainerState
from crishim.model.sandbox import Sandbox
from crishim.store.store import Kind, Store

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

EXEC_OUTCOMES = ("ok", "failed", "timeout")

# (name, type, help) of each family; the order of the columns.
_STATUS = (
    ("info", "gauge", "The image of a container; always 1."),
    ("state", "gauge", "The state of a container as a label; always 1."),
    ("attempt", "gauge", "How many times the container was made before, as the kubelet counts."),
    ("created_timestamp_seconds", "gauge", "When the container was created."),
    ("started_timestamp_seconds", "gauge", "When the init process started."),
    ("finished_timestamp_seconds", "gauge", "When the init process ended."),
    ("exit_code", "gauge", "Exit code of the init process, with the reason as a label."),
)
_EXECS = (
    ("execs_total", "counter", "Execs that ended, by outcome."),
    ("exec_seconds_total", "counter", "Time spent in execs."),
)
_EXIT = (
    ("oom_kills_total", "counter", "Processes killed for want of memory, as counted when the container ended."),
    ("log_bytes_lost_total", "counter", "Bytes of output that the log file did not take, as counted at the end."),
)


@dataclass(frozen=True, slots=True)
class SeriesSample:
    """One sampling of a container; each field is a family of that name, None when it is not known."""

    cpu_usage_seconds_total: float | None = None
    memory_working_set_bytes: int | None = None
    memory_usage_bytes: int | None = None
    memory_limit_bytes: int | None = None
    pids: int | None = None


_SAMPLE_HELP = {
    "cpu_usage_seconds_total": "CPU time used.",
    "memory_working_set_bytes": "Memory in use without inactive file pages.",
    "memory_usage_bytes": "Memory charged to the container, page cache included.",
    "memory_limit_bytes": "Memory limit, when there is one.",
    "pids": "Processes and threads.",
}
_SAMPLE = tuple(
    (field.name, "counter" if field.name.endswith("_total") else "gauge", _SAMPLE_HELP[field.name])
    for field in fields(SeriesSample)
)


class _Lines:
    """The lines of one container: its label text, and its columns in the order of the families."""

    __slots__ = ("exec_counts", "exec_seconds", "execs", "exit", "labels", "sample", "status")

    def __init__(self, labels: str) -> None:
        #: `namespace="..",pod="..",container="..",id=".."`
        self.labels = labels
        self.status = [""] * len(_STATUS)
        self.sample = [""] * len(_SAMPLE)
        self.execs = [""] * len(_EXECS)
        self.exit = [""] * len(_EXIT)
        self.exec_counts = dict.fromkeys(EXEC_OUTCOMES, 0)
        self.exec_seconds = 0.0


class ContainerMetrics:
    """Follows a store. Changes come from the event loop; `render` may run in another thread."""

    def __init__(self, store: Store) -> None:
        """Takes what the store holds and subscribes to its changes; the store is loaded before."""
        self._store = store
        self._lines: dict[str, _Lines] = {}
        for container in store.list_containers():
            self._container_changed(container)
        store.subscribe(self._store_changed)

    def sampled(self, container_id: str, sample: SeriesSample) -> None:
        """A container was sampled; one that is gone is ignored."""
        lines = self._lines.get(container_id)
        if lines is not None:
            lines.sample = [
                "" if value is None else _line(name, lines.labels, value)
                for name, value in ((name, getattr(sample, name)) for name, _, _ in _SAMPLE)
            ]

    def oom_killed(self, container_id: str, count: int) -> None:
        """The container ended, and so many of its processes were killed for want of memory."""
        self._exit_counted(container_id, 0, count)

    def log_bytes_were_lost(self, container_id: str, count: int) -> None:
        """The container ended, and its log did not take so many bytes."""
        self._exit_counted(container_id, 1, count)

    def _exit_counted(self, container_id: str, column: int, count: int) -> None:
        lines = self._lines.get(container_id)
        if lines is not None:
            lines.exit[column] = _line(_EXIT[column][0], lines.labels, count)

    def exec_ended(self, container_id: str, outcome: str, seconds: float) -> None:
        """An exec of the container ended; outcome is one of EXEC_OUTCOMES."""
        lines = self._lines.get(container_id)
        if lines is None:
            return
        lines.exec_counts[outcome] += 1
        lines.exec_seconds += seconds
        counts = (
            _line("execs_total", f'{lines.labels},outcome="{name}"', count)
            for name, count in lines.exec_counts.items()
            if count
        )
        lines.execs = ["".join(counts), _line("exec_seconds_total", lines.labels, lines.exec_seconds)]

    def render(self) -> bytes:
        """The series of all containers in the text format 0.0.4, UTF-8."""
        rows = [lines.status + lines.execs + lines.exit + lines.sample for lines in list(self._lines.values())]
        page = []
        for (name, kind, text), column in zip(_STATUS + _EXECS + _EXIT + _SAMPLE, zip(*rows)):
            page.append(f"# HELP crishim_container_{name} {text}\n# TYPE crishim_container_{name} {kind}\n")
            page.extend(column)
        return "".join(page).encode("utf-8", "replace")

    def _store_changed(self, kind: Kind, old: Sandbox | Container | None, new: Sandbox | Container | None) -> None:
        if isinstance(new, Container):
            self._container_changed(new)
        elif kind is Kind.CONTAINER and old is not None:
            self._lines.pop(old.id, None)

    def _container_changed(self, container: Container) -> None:
        lines = self._lines.get(container.id)
        if lines is None:
            lines = self._lines[container.id] = _Lines(
                _labels(self._store.get_sandbox(container.sandbox_id), container)
            )
        lines.status = _status_lines(lines.labels, container)
        if container.state is ContainerState.EXITED:
            # What it used in all stays true, what it was using does not.
            lines.sample = [
                text if kind == "counter" else "" for text, (_, kind, _) in zip(lines.sample, _SAMPLE, strict=True)
            ]


def _labels(sandbox: Sandbox, container: Container) -> str:
    values = {
        "namespace": sandbox.config.namespace,
        "pod": sandbox.config.name,
        "container": container.config.name,
        "id": container.id,
    }
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in values.items())


def _status_lines(labels: str, container: Container) -> list[str]:
    exited = container.state is ContainerState.EXITED
    return [
        _line("info", f'{labels},image="{_escaped(container.image_name)}"', 1),
        _line("state", f'{labels},state="{container.state.name.lower()}"', 1),
        _line("attempt", labels, container.config.attempt),
        _line("created_timestamp_seconds", labels, container.created_at_ns / 1e9),
        _line("started_timestamp_seconds", labels, container.started_at_ns / 1e9) if container.started_at_ns else "",
        _line("finished_timestamp_seconds", labels, container.finished_at_ns / 1e9) if exited else "",
        _line("exit_code", f'{labels},reason="{_escaped(container.reason)}"', container.exit_code) if exited else "",
    ]


def _line(name: str, labels: str, value: float) -> str:
    return f"crishim_container_{name}{{{labels}}} {value!r}\n"


def _escaped(value: str) -> str:
    """A label value (Prometheus exposition formats, "label_value")."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
