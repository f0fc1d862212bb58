"""`crishim ps`: pods, their containers, and the processes that watch over them."""

from __future__ import annotations

import argparse
import time
from typing import Any

from crishim.app.client import messages
from crishim.cli.output import add_client_arguments, connect, print_json, print_table
from crishim.errors import Unsupported

_MONITOR_COLUMNS = ["POD", "POD ID", "PID", "VERSION", "WIRE", "AGE", "MEMORY"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which of them."""
    parser.add_argument("-a", "--all", action="store_true", help="also what does not run")
    parser.add_argument("--monitors", action="store_true", help="a line per pod about its monitor")
    add_client_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """A line per container, and one per pod without any."""
    with connect(arguments) as client:
        sandboxes = client.runtime("ListPodSandbox", messages.ListPodSandboxRequest()).items
        containers = client.runtime("ListContainers", messages.ListContainersRequest()).containers
        try:
            monitors = {each.pod_sandbox_id: each for each in client.monitors()}
        except Unsupported:  # the server is older than this command
            monitors = {}
    shown = [each for each in containers if arguments.all or each.state == messages.CONTAINER_RUNNING]
    pods = [each for each in sandboxes if arguments.all or each.state == messages.SANDBOX_READY]
    if arguments.json:
        pod_values = [{**_pod(each), "monitor": _monitor(monitors.get(each.id))} for each in pods]
        print_json({"pods": pod_values, "containers": [_container(each) for each in shown]})
        return 0
    if arguments.monitors:
        print_table(_MONITOR_COLUMNS, [[*_names(each), *_monitor_cells(monitors.get(each.id))] for each in pods])
        return 0
    members: dict[str, list[Any]] = {}
    for container in shown:
        members.setdefault(container.pod_sandbox_id, []).append(container)
    rows = []
    for pod in pods:
        version = _monitor_cells(monitors.get(pod.id))[1]
        for container in members.pop(pod.id, [None]):
            rows.append([*_names(pod), *_cells(container), version])
    print_table(["POD", "POD ID", "CONTAINER", "ID", "STATE", "ATTEMPT", "AGE", "MONITOR"], rows)
    return 0


def _names(pod: Any) -> list[str]:
    return [f"{pod.metadata.namespace}/{pod.metadata.name}", pod.id[:12]]


def _cells(container: Any) -> list[str]:
    if container is None:
        return ["-", "-", "-", "-", "-"]
    state = messages.ContainerState.Name(container.state).removeprefix("CONTAINER_")
    return [
        container.metadata.name,
        container.id[:12],
        state,
        str(container.metadata.attempt),
        _age(container.created_at),
    ]


def _monitor_cells(monitor: Any) -> list[str]:
    """Process id, version, wire version, age, memory."""
    if monitor is None:
        return ["-", "-", "-", "-", "-"]
    memory = f"{monitor.memory_bytes / (1 << 20):.1f} MiB" if monitor.memory_bytes else "-"
    return [
        str(monitor.pid),
        monitor.version or "-",
        str(monitor.wire_version or "-"),
        _age(monitor.began_at),
        memory,
    ]


def _age(since_ns: int) -> str:
    seconds = max(0, int(time.time() - since_ns / 1e9))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def _monitor(monitor: Any) -> dict[str, object] | None:
    """None: the server is not connected to a monitor of the pod."""
    if monitor is None:
        return None
    return {
        "pid": monitor.pid,
        "version": monitor.version,
        "wire_version": monitor.wire_version,
        "began_at_ns": monitor.began_at,
        "memory_bytes": monitor.memory_bytes or None,
    }


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
