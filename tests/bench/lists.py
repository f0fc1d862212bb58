"""What a kubelet asks each second, with 500 containers on the node and one pod frozen: ours and containerd in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from crishim.cgroups import effects
from crishim.cgroups.hierarchy import detect
from crishim.cri.pb import api_pb2 as pb
from tests.bench.measure import Sample, alternate, cgroup_cpu_s
from tests.e2e.client import Client
from tests.e2e.node import Node
from tests.e2e.runtimes import IMAGE, RUNTIMES
from tests.support.image_archive import write_image

PODS, CONTAINERS = 50, 10


@dataclass(frozen=True)
class _FullNode:
    """A runtime with its pods; `cpu` is that of the runtime and its pods, in seconds."""

    calls: dict[str, Callable[[], object]]
    cpu: Callable[[], float]


def measure(runtime_names: Sequence[str], *, count: int) -> dict[str, dict[str, Sample]]:
    """Samples by call and runtime; the time includes that of the client, which reads the answer."""
    with ExitStack() as stack:
        nodes = {name: stack.enter_context(_full_node(name)) for name in runtime_names}
        cpu = {name: node.cpu for name, node in nodes.items()}
        return {
            call: alternate({name: node.calls[call] for name, node in nodes.items()}, count, cpu)
            for call in next(iter(nodes.values())).calls
        }


@contextmanager
def _full_node(runtime_name: str) -> Iterator[_FullNode]:
    with Node() as node:
        runtime = RUNTIMES[runtime_name](node)
        runtime.start()
        runtime.load(write_image(node.directory / "image.tar", IMAGE))
        client = Client(runtime.socket, node.cgroup, node.directory / "logs", host_network=True)
        try:
            pods = [_pod(client) for _ in range(PODS)]
            with _frozen(pods[0][1]):
                yield _FullNode(_calls(client.runtime, pods[0][2][0]), lambda: cgroup_cpu_s(node.cgroup))
            for sandbox_id, _, _ in pods:
                client.stop_sandbox(sandbox_id)
                client.remove_sandbox(sandbox_id)
        finally:
            client.close()


def _pod(client: Client) -> tuple[str, str, list[str]]:
    """(id, cgroup, ids of its running containers)."""
    config = client.sandbox_config()
    sandbox_id = client.run_sandbox(config)
    containers = [client.create(sandbox_id, config, name=f"c{number}") for number in range(CONTAINERS)]
    for container_id in containers:
        client.start(container_id)
    return sandbox_id, config.linux.cgroup_parent, containers


@contextmanager
def _frozen(cgroup: str) -> Any:
    effects.freeze(detect(), cgroup)
    try:
        yield
    finally:
        effects.thaw(detect(), cgroup)


def _calls(runtime: Any, container_id: str) -> dict[str, Callable[[], object]]:
    """`container_id` is one of the frozen pod."""

    def containers() -> None:
        answer = runtime.ListContainers(pb.ListContainersRequest())
        assert len(answer.containers) == PODS * CONTAINERS

    def sandboxes() -> None:
        assert len(runtime.ListPodSandbox(pb.ListPodSandboxRequest()).items) == PODS

    return {
        f"ListContainers, {PODS * CONTAINERS}": containers,
        f"ListPodSandbox, {PODS}": sandboxes,
        "ContainerStatus, frozen pod": lambda: runtime.ContainerStatus(
            pb.ContainerStatusRequest(container_id=container_id)
        ),
        f"ListContainerStats, {PODS * CONTAINERS}": lambda: runtime.ListContainerStats(pb.ListContainerStatsRequest()),
        "Status": lambda: runtime.Status(pb.StatusRequest()),
    }
