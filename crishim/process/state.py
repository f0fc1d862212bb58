"""The state of a container as OCI's runtime specification has it: the value that `state` prints and hooks read."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from crishim.model.hook import OCI_VERSION


class ContainerStatus(enum.Enum):
    """OCI's words; "creating" is seen by hooks alone."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class State:
    """One container. `pid` is the host's and 0 unless a process runs; `bundle` is "" when no directory was made."""

    id: str
    status: ContainerStatus
    pid: int
    bundle: str
    annotations: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """The object of OCI's `state`, with its keys."""
        return {
            "ociVersion": OCI_VERSION,
            "id": self.id,
            "status": self.status.value,
            "pid": self.pid,
            "bundle": self.bundle,
            "annotations": dict(self.annotations),
        }
