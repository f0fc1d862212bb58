"""A random load of every RPC by several clients, each with pods of its own, that checks all answers.

What a client does is drawn from the seed. It behaves as a kubelet: a call that the death of the server cut is repeated
to the next server. A container either counts until it is told to stop, or writes a known number of lines and ends with
a known code; its log over all rotations must be complete, in order and free of doubles.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from crishim.cri.client import Client
from crishim.cri.client import messages as m
from crishim.cri.pb import api_pb2
from crishim.errors import CrishimError, Unavailable
from tests.support.server import container_config, pod_config

PATIENCE_S = 600.0
#: code of a counter that was asked to stop
STOPPED = 7
_MOST_PODS = 2
_MOST_CONTAINERS = 2
_COUNTER = "trap 'echo end $i; exit 7' TERM; i=0; while :; do echo line $i; i=$((i+1)); sleep 0.1; done"
_WRITER = "i=0; while [ $i -lt {lines} ]; do echo line $i; i=$((i+1)); done; exit {code}"
_READS = (
    "Version", "Status", "ListPodSandbox", "StreamPodSandboxes", "ListContainers", "StreamContainers",
    "ListContainerStats", "StreamContainerStats", "ListPodSandboxStats", "StreamPodSandboxStats", "RuntimeConfig",
    "ListMetricDescriptors", "ListPodSandboxMetrics", "StreamPodSandboxMetrics", "GetContainerEvents",
    "UpdateRuntimeConfig",
)  # fmt: skip
_IMAGE_READS = ("ListImages", "StreamImages", "ImageFsInfo")
#: what this version refuses as a whole
_REFUSED = {"CheckpointContainer", "CheckpointPod", "RestorePod"}


def methods() -> set[str]:
    """Every method that the load calls: all but those that are refused."""
    services = api_pb2.DESCRIPTOR.services_by_name.values()
    return {method.name for service in services for method in service.methods} - _REFUSED


@dataclass
class _Container:
    """What a client knows of a container that it made; `lines` is None for one that counts until it is stopped."""

    name: str
    id: str = ""
    lines: int | None = None
    code: int = STOPPED
    started_at: int = 0
    rotations: int = 0


@dataclass
class _Pod:
    """A pod of a client."""

    config: Any
    id: str = ""
    containers: list[_Container] = field(default_factory=list)


class Worker(threading.Thread):
    """One client; `failure` is the first wrong answer, which ends it."""

    def __init__(self, number: int, seed: str, address: str, logs: Path, stop: threading.Event) -> None:
        super().__init__(name=f"client {number}", daemon=True)
        self.failure: BaseException | None = None
        self.called: Counter[str] = Counter()
        self._number = number
        self._random = random.Random(f"{seed}/{number}")
        self._address = address
        self._logs = logs
        self._stop_asked = stop
        self._client: Client | None = None
        self._pods: list[_Pod] = []
        self._made = 0

    def run(self) -> None:
        try:
            while not self._stop_asked.is_set():
                self._step()
            self.end_all()
        except BaseException as error:
            self.failure = error
            self._stop_asked.set()
        finally:
            self._disconnect()

    # -- steps

    def _step(self) -> None:
        pod = self._random.choice(self._pods) if self._pods else None
        counters = [each for each in pod.containers if each.lines is None] if pod else []
        steps: list[tuple[int, Callable[[], None]]] = [(4, self._read)]
        if len(self._pods) < _MOST_PODS:
            steps.append((8, self._run_pod))
        if pod is not None:
            steps += [(2, lambda: self._look(pod)), (1, lambda: self._touch_pod(pod)), (1, lambda: self._end(pod))]
            if len(pod.containers) < _MOST_CONTAINERS:
                steps.append((8, lambda: self._start(pod)))
            for each in pod.containers:
                steps.append((2, lambda each=each: self._finish(pod, each)))  # type: ignore[misc]
        if counters:
            counter = self._random.choice(counters)
            steps += [(6, lambda: self._exec(counter)), (3, lambda: self._rotate(pod, counter))]  # type: ignore[arg-type]
            steps.append((2, lambda: self._touch(counter)))
        self._random.choices([step for _, step in steps], [weight for weight, _ in steps])[0]()

    def _run_pod(self) -> None:
        self._made += 1
        host_network = self._random.random() < 0.3
        pod = _Pod(pod_config(f"load-{self._number}-{self._made}", self._logs, host_network=host_network))
        pod.id = self._runtime("RunPodSandbox", m.RunPodSandboxRequest(config=pod.config)).pod_sandbox_id
        self._pods.append(pod)

    def _start(self, pod: _Pod) -> None:
        self._made += 1
        container = _Container(f"c{self._made}")
        script = _COUNTER
        if self._random.random() < 0.5:
            container.lines, container.code = self._random.randrange(3000), self._random.randrange(100)
            script = _WRITER.format(lines=container.lines, code=container.code)
        config = container_config("sh", "-c", script, name=container.name)
        request = m.CreateContainerRequest(pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
        container.id = self._runtime("CreateContainer", request).container_id
        while self._status(container).state == m.CONTAINER_CREATED:  # a kubelet looks before it starts one again
            self._runtime("StartContainer", m.StartContainerRequest(container_id=container.id), repeat=False)
        pod.containers.append(container)
        container.started_at = self._status(container).started_at
        if container.lines is None:
            self._until(lambda: self._lines(pod, container), f"the first line of {container.id}")

    def _finish(self, pod: _Pod, container: _Container) -> None:
        """The end of a container: no byte of its log is missing, its code is the true one, and it is gone."""
        if container.lines is None:
            self._runtime("StopContainer", m.StopContainerRequest(container_id=container.id, timeout=30))
        self._until(lambda: self._status(container).state == m.CONTAINER_EXITED, f"the end of {container.id}")
        status = self._status(container)
        assert (status.exit_code, status.started_at) == (container.code, container.started_at), (container, status)
        lines = self._lines(pod, container)
        if container.lines is None:
            expected = [*(f"line {number}" for number in range(len(lines) - 1)), f"end {len(lines) - 1}"]
            # told to stop between a line and its count, it says the count that was
            assert lines == expected or lines == [*expected[:-1], f"end {len(lines) - 2}"], (container, lines[-5:])
        else:
            assert lines == [f"line {number}" for number in range(container.lines)], (container, len(lines), lines[-5:])
        self._runtime("RemoveContainer", m.RemoveContainerRequest(container_id=container.id))
        pod.containers.remove(container)

    def _end(self, pod: _Pod) -> None:
        for container in list(pod.containers):
            if self._random.random() < 0.7:
                self._finish(pod, container)
        if self._random.random() < 0.7:
            self._runtime("StopPodSandbox", m.StopPodSandboxRequest(pod_sandbox_id=pod.id))
        self._runtime("RemovePodSandbox", m.RemovePodSandboxRequest(pod_sandbox_id=pod.id))
        self._pods.remove(pod)

    def end_all(self) -> None:
        """Every container finishes, every pod is removed."""
        for pod in list(self._pods):
            for container in list(pod.containers):
                self._finish(pod, container)
            self._end(pod)

    def _look(self, pod: _Pod) -> None:
        """Nothing of a pod may have got lost, and no counter may have been started anew."""
        status = self._runtime("PodSandboxStatus", m.PodSandboxStatusRequest(pod_sandbox_id=pod.id)).status
        assert status.state == m.SANDBOX_READY, (pod.id, status)
        listed = m.ListContainersRequest(filter=m.ContainerFilter(pod_sandbox_id=pod.id))
        found = {each.id: each.state for each in self._runtime("ListContainers", listed).containers}
        assert found.keys() == {each.id for each in pod.containers}, (pod, found)
        for container in pod.containers:
            assert self._status(container).started_at == container.started_at, container
            assert container.lines is not None or found[container.id] == m.CONTAINER_RUNNING, container

    def _exec(self, container: _Container) -> None:
        word, code = f"w{self._random.randrange(1000)}", self._random.randrange(100)
        script = f"echo {word}; exit {code}"
        request = m.ExecSyncRequest(container_id=container.id, cmd=["sh", "-c", script], timeout=60)
        answer = self._runtime("ExecSync", request)
        assert (answer.stdout, answer.exit_code) == (f"{word}\n".encode(), code), answer

    def _rotate(self, pod: _Pod, container: _Container) -> None:
        log = self._log(pod, container)
        log.rename(log.with_name(f"{log.name}.{container.rotations}"))
        container.rotations += 1
        self._runtime("ReopenContainerLog", m.ReopenContainerLogRequest(container_id=container.id))
        assert log.exists(), f"{log} is not there after it was opened again"

    def _touch(self, container: _Container) -> None:
        """One of the calls about a running container whose effect does not matter here."""
        resources = m.LinuxContainerResources(memory_limit_in_bytes=self._random.randrange(64, 128) << 20)
        update = m.UpdateContainerResourcesRequest(container_id=container.id, linux=resources)
        self._runtime("UpdateContainerResources", update)
        self._runtime("ContainerStats", m.ContainerStatsRequest(container_id=container.id))
        assert self._runtime("Exec", m.ExecRequest(container_id=container.id, cmd=["true"], stdout=True)).url
        assert self._runtime("Attach", m.AttachRequest(container_id=container.id, stdout=True)).url

    def _touch_pod(self, pod: _Pod) -> None:
        stats = m.PodSandboxStatsRequest(pod_sandbox_id=pod.id)
        assert self._runtime("PodSandboxStats", stats).stats.attributes.id == pod.id
        self._runtime("UpdatePodSandboxResources", m.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod.id))
        assert self._runtime("PortForward", m.PortForwardRequest(pod_sandbox_id=pod.id, port=[80])).url

    def _read(self) -> None:
        if self._random.random() < 0.8:
            name = self._random.choice(_READS)
            request = {"GetContainerEvents": "GetEvents"}.get(name, name) + "Request"
            self._runtime(name, getattr(m, request)())
            return
        self._image(self._random.choice(_IMAGE_READS))
        self._image("ImageStatus", image=m.ImageSpec(image="crishim.local/demo:latest"))
        self._image("RemoveImage", image=m.ImageSpec(image="crishim.local/absent:latest"))
        try:  # not repeated: while it waits for the registry to come back, the next server is killed too
            pull = m.PullImageRequest(image=m.ImageSpec(image="127.0.0.1:1/absent:latest"))
            self._call("images", "PullImage", pull, repeat=False)
        except CrishimError as error:
            assert type(error) is CrishimError, error  # no registry: UNKNOWN, whose text a kubelet reads

    # -- logs

    def _log(self, pod: _Pod, container: _Container) -> Path:
        return Path(pod.config.log_directory) / container.name / "0.log"

    def _lines(self, pod: _Pod, container: _Container) -> list[str]:
        """What the container wrote, over all rotations."""
        log = self._log(pod, container)
        files = [log.with_name(f"{log.name}.{number}") for number in range(container.rotations)] + [log]
        text = "".join(file.read_text() for file in files)
        return [line.split(" ", 3)[3] for line in text.splitlines()]

    # -- calls

    def _status(self, container: _Container) -> Any:
        return self._runtime("ContainerStatus", m.ContainerStatusRequest(container_id=container.id)).status

    def _image(self, method: str, **fields: Any) -> Any:
        return self._call("images", method, getattr(m, method + "Request")(**fields), repeat=True)

    def _runtime(self, method: str, request: Any, *, repeat: bool = True) -> Any:
        return self._call("runtime", method, request, repeat=repeat)

    def _call(self, service: str, method: str, request: Any, *, repeat: bool) -> Any:
        """The answer; a server that died is waited for, and asked again with `repeat`."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer = self._once(service, method, request)
                self.called[method] += 1
                return answer
            except Unavailable as error:
                self._disconnect()
                assert time.monotonic() < deadline, f"{method}: no server answered for {PATIENCE_S} s: {error}"
                if not repeat:
                    return None
            threading.Event().wait(0.05)  # as the clients of a kubelet do between attempts

    def _once(self, service: str, method: str, request: Any) -> Any:
        if self._client is None:
            self._client = Client(self._address)
        if method.startswith("Stream") or method == "GetContainerEvents":
            return self._first(self._client, service, method, request)
        return getattr(self._client, service)(method, request)

    def _first(self, client: Client, service: str, method: str, request: Any) -> object:
        """The first message of a stream; of events none is waited for."""
        if service == "images":
            try:
                return next(iter(getattr(client._images, method)(request, timeout=PATIENCE_S)), None)
            except grpc.RpcError as error:
                raise client._translated(error) from None
        stream: Iterator[Any] = client.stream(method, request)
        return None if method == "GetContainerEvents" else next(stream, None)

    def _until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come"
            threading.Event().wait(0.02)

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
