"""Events, usage, metrics, resizes and stories of real containers, through the socket of a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crishim.cri.client import Client
from crishim.cri.client import messages as m
from crishim.errors import InvalidSpec, Unavailable, WrongState
from tests.support.faults import server_with_image
from tests.support.server import NEEDS_SERVER, Server, container_config, pod_config, wait_until

pytestmark = pytest.mark.skipif(not NEEDS_SERVER, reason="a server needs root, nsenter and ip")

#: what the names of `ListPodSandboxMetrics` are compared with, those that some kernel lacks aside
EVERYWHERE = {
    "cpu_cfs_periods_total",
    "cpu_cfs_throttled_periods_total",
    "cpu_cfs_throttled_seconds_total",
    "cpu_system_seconds_total",
    "cpu_usage_seconds_total",
    "cpu_user_seconds_total",
    "file_descriptors",
    "fs_inodes_free",
    "fs_inodes_total",
    "fs_limit_bytes",
    "fs_usage_bytes",
    "last_seen",
    "memory_cache",
    "memory_failcnt",
    "memory_failures_total",
    "memory_mapped_file",
    "memory_rss",
    "memory_usage_bytes",
    "memory_working_set_bytes",
    "oom_events_total",
    "processes",
    "sockets",
    "spec_cpu_period",
    "spec_cpu_shares",
    "spec_memory_limit_bytes",
    "spec_memory_reservation_limit_bytes",
    "spec_memory_swap_limit_bytes",
    "start_time_seconds",
    "threads",
    "threads_max",
    "ulimits_soft",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("node")
    profiles = directory / "profiles"
    profiles.mkdir()
    containers = f'seccomp_profile_dir = "{profiles}"\n\n[runtimes.fast]'
    with server_with_image(directory / "server", config=f"[containers]\n{containers}\n") as server:
        yield server


def update(server: Server, container: str, **limits: Any) -> None:
    request = m.UpdateContainerResourcesRequest(container_id=container, linux=m.LinuxContainerResources(**limits))
    server.client.runtime("UpdateContainerResources", request)


def test_a_life_is_told_in_order_to_every_listener(server: Server) -> None:
    with Client(server.address) as other:
        streams = [client.stream("GetContainerEvents", m.GetEventsRequest()) for client in (server.client, other)]
        told: list[list[tuple[str, int]]] = []
        sandbox, pod = server.run_pod("events")
        container = server.create(sandbox, pod, "sh", "-c", "exit 3")
        server.start_container(container)
        server.exited(container)
        server.remove(container)
        server.stop_pod(sandbox)
        server.remove_pod(sandbox)
        for stream in streams:
            events = []
            while (sandbox, m.CONTAINER_DELETED_EVENT) not in events:
                event = next(stream)
                if event.pod_sandbox_status.id != sandbox:
                    continue
                events.append((event.container_id, event.container_event_type))
                if events[-1] == (container, m.CONTAINER_STOPPED_EVENT):
                    (status,) = event.containers_statuses
                    assert (status.state, status.exit_code) == (m.CONTAINER_EXITED, 3)
            told.append(events)
        del streams, stream
    created, started, stopped, deleted = range(4)
    assert told[0] == told[1]
    assert told[0] == [
        *((sandbox, kind) for kind in (created, started)),
        *((container, kind) for kind in (created, started, stopped, deleted)),
        *((sandbox, kind) for kind in (stopped, deleted)),
    ]


def test_lists_arrive_in_pieces_too(server: Server) -> None:
    sandbox, pod = server.run_pod("pieces")
    container = server.started(sandbox, pod)
    pods = [
        each
        for answer in server.client.stream("StreamPodSandboxes", m.StreamPodSandboxesRequest())
        for each in answer.pod_sandboxes
    ]
    assert sandbox in [each.id for each in pods]
    containers = [
        each
        for answer in server.client.stream("StreamContainers", m.StreamContainersRequest())
        for each in answer.containers
    ]
    assert containers == list(server.client.runtime("ListContainers", m.ListContainersRequest()).containers)
    stats = [
        each
        for answer in server.client.stream("StreamContainerStats", m.StreamContainerStatsRequest())
        for each in answer.container_stats
    ]
    assert container in [each.attributes.id for each in stats]
    server.remove_pod(sandbox)


def test_usage_of_a_pod_counts_its_traffic_its_processes_and_its_writes(server: Server) -> None:
    sandbox, pod = server.run_pod("usage")
    script = "dd if=/dev/zero of=/written bs=1024 count=256 2>/dev/null; echo done; exec sleep 1000"
    container = server.started(sandbox, pod, "sh", "-c", script)
    wait_until(lambda: "done" in (server.logs / "usage" / "main" / "0.log").read_text(), "the writes")
    request = m.PodSandboxStatsRequest(pod_sandbox_id=sandbox)
    stats = server.client.runtime("PodSandboxStats", request).stats
    assert stats.attributes.metadata.name == "usage"
    assert stats.linux.cpu.timestamp > 0
    assert stats.linux.cpu.usage_core_nano_seconds.value > 0
    assert stats.linux.memory.working_set_bytes.value > 0
    assert stats.linux.process.process_count.value == 1
    assert stats.linux.network.default_interface.name == "eth0"
    assert stats.linux.network.timestamp > 0
    (usage,) = stats.linux.containers
    assert usage.attributes.id == container
    assert usage.writable_layer.used_bytes.value >= 256 << 10
    assert usage.writable_layer.inodes_used.value >= 1
    assert Path(usage.writable_layer.fs_id.mountpoint).is_dir()
    listed = server.client.runtime("ListPodSandboxStats", m.ListPodSandboxStatsRequest()).stats
    assert sandbox in [each.attributes.id for each in listed]
    server.stop_pod(sandbox)
    with pytest.raises(Unavailable):
        server.client.runtime("PodSandboxStats", request)
    server.remove_pod(sandbox)


def test_metrics_of_a_container_are_described_and_complete(server: Server) -> None:
    sandbox, pod = server.run_pod("metrics")
    container = server.started(sandbox, pod, "sh", "-c", "sleep 1000 & exec sleep 1000")
    described = server.client.runtime("ListMetricDescriptors", m.ListMetricDescriptorsRequest()).descriptors
    keys = {each.name: list(each.label_keys) for each in described}
    assert len(keys) == len(described)

    def ours() -> Any:
        answer = server.client.runtime("ListPodSandboxMetrics", m.ListPodSandboxMetricsRequest())
        (found,) = [each for each in answer.pod_metrics if each.pod_sandbox_id == sandbox]
        return found

    found = ours()
    (of_container,) = found.container_metrics
    assert of_container.container_id == container
    for metric in (*found.metrics, *of_container.metrics):
        assert len(metric.label_values) == len(keys[metric.name])
    names = {metric.name.removeprefix("container_") for metric in of_container.metrics}
    assert names >= EVERYWHERE
    values = {metric.name.removeprefix("container_"): metric.value.value for metric in of_container.metrics}
    assert values["processes"] == 2
    assert values["file_descriptors"] >= 2
    assert values["spec_cpu_shares"] == 1024
    network = {metric.name for metric in found.metrics if list(metric.label_values)[-1] == "eth0"}
    assert len(network) == 8
    server.remove_pod(sandbox)


def test_a_resize_that_the_kernel_refuses_changes_nothing(server: Server) -> None:
    sandbox, pod = server.run_pod("resize")
    limits = m.LinuxContainerResources(memory_limit_in_bytes=64 << 20, cpu_period=50_000, cpu_quota=20_000)
    config = container_config()
    config.linux.resources.CopyFrom(limits)
    container = server.create_config(sandbox, pod, config)
    server.start_container(container)
    update(server, container, memory_limit_in_bytes=96 << 20, cpu_quota=40_000)
    linux = server.status(container).resources.linux
    assert (linux.memory_limit_in_bytes, linux.cpu_quota, linux.cpu_period) == (96 << 20, 40_000, 50_000)
    assert _in_force(server, container) == (96 << 20, 40_000)
    with pytest.raises(WrongState):
        update(server, container, memory_limit_in_bytes=128 << 20, cpu_quota=30_000, cpuset_cpus="9999")
    assert server.status(container).resources.linux == linux
    assert _in_force(server, container) == (96 << 20, 40_000)
    with pytest.raises(WrongState, match="uses"):
        update(server, container, memory_limit_in_bytes=4096)
    server.remove_pod(sandbox)


def _in_force(server: Server, container: str) -> tuple[int, int]:
    """(memory limit, quota) as the container's cgroup has them."""
    directories = server.container_cgroups(container)

    def read(*names: str) -> str:
        files = [directory / name for directory in directories for name in names]
        return next(file.read_text() for file in files if file.exists())

    quota = read("cpu.max", "cpu.cfs_quota_us").split()[0]
    return int(read("memory.max", "memory.limit_in_bytes")), int(quota)


