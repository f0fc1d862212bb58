"""Limits where every controller is in the v2 tree: what the kernel holds, refuses and counts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crishim.cgroups import effects
from crishim.cgroups.hierarchy import detect
from crishim.cgroups.plan import plan
from crishim.model.resources import Resources
from tests.support.server import wait_until

NODE = detect()
ROOT = f"/crishim-test-{os.getpid()}"

pytestmark = pytest.mark.skipif(
    NODE.mode != "v2" or os.geteuid() != 0, reason="this host has no pure cgroup v2, or root is missing"
)


@pytest.fixture
def path() -> Iterator[str]:
    """A cgroup two levels below the root; killed and removed afterwards."""
    yield ROOT + "/pod/container"
    effects.kill(NODE, ROOT)
    wait_until(lambda: effects.remove(NODE, ROOT, tries=1), "removal of the cgroups")


def value(path: str, name: str) -> str:
    return Path(os.fsdecode(NODE.mount) + path, name).read_text().strip()


def set_limits(path: str, **fields: object) -> None:
    effects.apply(NODE, plan(path, Resources(**fields), None, NODE))  # type: ignore[arg-type]


def create(path: str, **fields: object) -> None:
    effects.create(NODE, plan(path, Resources(**fields), None, NODE))  # type: ignore[arg-type]


def inside(path: str, script: str) -> subprocess.CompletedProcess[str]:
    """A shell that enters the cgroup first."""
    procs = f"{os.fsdecode(NODE.mount)}{path}/cgroup.procs"
    return subprocess.run(["sh", "-c", f"echo 0 > {procs}; {script}"], capture_output=True, text=True, timeout=120)


def test_limits_reach_the_kernel(path: str) -> None:
    create(
        path,
        cpu_shares=512,
        cpu_quota_us=20000,
        cpu_period_us=50000,
        memory_limit_bytes=64 << 20,
        memory_swap_limit_bytes=96 << 20,
        cpuset_cpus="0",
        cpuset_mems="0",
        pids_limit=17,
        unified={"memory.high": str(48 << 20), "memory.oom.group": "1"},
    )
    assert {name: value(path, name) for name in ("cpu.max", "cpu.weight", "pids.max", "memory.high")} == {
        "cpu.max": "20000 50000",
        "cpu.weight": "59",
        "pids.max": "17",
        "memory.high": str(48 << 20),
    }
    assert (value(path, "memory.max"), value(path, "memory.oom.group")) == (str(64 << 20), "1")
    assert (value(path, "cpuset.cpus"), value(path, "cpuset.mems")) == ("0", "0")
    assert value(path, "cgroup.subtree_control") == "", "processes may live in the container's cgroup itself"
    assert "Cpus_allowed_list:\t0\n" in inside(path, "cat /proc/self/status").stdout


def test_a_refused_update_sets_all_values_back(path: str) -> None:
    create(path, pids_limit=17, memory_limit_bytes=64 << 20, cpu_shares=512, cpuset_cpus="0")
    with pytest.raises(OSError) as error:
        set_limits(path, pids_limit=20, memory_limit_bytes=128 << 20, cpu_shares=100, cpuset_cpus="4095")
    assert b"cpuset.cpus" in os.fsencode(error.value.filename)
    assert (value(path, "pids.max"), value(path, "memory.max")) == ("17", str(64 << 20))
    assert (value(path, "cpu.weight"), value(path, "cpuset.cpus")) == ("59", "0")


def test_the_limit_of_processes_holds(path: str) -> None:
    create(path, pids_limit=3)
    ended = inside(path, "sleep 5 & sleep 5 & sleep 5 & sleep 5 & kill $(jobs -p)")
    assert "fork" in ended.stderr.lower(), ended
    assert int(value(path, "pids.events").split()[1]) >= 1


def test_oom_kills_of_cgroups_below_count(path: str) -> None:
    create(path, memory_limit_bytes=16 << 20, memory_swap_limit_bytes=16 << 20)
    effects.create(NODE, plan(path + "/inner", Resources(), None, NODE))
    code = "b = bytearray(64 << 20); b[::4096] = bytes(len(b) // 4096)"
    ended = inside(path + "/inner", f"exec {sys.executable} -c '{code}'")
    assert ended.returncode == -signal.SIGKILL
    assert effects.oom_kills(NODE, path) == 1
    assert effects.oom_kills(NODE, ROOT) == 1
