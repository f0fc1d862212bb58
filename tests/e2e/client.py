"""A CRI client of one pod configuration: the calls of a kubelet for a pod with one container, on any runtime."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import grpc

from crishim.cri.pb import api_pb2 as pb
from crishim.cri.pb import api_pb2_grpc
from tests.e2e.runtimes import IMAGE

_NUMBERS = itertools.count(1)
"""Of all clients: a second one on the same runtime must not find the pods of the first under its own names."""


class Client:
    """Connected to a socket; each sandbox gets a name of its own below `logs` and the cgroup."""

    def __init__(self, socket: Path, cgroup: str, logs: Path, *, host_network: bool) -> None:
        self._channel = grpc.insecure_channel(f"unix://{socket}")
        self.runtime: Any = api_pb2_grpc.RuntimeServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._cgroup = cgroup
        self._logs = logs
        self._network = pb.NamespaceMode.NODE if host_network else pb.NamespaceMode.POD

    def close(self) -> None:
        self._channel.close()

    def sandbox_config(self) -> pb.PodSandboxConfig:
        name = f"pod{next(_NUMBERS)}"
        directory = self._logs / name
        directory.mkdir(parents=True, exist_ok=True)
        options = pb.NamespaceOption(network=self._network, pid=pb.NamespaceMode.CONTAINER)
        return pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=name, uid=f"{name}-{self._network}", namespace="e2e"),
            hostname="" if self._network == pb.NamespaceMode.NODE else name,
            log_directory=str(directory),
            linux=pb.LinuxPodSandboxConfig(
                cgroup_parent=f"{self._cgroup}/pods/{name}",
                security_context=pb.LinuxSandboxSecurityContext(namespace_options=options),
            ),
        )

    def run_sandbox(self, config: pb.PodSandboxConfig) -> str:
        return str(self.runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=config)).pod_sandbox_id)

    def create(self, sandbox_id: str, config: pb.PodSandboxConfig, name: str = "main") -> str:
        options = pb.NamespaceOption(network=self._network, pid=pb.NamespaceMode.CONTAINER)
        default = pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault)
        security = pb.LinuxContainerSecurityContext(namespace_options=options, seccomp=default)
        container = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name),
            image=pb.ImageSpec(image=IMAGE, user_specified_image=IMAGE),
            command=["/bin/sleep", "100000"],
            log_path=f"{name}/0.log",
            linux=pb.LinuxContainerConfig(security_context=security),
        )
        request = pb.CreateContainerRequest(pod_sandbox_id=sandbox_id, config=container, sandbox_config=config)
        return str(self.runtime.CreateContainer(request).container_id)

    def start(self, container_id: str) -> None:
        self.runtime.StartContainer(pb.StartContainerRequest(container_id=container_id))

    def exec_true(self, container_id: str) -> None:
        reply = self.runtime.ExecSync(pb.ExecSyncRequest(container_id=container_id, cmd=["/bin/true"], timeout=10))
        assert reply.exit_code == 0

    def stop(self, container_id: str) -> None:
        self.runtime.StopContainer(pb.StopContainerRequest(container_id=container_id, timeout=0))

    def remove(self, container_id: str) -> None:
        self.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=container_id))

    def stop_sandbox(self, sandbox_id: str) -> None:
        self.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=sandbox_id))

    def remove_sandbox(self, sandbox_id: str) -> None:
        self.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox_id))

    def start_pod(self) -> tuple[str, str]:
        """Sandbox and container id of a running pod."""
        config = self.sandbox_config()
        sandbox_id = self.run_sandbox(config)
        container_id = self.create(sandbox_id, config)
        self.start(container_id)
        return sandbox_id, container_id

    def end_pod(self, sandbox_id: str, container_id: str) -> None:
        self.stop(container_id)
        self.remove(container_id)
        self.stop_sandbox(sandbox_id)
        self.remove_sandbox(sandbox_id)

    def running_containers(self) -> set[str]:
        """Ids of the containers that the runtime calls running."""
        reply = self.runtime.ListContainers(pb.ListContainersRequest())
        return {each.id for each in reply.containers if each.state == pb.ContainerState.CONTAINER_RUNNING}

    def sandboxes(self) -> set[str]:
        """Ids of all sandboxes, ready or not."""
        return {each.id for each in self.runtime.ListPodSandbox(pb.ListPodSandboxRequest()).items}

    def exit_of(self, container_id: str) -> tuple[int, str] | None:
        """(code, reason) of an exited container, None while it runs."""
        status = self.runtime.ContainerStatus(pb.ContainerStatusRequest(container_id=container_id)).status
        return (status.exit_code, status.reason) if status.state == pb.ContainerState.CONTAINER_EXITED else None
