"""What subscribers are told of the life of pods (api.proto ContainerEventResponse)."""

from __future__ import annotations

from dataclasses import dataclass

from crishim.model.container import Container
from crishim.model.events import LifeEventKind
from crishim.model.sandbox import Sandbox


@dataclass(frozen=True, slots=True)
class LifeEvent:
    """A container, or a sandbox as a whole, came to a new point of its life.

    container_id: that of the container; the sandbox's own id when the event is about the sandbox. The statuses are
    those right after the change: a STOPPED container is EXITED in them. After a removal `sandbox` is the last one.
    """

    container_id: str
    kind: LifeEventKind
    created_at_ns: int
    sandbox: Sandbox
    containers: tuple[Container, ...]
