"""The services of the socket, put together from their families."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from crishim.cri.containers import ContainerMethods
from crishim.cri.control import ControlMethods
from crishim.cri.events import EventMethods
from crishim.cri.execs import ExecMethods, StreamingMethods
from crishim.cri.handlers import service_handler
from crishim.cri.image_service import ImageMethods
from crishim.cri.interceptors import Guard
from crishim.cri.listing import Listing
from crishim.cri.node import NodeMethods
from crishim.cri.pb import api_pb2, control_pb2
from crishim.cri.sandboxes import SandboxMethods
from crishim.cri.stats import StatsMethods
from crishim.cri.use_cases import (
    Containers,
    Events,
    Execs,
    Garbage,
    Images,
    Monitors,
    Node,
    Sandboxes,
    Stats,
    Stories,
    Streaming,
)


def services(
    *,
    sandboxes: Sandboxes,
    containers: Containers,
    execs: Execs,
    stats: Stats,
    events: Events,
    images: Images,
    stories: Stories,
    garbage: Garbage,
    monitors: Monitors,
    node: Node,
    listing: Listing,
    guard: Guard,
    version: str,
    streaming: Streaming | None = None,
) -> Sequence[grpc.GenericRpcHandler[Any, Any]]:
    """RuntimeService, ImageService and Control; `version` is that of crishim, shown by Version.

    Without `streaming`, its three methods answer UNIMPLEMENTED.
    """
    runtime: list[object] = [
        SandboxMethods(sandboxes, listing),
        ContainerMethods(containers, listing),
        ExecMethods(execs),
        StatsMethods(stats, listing),
        EventMethods(events),
        NodeMethods(node, version),
    ]
    if streaming is not None:
        runtime.append(StreamingMethods(streaming))
    by_name = api_pb2.DESCRIPTOR.services_by_name
    return (
        service_handler(by_name["RuntimeService"], runtime, guard),
        service_handler(by_name["ImageService"], [ImageMethods(images, listing)], guard),
        service_handler(
            control_pb2.DESCRIPTOR.services_by_name["Control"],
            [ControlMethods(images, stories, garbage, monitors)],
            guard,
        ),
    )
