"""What belongs to nobody is found and freed where containers are scopes: units go with their cgroups."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crishim.cgroups.hierarchy import detect
from crishim.spec.cgroup import container_cgroup, pod_cgroup
from tests.node.service import SystemdService, systemctl
from tests.support.server import pod_config

pytestmark = pytest.mark.skipif(
    detect().mode != "v2" or os.geteuid() != 0 or not Path("/run/systemd/system").is_dir(),
    reason="this host has no pure cgroup v2 with systemd, or root is missing",
)

TREE = Path("/sys/fs/cgroup")
GONE = "0" * 63


@pytest.fixture
def server(systemd_server: SystemdService) -> SystemdService:
    return systemd_server


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """What a test has started in scopes; each is reaped, as its parent does."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for each in started:
        each.kill()
        each.wait()


def process_in_scope(path: str) -> subprocess.Popen[bytes]:
    """A process in a new scope at a cgroup path, whose slice systemd makes with it."""
    slice_name, name = path.split("/")[-2:]
    command = ["systemd-run", "--quiet", "--scope", f"--unit={name}", f"--slice={slice_name}", "sleep", "1000"]
    process = subprocess.Popen(command)
    while not (TREE / path[1:] / "cgroup.procs").exists():
        assert process.poll() is None
    return process


def collected(server: SystemdService, *, dry_run: bool) -> list[tuple[str, str, str]]:
    report: dict[str, Any] = json.loads(server.client.collect_garbage(dry_run=dry_run))
    assert report["problems"] == []
    return sorted((each["kind"], each["name"], each["outcome"]) for each in report["leftovers"])


def test_scopes_and_slices_of_nobody_are_freed_with_their_units(
    server: SystemdService, processes: list[subprocess.Popen[bytes]]
) -> None:
    sandbox, pod = server.run_pod("lives")
    container = server.started(sandbox, pod, "sleep", "1000")
    dead_pod = pod_cgroup("", server.cgroup, f"{GONE}1", server.driver)
    in_dead_pod = container_cgroup(dead_pod, f"{GONE}2", server.driver)
    in_living_pod = server.container_cgroup(sandbox, f"{GONE}3")
    processes += [process_in_scope(in_dead_pod), process_in_scope(in_living_pod)]
    (TREE / in_living_pod[1:] / "cgroup.freeze").write_text("1")
    paths = sorted([dead_pod, in_living_pod])

    assert collected(server, dry_run=True) == [("cgroup", path, "found") for path in paths]
    reaper = threading.Thread(target=lambda: [each.wait() for each in processes])
    reaper.start()
    assert collected(server, dry_run=False) == [("cgroup", path, "freed") for path in paths]
    reaper.join(600)
    assert [each.returncode for each in processes] == [-9, -9]
    assert not any((TREE / path[1:]).exists() for path in (dead_pod, in_dead_pod, in_living_pod))
    assert server.exec(container, "true").exit_code == 0
    assert collected(server, dry_run=True) == []
    server.remove_pod(sandbox)
    assert server.units() == []


def test_a_scope_in_the_kubelets_slice_is_freed_and_others_there_are_not(
    server: SystemdService, processes: list[subprocess.Popen[bytes]]
) -> None:
    parent = "/kubepods.slice/kubepods-podgarbage.slice"
    systemctl("start", "kubepods-podgarbage.slice")
    config = pod_config("beside", server.logs)
    config.linux.cgroup_parent = parent
    sandbox = server.run_pod_config(config)
    (server.root / "containers" / f"{GONE}4").mkdir(parents=True)  # by which the id is known as one of ours
    ours = container_cgroup(parent, f"{GONE}4", server.driver)
    processes += [process_in_scope(ours), process_in_scope(f"{parent}/cri-containerd-{GONE}5.scope")]
    reaper = threading.Thread(target=processes[0].wait)
    reaper.start()
    expected = [("cgroup", ours, "freed"), ("rootfs", f"{server.root}/containers/{GONE}4", "freed")]
    assert collected(server, dry_run=False) == expected
    reaper.join(600)
    assert processes[1].poll() is None
    server.remove_pod(sandbox)
    assert (TREE / parent[1:]).exists(), "the kubelet's slice is the kubelet's to remove"
    processes[1].kill()
    processes[1].wait()
    systemctl("stop", "kubepods-podgarbage.slice")
