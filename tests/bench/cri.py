"""Both runtimes through CRI, by one client: ours, and containerd with runc, each in a node of its own.

CPU is that of the node's cgroup, which holds the server, its helpers and the pods but not the client.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.measure import Sample, cgroup_cpu_s, pss_bytes, repeat
from tests.e2e.client import Client
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