def test_the_sums_of_a_pod_are_shown_after_a_resize(server: Server) -> None:
    sandbox, _ = server.run_pod("sums")
    request = m.UpdatePodSandboxResourcesRequest(
        pod_sandbox_id=sandbox, resources=m.LinuxContainerResources(cpu_shares=512)
    )
    server.client.runtime("UpdatePodSandboxResources", request)
    status = m.PodSandboxStatusRequest(pod_sandbox_id=sandbox, verbose=True)
    info = json.loads(server.client.runtime("PodSandboxStatus", status).info["info"])
    assert info["resources"] == {"cpu_shares": "512"}
    server.remove_pod(sandbox)


def test_the_story_of_a_stopped_container_names_signal_and_sender(server: Server) -> None:
    sandbox, pod = server.run_pod("story")
    container = server.started(sandbox, pod)
    server.stop(container, timeout=0)
    (told,) = json.loads(server.client.why(container[:12]))["containers"]
    assert (told["signal"], told["sender"], told["exit_code"]) == ("SIGKILL", "stop", 137)
    assert told["signal_to_exit_s"] < 20
    assert [each["what"].split()[0] for each in told["moments"]] == ["created", "started", "we", "ended:"]
    shown = _crishim(server, "why", "story")
    assert "killed by SIGKILL, sender: stop" in shown
    server.remove_pod(sandbox)


