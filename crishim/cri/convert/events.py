"""Events of the life of pods to protobuf."""

from __future__ import annotations

from typing import cast

from crishim.cri.convert import container, sandbox
from crishim.cri.pb import api_pb2 as pb
from crishim.model.life import LifeEvent


def to_proto(event: LifeEvent) -> pb.ContainerEventResponse:
    """One message of GetContainerEvents."""
    return pb.ContainerEventResponse(
        container_id=event.container_id,
        container_event_type=cast("pb.ContainerEventType", event.kind.value),
        created_at=event.created_at_ns,
        pod_sandbox_status=sandbox.to_status(event.sandbox),
        containers_statuses=[container.to_status(member) for member in event.containers],
    )
