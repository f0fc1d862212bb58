"""`crishim ps`: pods and their containers."""

from __future__ import annotations

import argparse
import time
from typing import Any

from crishim.app.client import messages
from crishim.cli.output import add_client_arguments, connect, print_json, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which of them."""
    parser.add_argument("-a", "--all", action="store_true", help="also what does not run")
    add_client_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """A line per container, and one per pod without any."""
    with connect(arguments) as client:
        sandboxes = client.runtime("ListPodSandbox", messages.ListPodSandboxRequest()).items
        containers = client.runtime("ListContainers", messages.ListContainersRequest()).containers
    shown = [each for each in containers if arguments.all or each.state == messages.CONTAINER_RUNNING]
    pods = [each for each in sandboxes if arguments.all or each.state == messages.SANDBOX_READY]
    if arguments.json:
        print_json({"pods": [_pod(each) for each in pods], "containers": [_container(each) for each in shown]})
        return 0
    members: dict[str, list[Any]] = {}
    for container in shown:
        members.setdefault(container.pod_sandbox_id, []).append(container)
    rows = []
    for pod in pods:
        name = f"{pod.metadata.namespace}/{pod.metadata.name}"
        for container in members.pop(pod.id, [None]):
            rows.append([name, pod.id[:12], *_cells(container)])
    print_table(["POD", "POD ID", "CONTAINER", "ID", "STATE", "ATTEMPT", "AGE"], rows)
    return 0


def _cells(container: Any) -> list[str]:
    if container is None:
        return ["-", "-", "-", "-", "-"]
    age_s = max(0, int(time.time() - container.created_at / 1e9))
    state = messages.ContainerState.Name(container.state).removeprefix("CONTAINER_")
    return [container.metadata.name, container.id[:12], state, str(container.metadata.attempt), _age(age_s)]


def _age(seconds: int) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def _pod(pod: Any) -> dict[str, object]:
    return {
        "id": pod.id,
        "name": pod.metadata.name,
        "namespace": pod.metadata.namespace,
        "uid": pod.metadata.uid,
        "attempt": pod.metadata.attempt,
        "state": messages.PodSandboxState.Name(pod.state).removeprefix("SANDBOX_"),
        "created_at_ns": pod.created_at,
    }


def _container(container: Any) -> dict[str, object]:
    return {
        "id": container.id,
        "pod": container.pod_sandbox_id,
        "name": container.metadata.name,
        "attempt": container.metadata.attempt,
        "image": container.image.image,
        "state": messages.ContainerState.Name(container.state).removeprefix("CONTAINER_"),
        "created_at_ns": container.created_at,
    }
