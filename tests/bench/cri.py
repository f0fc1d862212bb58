"""Both runtimes through CRI, by one client: ours, and containerd with runc, each in a node of its own.

CPU is that of the node's cgroup, which holds the server, its helpers and the pods but not the client.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from crishim.cri.pb import api_pb2 as pb
from crishim.cri.pb import api_pb2_grpc
from tests.bench.measure import Sample, cgroup_cpu_s, pss_bytes, repeat
from tests.e2e.node import Node, hierarchy_with
from tests.e2e.runtimes import IMAGE, RUNTIMES
from tests.support.image_archive import write_image

IDLE_S = 10.0
PODS = (20, 100)


@dataclass(frozen=True)
class Report:
    """What one runtime shows: samples by operation, memory beyond the pods' own processes, CPU of doing nothing."""

    samples: dict[str, Sample]
    pss_mb: dict[int, float]
    idle_cores: float


class Client:
    """The calls of a kubelet, with one pod configuration for both runtimes."""

    def __init__(self, socket: Path, cgroup: str, logs: Path, *, host_network: bool) -> None:
        self._channel = grpc.insecure_channel(f"unix://{socket}")
        self.runtime: Any = api_pb2_grpc.RuntimeServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._cgroup = cgroup
        self._logs = logs
        self._network = pb.NamespaceMode.NODE if host_network else pb.NamespaceMode.POD
        self._made = 0

    def close(self) -> None:
        self._channel.close()

    def sandbox_config(self) -> pb.PodSandboxConfig:
        self._made += 1
        name = f"bench{self._made}"
        directory = self._logs / name
        directory.mkdir(parents=True, exist_ok=True)
        options = pb.NamespaceOption(network=self._network, pid=pb.NamespaceMode.CONTAINER)
        return pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=name, uid=f"{name}-{self._network}", namespace="bench"),
            hostname="" if self._network == pb.NamespaceMode.NODE else name,
            log_directory=str(directory),
            linux=pb.LinuxPodSandboxConfig(
                cgroup_parent=f"{self._cgroup}/pods/{name}",
                security_context=pb.LinuxSandboxSecurityContext(namespace_options=options),
            ),
        )

    def run_sandbox(self, config: pb.PodSandboxConfig) -> str:
        return str(self.runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=config)).pod_sandbox_id)

    def create(self, sandbox_id: str, config: pb.PodSandboxConfig) -> str:
        options = pb.NamespaceOption(network=self._network, pid=pb.NamespaceMode.CONTAINER)
        default = pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault)
        security = pb.LinuxContainerSecurityContext(namespace_options=options, seccomp=default)
        container = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name="main"),
            image=pb.ImageSpec(image=IMAGE, user_specified_image=IMAGE),
            command=["/bin/sleep", "100000"],
            log_path="main/0.log",
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

    def list_containers(self) -> None:
        self.runtime.ListContainers(pb.ListContainersRequest())


def measure(runtime_name: str, *, count: int) -> Report:
    """Every figure of one runtime. Ends with nothing of it left on the machine."""
    with Node() as node:
        runtime = RUNTIMES[runtime_name](node)
        runtime.start()
        runtime.load(write_image(node.directory / "image.tar", IMAGE))
        samples: dict[str, Sample] = {}
        for network in ("host network", "pod network"):
            with _client(node, runtime.socket, network) as client:
                samples |= {f"{name}, {network}": sample for name, sample in _cycle(client, node, count).items()}
        with _client(node, runtime.socket, "host network") as client:
            samples |= _execs(client, node, count)
            pss, idle = _crowd(client, node)
            return Report(samples, pss, idle)


@contextmanager
def _client(node: Node, socket: Path, network: str) -> Iterator[Client]:
    client = Client(socket, node.cgroup, node.directory / network[:4], host_network=network.startswith("host"))
    try:
        yield client
    finally:
        client.close()


def _cycle(client: Client, node: Node, count: int) -> dict[str, Sample]:
    """Each step of a pod's life, timed within whole cycles, and the cycles themselves."""
    steps: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[[], str | None]) -> str:
        started = time.perf_counter()
        answer = call()
        steps.setdefault(name, []).append(time.perf_counter() - started)
        return answer or ""

    def cycle() -> None:
        config = client.sandbox_config()
        sandbox_id = timed("RunPodSandbox", lambda: client.run_sandbox(config))
        container_id = timed("CreateContainer", lambda: client.create(sandbox_id, config))
        timed("StartContainer", lambda: client.start(container_id))
        timed("StopContainer", lambda: client.stop(container_id))
        timed("RemoveContainer", lambda: client.remove(container_id))
        timed("StopPodSandbox", lambda: client.stop_sandbox(sandbox_id))
        timed("RemovePodSandbox", lambda: client.remove_sandbox(sandbox_id))

    whole = repeat(cycle, count, lambda: cgroup_cpu_s(node.cgroup))
    # the first cycle warms up and does not count
    return {name: Sample(tuple(seconds[1:])) for name, seconds in steps.items()} | {"whole cycle": whole}


def _execs(client: Client, node: Node, count: int) -> dict[str, Sample]:
    pod = client.start_pod()
    sample = repeat(lambda: client.exec_true(pod[1]), count * 3, lambda: cgroup_cpu_s(node.cgroup))
    client.end_pod(*pod)
    return {"ExecSync true": sample}


def _crowd(client: Client, node: Node) -> tuple[dict[int, float], float]:
    """(memory in MB at 0 and at each number of pods, cores used with the most pods and nobody asking)."""
    memory = {0: _runtime_pss_mb(node)}
    pods: list[tuple[str, str]] = []
    for count in PODS:
        pods += [client.start_pod() for _ in range(count - len(pods))]
        memory[count] = _runtime_pss_mb(node)
    before = cgroup_cpu_s(node.cgroup)
    time.sleep(IDLE_S)
    idle = (cgroup_cpu_s(node.cgroup) - before) / IDLE_S
    for pod in pods:
        client.end_pod(*pod)
    return memory, idle


def _runtime_pss_mb(node: Node) -> float:
    """Memory of every process of the node but the pods' own, which are called sleep."""
    directory = hierarchy_with("pids") / node.directory.name
    pids = [int(pid) for path in directory.rglob("cgroup.procs") for pid in path.read_text().split()]
    return pss_bytes(pid for pid in pids if _name(pid) not in ("sleep", "")) / 1e6


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
