"""The node's status and configuration to protobuf."""

from __future__ import annotations

from typing import cast

from crishim.cri.convert.texts import to_wire
from crishim.cri.pb import api_pb2 as pb
from crishim.model.node import CgroupDriver, NodeStatus


def status_to_proto(status: NodeStatus) -> pb.StatusResponse:
    """Answer to Status."""
    return pb.StatusResponse(
        status=pb.RuntimeStatus(
            conditions=[
                pb.RuntimeCondition(type=c.type, status=c.status, reason=c.reason, message=to_wire(c.message))
                for c in status.conditions
            ]
        ),
        info=status.info,
        runtime_handlers=[
            pb.RuntimeHandler(
                name=handler.name,
                features=pb.RuntimeHandlerFeatures(
                    recursive_read_only_mounts=handler.recursive_read_only_mounts,
                    user_namespaces=handler.user_namespaces,
                ),
            )
            for handler in status.handlers
        ],
        features=pb.RuntimeFeatures(
            supplemental_groups_policy=status.features.supplemental_groups_policy,
            user_namespaces_host_network=status.features.user_namespaces_host_network,
            mount_options=status.features.mount_options,
        ),
    )


def driver_to_proto(driver: CgroupDriver) -> pb.RuntimeConfigResponse:
    """Answer to RuntimeConfig; `linux` is present even for SYSTEMD, which is zero."""
    return pb.RuntimeConfigResponse(
        linux=pb.LinuxRuntimeConfiguration(cgroup_driver=cast("pb.CgroupDriver", driver.value))
    )
