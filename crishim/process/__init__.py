"""The executor as a library: `Container` and `Process`, without kubelet, gRPC or images (`docs/library.md`).

    from crishim import Container, Process, ProcessSpec, isolated

    container = Container(isolated("/srv/root", id="job-1"))
    process = Process(ProcessSpec(args=("/bin/true",), init=True))
    with container:
        container.start(process)
        print(process.wait().code)

The names are those of runc's libcontainer: a process with `init` makes the container, later ones are execs in it.
Calls block; the executor's own loop runs in a thread of its own. Needs root.
"""

from __future__ import annotations

from crishim.process.container import Container, isolated
from crishim.process.engine import Engine, cgroup_root, close_engine, monitor_directories, open_engine, program_id
from crishim.process.events import ContainerEvent, EventKind, Events
from crishim.process.handle import ExitStatus, Process, ProcessIO
from crishim.process.state import ContainerStatus, State

__all__ = [
    "Container",
    "ContainerEvent",
    "ContainerStatus",
    "Engine",
    "EventKind",
    "Events",
    "ExitStatus",
    "Process",
    "ProcessIO",
    "State",
    "cgroup_root",
    "close_engine",
    "isolated",
    "monitor_directories",
    "open_engine",
    "program_id",
]
