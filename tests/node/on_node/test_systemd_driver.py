"""The systemd cgroup driver: containers are scopes, and what systemd knows of them is what the kernel holds."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crishim.cgroups.hierarchy import detect
from crishim.cri.client import messages as m
from crishim.errors import CrishimError
from tests.node.service import SERVICE, SystemdService, systemctl
from tests.support.server import container_config, pod_config, wait_until

pytestmark = pytest.mark.skipif(
    detect().mode != "v2" or os.geteuid() != 0 or not Path("/run/systemd/system").is_dir(),
    reason="this host has no pure cgroup v2 with systemd, or root is missing",
)

TREE = Path("/sys/fs/cgroup")
#: of a container with 20 ms of CPU in 50, 64 MiB, 50 processes and CPU 0
FILES = {
    "memory.max": str(64 << 20),
    "cpu.max": "20000 50000",
    "pids.max": "50",
    "cpuset.cpus": "0",
    "cpu.weight": "59",
}
PROPERTIES = {
    "MemoryMax": str(64 << 20),
    "CPUQuotaPerSecUSec": "400ms",
    "CPUQuotaPeriodUSec": "50ms",
    "TasksMax": "50",
    "AllowedCPUs": "0",
    "CPUWeight": "59",
    "Delegate": "yes",
    "ActiveState": "active",
}


@pytest.fixture
def server(systemd_server: SystemdService) -> SystemdService:
    return systemd_server


@pytest.fixture
def pod_slice() -> Iterator[str]:
    """Path of a slice as a kubelet makes it for a pod."""
    name = f"kubepods-besteffort-pod{uuid.uuid4().hex[:8]}.slice"
    systemctl("start", name)
    yield f"/kubepods.slice/kubepods-besteffort.slice/{name}"
    systemctl("stop", name)


def run_in(server: SystemdService, parent: str) -> tuple[str, Any]:
    config = pod_config(f"pod-{uuid.uuid4().hex[:8]}", server.logs)
    config.linux.cgroup_parent = parent
    return server.run_pod_config(config), config


def limited() -> Any:
    config = container_config("sleep", "1000")
    resources = config.linux.resources
    resources.memory_limit_in_bytes, resources.cpu_shares = 64 << 20, 512
    resources.cpu_quota, resources.cpu_period, resources.cpuset_cpus = 20000, 50000, "0"
    resources.unified["pids.max"] = "50"
    return config


def scope_of(container: str) -> str:
    return f"crishim-{container}.scope"


def shown(unit: str, *names: str) -> dict[str, str]:
    lines = systemctl("show", unit, *(f"--property={name}" for name in names)).splitlines()
    return dict(line.split("=", 1) for line in lines)


def files(directory: Path) -> dict[str, str]:
    return {name: (directory / name).read_text().strip() for name in FILES}


def stir(unit: str) -> None:
    """What makes systemd write cgroup files anew."""
    systemctl("daemon-reload")
    systemctl("daemon-reexec")
    subprocess.run(
        ["systemd-run", "--quiet", "--wait", "-p", "CPUWeight=50", "-p", "MemoryMax=1G", "true"],
        check=True,
        timeout=600,
    )
    systemctl("set-property", "--runtime", unit, "Description=stirred")


def test_a_container_is_a_scope_below_the_slice_of_its_pod(server: SystemdService, pod_slice: str) -> None:
    sandbox, pod = run_in(server, pod_slice)
    container = server.create_config(sandbox, pod, limited())
    server.start_container(container)
    directory = TREE / pod_slice[1:] / scope_of(container)
    assert files(directory) == FILES
    assert shown(scope_of(container), *PROPERTIES) == PROPERTIES
    assert shown(scope_of(container), "Slice")["Slice"] == pod_slice.rpartition("/")[2]
    make_device = ("sh", "-c", "rm -f /tmp/disk; mknod /tmp/disk b 254 0 && head -c1 /tmp/disk")
    assert b"not permitted" in server.exec(container, *make_device).stderr
    stir(scope_of(container))
    assert files(directory) == FILES
    assert b"not permitted" in server.exec(container, *make_device).stderr
    server.remove_pod(sandbox)
    assert not directory.exists() and server.units() == []
    assert (TREE / pod_slice[1:]).exists(), "the kubelet's slice is the kubelet's to remove"


def test_changed_limits_are_systemds_too(server: SystemdService, pod_slice: str) -> None:
    sandbox, pod = run_in(server, pod_slice)
    container = server.create_config(sandbox, pod, limited())
    server.start_container(container)
    directory = TREE / pod_slice[1:] / scope_of(container)
    resources = m.LinuxContainerResources(memory_limit_in_bytes=96 << 20, cpu_quota=12345, cpu_period=100000)
    request = m.UpdateContainerResourcesRequest(container_id=container, linux=resources)
    server.client.runtime("UpdateContainerResources", request)
    # 12.345 % of a CPU: systemd keeps whole percents, and would write them at its next look
    expected = FILES | {"memory.max": str(96 << 20), "cpu.max": "13000 100000"}
    assert files(directory) == expected
    stir(scope_of(container))
    assert files(directory) == expected
    with pytest.raises(CrishimError):
        refused = m.LinuxContainerResources(memory_limit_in_bytes=128 << 20, cpuset_cpus="4095")
        server.client.runtime(
            "UpdateContainerResources", m.UpdateContainerResourcesRequest(container_id=container, linux=refused)
        )
    stir(scope_of(container))
    assert files(directory) == expected
    server.remove_pod(sandbox)


def test_a_pod_without_a_parent_has_a_slice_of_its_own_that_goes_with_it(server: SystemdService) -> None:
    sandbox, pod = server.run_pod("own")
    container = server.started(sandbox, pod, "sleep", "1000")
    name = f"crishim-{server.instance}-pods-{sandbox}.slice"
    assert f"{name}/{scope_of(container)}" in server.sh(container, "cat /proc/self/mountinfo") or shown(
        scope_of(container), "Slice"
    ) == {"Slice": name}
    assert sorted(server.units()) == sorted([name, scope_of(container)])
    server.remove_pod(sandbox)
    assert server.units() == []


def test_a_scope_goes_when_its_container_ends_by_itself(server: SystemdService, pod_slice: str) -> None:
    sandbox, pod = run_in(server, pod_slice)
    container = server.started(sandbox, pod, "sh", "-c", "exit 7")
    assert server.exited(container).exit_code == 7
    wait_until(lambda: server.units() == [], "no scope")
    server.remove_pod(sandbox)


def test_a_start_that_fails_leaves_no_scope(server: SystemdService, pod_slice: str) -> None:
    sandbox, pod = run_in(server, pod_slice)
    container = server.create(sandbox, pod, "/no/such/program")
    with pytest.raises(CrishimError, match="no such file"):
        server.start_container(container)
    wait_until(lambda: server.units() == [], "no scope")
    server.remove_pod(sandbox)


def test_an_oom_kill_is_told_although_systemd_removes_the_cgroup(server: SystemdService, pod_slice: str) -> None:
    sandbox, pod = run_in(server, pod_slice)
    for attempt in range(3):
        config = container_config("sh", "-c", "exec tail /dev/zero", attempt=attempt)
        config.linux.resources.memory_limit_in_bytes = 24 << 20
        container = server.create_config(sandbox, pod, config)
        server.start_container(container)
        assert server.exited(container).reason == "OOMKilled"
    server.remove_pod(sandbox)


def test_execs_run_below_the_scope(server: SystemdService, pod_slice: str) -> None:
    sandbox, pod = run_in(server, pod_slice)
    container = server.started(sandbox, pod, "sleep", "1000")
    assert server.sh(container, "cat /proc/self/cgroup /proc/1/cgroup") == "0::/exec.0\n0::/\n"
    server.remove_pod(sandbox)


def test_pods_and_monitors_live_through_a_restart(server: SystemdService, pod_slice: str) -> None:
    sandbox, pod = run_in(server, pod_slice)
    container = server.started(sandbox, pod, "sleep", "1000")
    monitors = server.monitors()
    assert monitors
    server.restart()
    assert server.monitors() == monitors
    assert server.sh(container, "echo still here") == "still here\n"
    scope = server.monitors_cgroup.rpartition("/")[2]
    assert shown(scope, "ActiveState")["ActiveState"] == "active"
    service = systemctl("show", SERVICE, "--property=ControlGroup").strip().partition("=")[2]
    names = [Path(f"/proc/{pid}/comm").read_text() for pid in (TREE / service[1:] / "cgroup.procs").read_text().split()]
    assert "crishim-zygote\n" not in names and len(names) == 1
    server.remove_pod(sandbox)


def test_a_parent_that_is_no_slice_is_refused(server: SystemdService) -> None:
    for parent in ("/kubepods/besteffort/pod1", "/kubepods-besteffort-pod1.slice"):
        with pytest.raises(CrishimError, match=r"cgroup_parent: .* is not the path of a systemd slice"):
            run_in(server, parent)


def test_the_kubelet_is_told(server: SystemdService) -> None:
    answer = server.client.runtime("RuntimeConfig", m.RuntimeConfigRequest())
    assert answer.HasField("linux") and answer.linux.cgroup_driver == m.SYSTEMD
    status = server.client.runtime("Status", m.StatusRequest(verbose=True))
    assert '"cgroupDriver": "systemd"' in status.info["config"]


def test_without_a_bus_the_server_says_so(server: SystemdService, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[cgroups]\ndriver = "systemd"\n')
    command = [sys.executable, "-m", "crishim", "serve", "--config", str(config), "--listen", f"unix://{tmp_path}/s"]
    ended = subprocess.run(
        [*command, "--root", str(tmp_path / "root"), "--state", str(tmp_path / "state")],
        env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={tmp_path}/nothing"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode != 0
    assert "systemd: its version: it cannot be reached over D-Bus" in ended.stderr and "Traceback" not in ended.stderr