def test_a_stop_that_waits_is_shown_as_under_way(server: Server) -> None:
    sandbox, pod = server.run_pod("slow")
    container = server.started(sandbox, pod, "sh", "-c", "trap '' TERM; echo set; while :; do sleep 1; done")
    wait_until(lambda: "set" in (server.logs / "slow" / "main" / "0.log").read_text(), "the trap")
    command = [sys.executable, "-c", _STOP, server.address, container]
    with subprocess.Popen(command) as stopping:
        found = wait_until(lambda: _under_way(server, container), "the operation")
        assert found["stage"] == "stop_container.signalled"
        assert "grace" in found["waits_for"]
        assert container in _crishim(server, "stuck")
        server.stop(container, timeout=0)
        assert stopping.wait(20) == 0
    assert _under_way(server, container) is None
    server.remove_pod(sandbox)


_STOP = """
import sys
from crishim.cri.client import Client, messages
with Client(sys.argv[1]) as client:
    client.runtime("StopContainer", messages.StopContainerRequest(container_id=sys.argv[2], timeout=600))
"""


def _under_way(server: Server, container: str) -> Any:
    info = server.client.runtime("Status", m.StatusRequest(verbose=True)).info
    found = [each for each in json.loads(info["operations"]) if each["operation"] == f"StopContainer {container}"]
    return found[0] if found and found[0]["stage"] == "stop_container.signalled" else None


def _crishim(server: Server, *words: str) -> str:
    command = [sys.executable, "-m", "crishim", *words, "--address", server.address]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def test_the_verbose_status_names_the_file_system_of_the_roots(server: Server) -> None:
    config = json.loads(server.client.runtime("Status", m.StatusRequest(verbose=True)).info["config"])
    assert Path(config["stateDir"]).parent == server.root
    assert Path(config["stateDir"]).is_dir()


def test_a_pod_runs_with_the_handlers_that_status_shows_and_no_other(server: Server) -> None:
    status = server.client.runtime("Status", m.StatusRequest())
    assert [each.name for each in status.runtime_handlers] == ["", "crishim", "fast"]
    assert len({each.features.SerializeToString() for each in status.runtime_handlers}) == 1, (
        "they differ in options alone"
    )
    config = pod_config("handled", server.logs)
    request = m.RunPodSandboxRequest(config=config, runtime_handler="fast")
    sandbox = server.client.runtime("RunPodSandbox", request).pod_sandbox_id
    (listed,) = server.client.runtime("ListPodSandbox", m.ListPodSandboxRequest()).items
    assert listed.runtime_handler == "fast"
    server.remove_pod(sandbox)
    with pytest.raises(InvalidSpec, match="runtime_handler"):
        server.client.runtime("RunPodSandbox", m.RunPodSandboxRequest(config=config, runtime_handler="slow"))


def test_a_seccomp_profile_outside_of_the_directory_is_refused(server: Server, tmp_path: Path) -> None:
    profiles = server.directory.parent / "profiles"
    outside = tmp_path / "open.json"
    for path in (outside, profiles / "inside.json"):
        path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW"}))
    (profiles / "link.json").symlink_to(outside)
    sandbox, pod = server.run_pod("profiles")

    def create(reference: str, name: str) -> str:
        config = container_config(name=name)
        config.linux.security_context.seccomp.profile_type = m.SecurityProfile.Localhost
        config.linux.security_context.seccomp.localhost_ref = reference
        return server.create_config(sandbox, pod, config)

    server.start_container(create(str(profiles / "inside.json"), "absolute"))
    for index, reference in enumerate((str(outside), str(profiles / "link.json"), f"{profiles}/../outside.json")):
        with pytest.raises(InvalidSpec, match="localhost_ref"):
            create(reference, f"refused{index}")
    server.remove_pod(sandbox)
