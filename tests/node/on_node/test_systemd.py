"""A server as a systemd service on a node whose root cgroup belongs to systemd, and AppArmor in its pods."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crishim.cgroups.hierarchy import detect
from crishim.cri.client import messages as m
from crishim.errors import CrishimError
from crishim.images.demo import build_demo_image
from tests.node.service import Service, systemctl
from tests.support.server import Server, cgroup_directories, container_config, load_demo_image, wait_until

pytestmark = pytest.mark.skipif(
    detect().mode != "v2" or os.geteuid() != 0 or not Path("/run/systemd/system").is_dir(),
    reason="this host has no pure cgroup v2 with systemd, or root is missing",
)

PROFILE = "crishim-node-test"
POD_LIMITS = ("memory.max", "cpu.max", "pids.max", "cpuset.cpus")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    server = Service(tmp_path_factory.mktemp("service") / "node")
    try:
        server.start()
        build_demo_image(server.directory / "demo.tar")
        load_demo_image(server, server.directory / "demo.tar")
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


@pytest.fixture
def profile(tmp_path: Path) -> Iterator[str]:
    """A loaded AppArmor profile that lets a container do all but write below /tmp/denied."""
    if not Path("/sys/kernel/security/apparmor/profiles").exists():
        pytest.skip("AppArmor is not enabled")
    source = tmp_path / "profile"
    rules = "file, capability, network, signal, unix, deny /tmp/denied/** w,"
    source.write_text(f"profile {PROFILE} flags=(attach_disconnected,mediate_deleted) {{ {rules} }}\n")
    subprocess.run(["apparmor_parser", "--replace", "--skip-cache", str(source)], check=True, timeout=600)
    yield PROFILE
    subprocess.run(["apparmor_parser", "--remove", str(source)], check=True, timeout=600)


def with_apparmor(kind: Any, reference: str = "") -> Any:
    config = container_config("sleep", "1000")
    config.linux.security_context.apparmor.CopyFrom(m.SecurityProfile(profile_type=kind, localhost_ref=reference))
    config.linux.security_context.no_new_privs = True  # which must not keep the profile from coming into force
    return config


def test_a_loaded_apparmor_profile_confines_init_and_execs(server: Service, profile: str) -> None:
    sandbox, pod = server.run_pod("apparmor")
    container = server.create_config(sandbox, pod, with_apparmor(m.SecurityProfile.Localhost, profile))
    server.start_container(container)
    assert server.sh(container, "cat /proc/1/attr/current /proc/self/attr/current") == f"{profile} (enforce)\n" * 2
    script = "mkdir -p /tmp/denied; echo x > /tmp/allowed && ! echo x > /tmp/denied/file"
    assert server.exec(container, "sh", "-c", script).exit_code == 0
    server.remove_pod(sandbox)


def test_a_profile_that_is_not_loaded_is_refused(server: Service, profile: str) -> None:
    sandbox, pod = server.run_pod("missing")
    with pytest.raises(CrishimError, match="no-such-profile"):
        container = server.create_config(
            sandbox, pod, with_apparmor(m.SecurityProfile.Localhost, "localhost/no-such-profile")
        )
        server.start_container(container)
    server.remove_pod(sandbox)


def started_with(server: Service, sandbox: str, pod: Any, config: Any) -> str:
    container = server.create_config(sandbox, pod, config)
    server.start_container(container)
    return container


def test_containers_without_a_profile_of_their_own_have_ours(server: Service) -> None:
    sandbox, pod = server.run_pod("default")
    for number, kind in enumerate((m.SecurityProfile.RuntimeDefault, None)):
        config = container_config("sleep", "1000") if kind is None else with_apparmor(kind)
        config.metadata.name = f"c{number}"
        container = started_with(server, sandbox, pod, config)
        profiles = server.sh(container, "cat /proc/1/attr/current /proc/self/attr/current")
        assert profiles == "crishim-default (enforce)\n" * 2, "init and exec"
    server.remove_pod(sandbox)


def test_an_unconfined_container_has_no_profile(server: Service) -> None:
    sandbox, pod = server.run_pod("unconfined")
    container = started_with(server, sandbox, pod, with_apparmor(m.SecurityProfile.Unconfined))
    assert server.sh(container, "cat /proc/1/attr/current").strip() == "unconfined"
    server.remove_pod(sandbox)


#: (what is done, by a root with all capabilities whose /proc and /sys are writable; how it ends without the profile)
FORBIDDEN = (
    "echo h > /proc/sysrq-trigger",
    "echo 1 > /proc/sys/vm/drop_caches",
    "cat /proc/sys/kernel/core_pattern > /proc/sys/kernel/core_pattern",
    "cat /sys/kernel/mm/ksm/run > /sys/kernel/mm/ksm/run",
    "cat /sys/kernel/security/lsm",
    "mount -t tmpfs tmpfs /mnt",
)


def open_container(name: str, profile: Any) -> Any:
    """All capabilities, no filter, nothing masked or read-only: AppArmor alone stands before the node."""
    config = with_apparmor(profile)
    config.metadata.name = name
    security = config.linux.security_context
    security.no_new_privs = False
    security.capabilities.add_capabilities.append("ALL")
    security.seccomp.profile_type = m.SecurityProfile.Unconfined
    del security.masked_paths[:], security.readonly_paths[:]
    config.mounts.add(host_path="/sys", container_path="/sys")
    return config


def test_the_default_profile_alone_keeps_a_root_from_the_node(server: Service) -> None:
    sandbox, pod = server.run_pod("open")
    free = started_with(server, sandbox, pod, open_container("free", m.SecurityProfile.Unconfined))
    confined = started_with(server, sandbox, pod, open_container("confined", m.SecurityProfile.RuntimeDefault))
    for script in FORBIDDEN:
        without = server.exec(free, "sh", "-c", f"mkdir -p /mnt; {script}")
        assert without.exit_code == 0, (script, without.stderr)
        within = server.exec(confined, "sh", "-c", f"mkdir -p /mnt; {script}")
        assert within.exit_code != 0 and b"denied" in within.stderr, (script, within.stderr)
    allowed = (
        "echo x > /tmp/file && kill -0 1 && echo $$ > /sys/fs/cgroup/cgroup.procs; cat /proc/1/environ > /dev/null"
    )
    ended = server.exec(confined, "sh", "-c", allowed)
    assert ended.exit_code == 0, ended.stderr
    server.remove_pod(sandbox)


def test_a_default_profile_that_was_unloaded_is_loaded_again(server: Service) -> None:
    remove = ["apparmor_parser", "--remove", str(server.root / "apparmor/crishim-default")]
    subprocess.run(remove, check=True, timeout=600)
    sandbox, pod = server.run_pod("reloaded")
    container = started_with(server, sandbox, pod, container_config("sleep", "1000"))
    assert server.sh(container, "cat /proc/1/attr/current") == "crishim-default (enforce)\n"
    server.remove_pod(sandbox)
