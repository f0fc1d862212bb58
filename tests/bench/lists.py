"""What a kubelet asks each second, with 500 containers on the node and one pod frozen: ours and containerd."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from crishim.cgroups import effects
from crishim.cgroups.hierarchy import detect
from crishim.cri.pb import api_pb2 as pb
from tests.bench.measure import Sample, cgroup_cpu_s, repeat
from tests.e2e.client import Client
from tests.e2e.node import Node
from tests.e2e.runtimes import IMAGE, RUNTIMES
from tests.support.image_archive import write_image

PODS, CONTAINERS = 50, 10


def measure(runtime_name: str, *, count: int) -> dict[str, Sample]:
    """Samples by call; the time includes that of the client, which reads the answer."""
    with Node() as node:
        runtime = RUNTIMES[runtime_name](node)
        runtime.start()
        runtime.load(write_image(node.directory / "image.tar", IMAGE))
        client = Client(runtime.socket, node.cgroup, node.directory / "logs", host_network=True)
        try:
            pods = [_pod(client) for _ in range(PODS)]
            with _frozen(pods[0][1]):
                samples = {
                    name: repeat(call, count, lambda: cgroup_cpu_s(node.cgroup))
                    for name, call in _calls(client.runtime, pods[0][2][0]).items()
                }
            for sandbox_id, _, _ in pods:
                client.stop_sandbox(sandbox_id)
                client.remove_sandbox(sandbox_id)
        finally:
            client.close()
        return samples


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
        "Status": lambda: runtime.Status(pb.StatusRequest()),
    }
