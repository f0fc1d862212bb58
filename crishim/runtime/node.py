"""The node as the kubelet asks for it every five seconds: what is ready, what it can do. Facts: api.proto Status."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

from crishim.errors import InvalidSpec
from crishim.model.leftover import Leftover
from crishim.model.node import CgroupDriver, Condition, NodeFeatures, NodeStatus, RuntimeHandler
from crishim.network.door import Network
from crishim.runtime.operations import Operations
from crishim.runtime.selinux import contexts_of
from crishim.runtime.settings import Settings
from crishim.runtime.steps import WAITS
from crishim.spec.facts import NodeAbilities

#: an operation that stays in one stage this long is named in a verbose status
_STUCK_S: Final = 60.0


class Node:
    """The use cases of `cri.use_cases.Node`."""

    def __init__(
        self,
        settings: Settings,
        network: Network,
        operations: Operations,
        version: str,
        leftovers: Callable[[], Sequence[Leftover]],
    ) -> None:
        """leftovers: what the last check knows, from memory."""
        self._settings = settings
        self._network = network
        self._operations = operations
        self._version = version
        self._leftovers = leftovers

    async def status(self, verbose: bool) -> NodeStatus:
        """RuntimeReady is true as long as we answer; NetworkReady is what the network says."""
        network = await self._network.ready()
        recursive = self._settings.node.recursive_read_only
        users = not self._settings.no_user_namespaces
        names = ("", *self._settings.handlers)
        return NodeStatus(
            conditions=(
                Condition("RuntimeReady", True),
                Condition("NetworkReady", network.ready, network.reason, network.message),
            ),
            handlers=tuple(
                RuntimeHandler(name, recursive_read_only_mounts=recursive, user_namespaces=users) for name in names
            ),
            features=NodeFeatures(
                supplemental_groups_policy=True, mount_options=True, user_namespaces_host_network=users
            ),
            info=self._info() if verbose else {},
        )

    def _info(self) -> dict[str, str]:
        """Tools read "config": critest probes the file system of its `stateDir`, so that is the one of the roots."""
        under_way = self._under_way()
        config = {
            "stateDir": os.path.join(self._settings.root_dir, "containers"),
            "rootDir": self._settings.root_dir,
            "runDir": self._settings.state_dir,
            "version": self._version,
            "cgroupDriver": self._settings.cgroup_driver.name.lower(),
            "networkMode": self._settings.network_mode,
            "seccompProfileDir": self._settings.seccomp_profile_dir,
            "appArmor": _apparmor(self._settings.node),
            "seLinux": _selinux(self._settings.node),
            "runtimeHandlers": list(self._settings.handlers),
            "defaultRuntimeHandler": self._settings.default_handler,
            "noUserNamespaces": self._settings.no_user_namespaces,
            "kernel": ".".join(map(str, self._settings.node.kernel)),
        }
        return {
            "config": json.dumps(config),
            "operations": json.dumps(under_way),
            "leftovers": json.dumps([asdict(each) for each in self._leftovers()]),
            "stuck": json.dumps([each for each in under_way if each["stage_seconds"] > _STUCK_S]),
        }

    def _under_way(self) -> list[dict[str, Any]]:
        return [
            {
                "operation": key,
                "stage": stage,
                "seconds": round(age_s, 3),
                "stage_seconds": round(stage_s, 3),
                "waits_for": WAITS.get(stage, ""),
                "callers": callers,
            }
            for key, stage, age_s, stage_s, callers in self._operations.under_way()
        ]

    async def cgroup_driver(self) -> CgroupDriver:
        """Constant while the server runs."""
        return self._settings.cgroup_driver

    async def update_pod_cidr(self, pod_cidr: str) -> None:
        """The kubelet learned the node's pod CIDR; "" means that it has none."""
        if not pod_cidr:
            return
        try:
            await self._network.set_pod_cidr(pod_cidr)
        except ValueError as error:
            raise InvalidSpec(f"runtime_config.network_config.pod_cidr: {pod_cidr!r}: {error}") from None


def _apparmor(node: NodeAbilities) -> dict[str, object]:
    """Whether the node has it, which profile containers get that name none, and what is wrong with that."""
    return {"enabled": node.apparmor, "default": node.apparmor_default, "problem": node.apparmor_problem}


def _selinux(node: NodeAbilities) -> dict[str, object]:
    """Whether the node has it, the contexts of containers that name none, and why there are none where they should."""
    labels = node.selinux_labels
    return {
        "enabled": node.selinux,
        "labels": None if labels is None else contexts_of(labels),
        "problem": node.selinux_problem,
    }
