"""A server as a systemd service on a node whose root cgroup belongs to systemd, with cgroups made beside it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crishim.cgroups.hierarchy import detect
from crishim.cri.client import messages as m
from tests.node.service import Service, systemctl
from tests.support.server import Server, cgroup_directories, container_config, start_with_demo_image, wait_until

pytestmark = pytest.mark.skipif(
    detect().mode != "v2" or os.geteuid() != 0 or not Path("/run/systemd/system").is_dir(),
    reason="this host has no pure cgroup v2 with systemd, or root is missing",
)

POD_LIMITS = ("memory.max", "cpu.max", "pids.max", "cpuset.cpus")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    server = Service(tmp_path_factory.mktemp("service") / "node")
    try:
        start_with_demo_image(server)
        yield server
    finally:
        server.close()


def limited(**changes: Any) -> Any:
    config = container_config("sleep", "1000", **changes)
    config.linux.resources.memory_limit_in_bytes = 64 << 20
    config.linux.resources.cpu_quota, config.linux.resources.cpu_period = 20000, 50000
    config.linux.resources.cpuset_cpus = "0"
    config.linux.resources.unified["pids.max"] = "50"
    return config


def cgroup_of(server: Server, sandbox: str, container: str) -> Path:
    (tree,) = cgroup_directories(f"/crishim-{server.instance}.slice/pods")
    return next(tree.glob(f"{sandbox}/{container}"))


def limits(directory: Path) -> dict[str, str]:
    return {name: (directory / name).read_text().strip() for name in POD_LIMITS}


def test_systemd_leaves_limits_devices_and_controllers_alone(server: Service) -> None:
    sandbox, pod = server.run_pod("limits")
    container = server.create_config(sandbox, pod, limited())
    server.start_container(container)
    directory = cgroup_of(server, sandbox, container)
    expected = {"memory.max": str(64 << 20), "cpu.max": "20000 50000", "pids.max": "50", "cpuset.cpus": "0"}
    assert limits(directory) == expected
    make_device = ("sh", "-c", "rm -f /tmp/disk; mknod /tmp/disk b 254 0 && head -c1 /tmp/disk")
    assert b"not permitted" in server.exec(container, *make_device).stderr
    enabled = Path("/sys/fs/cgroup/cgroup.subtree_control").read_text().split()
    systemctl("daemon-reload")
    systemctl("daemon-reexec")
    # units that come and go with controllers of their own make systemd look at the root's again
    for _ in range(2):
        subprocess.run(
            [
                "systemd-run",
                "--quiet",
                "--wait",
                "-p",
                "CPUWeight=50",
                "-p",
                "IOWeight=50",
                "-p",
                "MemoryMax=1G",
                "true",
            ],
            check=True,
            timeout=600,
        )
    systemctl("list-units", f"crishim-{server.instance}.slice", "--all")
    assert set(enabled) <= set(Path("/sys/fs/cgroup/cgroup.subtree_control").read_text().split())
    assert limits(directory) == expected
    assert b"not permitted" in server.exec(container, *make_device).stderr
    second = server.create_config(sandbox, pod, limited(name="second"))
    server.start_container(second)
    assert limits(cgroup_of(server, sandbox, second)) == expected
    server.remove_pod(sandbox)
    assert not directory.exists()


def test_pods_live_through_a_restart_of_the_service(server: Service) -> None:
    sandbox, pod = server.run_pod("restart")
    container = server.started(sandbox, pod, "sleep", "1000")
    before = (cgroup_of(server, sandbox, container) / "cgroup.procs").read_text()
    assert before
    server.restart()
    assert (cgroup_of(server, sandbox, container) / "cgroup.procs").read_text() == before
    assert server.status(container).state == m.CONTAINER_RUNNING
    assert server.sh(container, "echo still here") == "still here\n"
    server.remove_pod(sandbox)
    wait_until(lambda: not server.left_behind(), "an empty node")


def test_a_container_sees_its_own_cgroup_as_the_root(server: Service) -> None:
    sandbox, pod = server.run_pod("cgroupns")
    container = server.started(sandbox, pod, "sleep", "1000")
    assert server.sh(container, "cat /proc/1/cgroup") == "0::/\n"
    assert "memory.max" in server.sh(container, "ls /sys/fs/cgroup")
    assert server.exec(container, "sh", "-c", "echo 1 > /sys/fs/cgroup/cgroup.freeze").exit_code != 0
    server.remove_pod(sandbox)


def test_stats_have_what_only_v2_can_tell(server: Service) -> None:
    sandbox, pod = server.run_pod("stats")
    container = server.started(sandbox, pod, "sh", "-c", "while :; do :; done")
    request = m.ContainerStatsRequest(container_id=container)

    def used() -> Any:
        stats = server.client.runtime("ContainerStats", request).stats
        return stats if stats.cpu.usage_core_nano_seconds.value and stats.memory.usage_bytes.value else None

    stats = wait_until(used, "a sample")
    assert stats.memory.working_set_bytes.value > 0
    if Path("/proc/pressure/cpu").exists():
        assert stats.cpu.HasField("psi") and stats.memory.HasField("psi") and stats.io.HasField("psi")
    server.remove_pod(sandbox)
