"""The cgroup effects on the real trees of this node: limits, membership, freezing, killing, removal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from crishim.cgroups import effects, stats
from crishim.cgroups.devices import DeviceTable
from crishim.cgroups.hierarchy import Hierarchy, detect
from crishim.cgroups.plan import plan
from crishim.cgroups.planned import CgroupPlan
from crishim.errors import InvalidSpec
from crishim.model.process import DeviceRule
from crishim.model.resources import Resources

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

ROOT = f"/crishim-test-{os.getpid()}"
NODE = detect()
#: the v1 trees of a hybrid node, seen as a v1 node sees them
V1 = Hierarchy("v1", b"", {name: tree for name, tree in NODE.controllers.items() if tree != NODE.mount})

needs_v1 = pytest.mark.skipif(NODE.mode == "v2", reason="this host has no cgroup v1")
needs_v2 = pytest.mark.skipif(not NODE.mount, reason="this host has no cgroup v2 tree")
views = pytest.mark.parametrize(
    "h", [pytest.param(NODE, id=NODE.mode)] + ([pytest.param(V1, id="as-v1")] if V1.controllers else [])
)


@pytest.fixture
def path() -> Iterator[str]:
    """A cgroup path of this test; whatever is there afterwards is killed and removed."""
    yield ROOT + "/pod/container"
    for h in (NODE, V1) if V1.controllers else (NODE,):
        effects.thaw(h, ROOT)
        effects.kill(h, ROOT)
    wait_until(lambda: effects.remove(NODE, ROOT, tries=1))


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


@contextmanager
def process(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(argv or ("sleep", "600"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def file(controller: str, path: str, name: str) -> Path:
    return Path(os.fsdecode(NODE.controllers[controller]) + path) / name


NO_LIMITS = Resources()
#: makes the pages of the bytearray b resident
TOUCH = "b[::4096] = bytes(len(b) // 4096)"


def create(path: str, resources: Resources = NO_LIMITS, h: Hierarchy = NODE) -> None:
    effects.create(h, plan(path, resources, None, h))


@views
def test_every_tree_gets_the_directory_and_loses_it(h: Hierarchy, path: str) -> None:
    create(path, h=h)
    assert all(os.path.isdir(tree + os.fsencode(path)) for tree in h.trees())
    assert effects.remove(h, ROOT)
    assert not any(os.path.exists(tree + os.fsencode(ROOT)) for tree in h.trees())
    assert effects.remove(h, ROOT), "removing twice is fine"


@pytest.mark.parametrize("hand_down", [True, False])
@views
def test_a_cgroup_below_one_with_processes_takes_processes_too(h: Hierarchy, hand_down: bool, path: str) -> None:
    with process() as above, process() as below:
        create(path, h=h)
        effects.join(h, path, above.pid)
        effects.create(h, CgroupPlan(f"{path}/below", []), hand_down=hand_down)
        effects.join(h, f"{path}/below", below.pid)
        assert effects.pids(h, f"{path}/below") == [below.pid]


@needs_v1
def test_limits_reach_the_kernel(path: str) -> None:
    create(
        path,
        Resources(
            cpu_shares=512,
            cpu_quota_us=20000,
            cpu_period_us=50000,
            memory_limit_bytes=64 << 20,
            cpuset_cpus="0",
            cpuset_mems="0",
            pids_limit=17,
        ),
    )
    assert file("cpu", path, "cpu.shares").read_text() == "512\n"
    assert file("cpu", path, "cpu.cfs_quota_us").read_text() == "20000\n"
    assert file("cpu", path, "cpu.cfs_period_us").read_text() == "50000\n"
    assert file("memory", path, "memory.limit_in_bytes").read_text() == f"{64 << 20}\n"
    assert file("memory", path, "memory.memsw.limit_in_bytes").read_text() == f"{64 << 20}\n"
    assert file("cpuset", path, "cpuset.cpus").read_text() == "0\n"
    assert file("pids", path, "pids.max").read_text() == "17\n"


@needs_v1
@pytest.mark.parametrize("limit", [32 << 20, 128 << 20], ids=["lower", "higher"])
def test_a_memory_limit_moves_in_both_directions(path: str, limit: int) -> None:
    create(path, Resources(memory_limit_bytes=64 << 20))
    effects.apply(NODE, plan(path, Resources(memory_limit_bytes=limit), None, NODE))
    assert file("memory", path, "memory.limit_in_bytes").read_text() == f"{limit}\n"
    assert file("memory", path, "memory.memsw.limit_in_bytes").read_text() == f"{limit}\n"


@needs_v1
def test_a_period_above_the_old_quotas_reach_is_set_after_the_quota(path: str) -> None:
    create(path.rsplit("/", 1)[0], Resources(cpu_quota_us=50000, cpu_period_us=100000))
    create(path, Resources(cpu_quota_us=50000, cpu_period_us=100000))
    # 50000/20000 would exceed the parent's half of a cpu, so the shorter period is refused until the quota is lower
    effects.apply(NODE, plan(path, Resources(cpu_quota_us=5000, cpu_period_us=20000), None, NODE))
    assert file("cpu", path, "cpu.cfs_period_us").read_text() == "20000\n"
    assert file("cpu", path, "cpu.cfs_quota_us").read_text() == "5000\n"


@needs_v1
def test_a_refused_update_sets_all_values_back(path: str) -> None:
    create(path, Resources(pids_limit=17, memory_limit_bytes=64 << 20, cpu_shares=512))
    refused = Resources(pids_limit=20, memory_limit_bytes=128 << 20, cpu_shares=100, cpuset_cpus="4095")
    with pytest.raises(OSError) as error:
        effects.apply(NODE, plan(path, refused, None, NODE))
    assert b"cpuset.cpus" in os.fsencode(error.value.filename)
    assert file("pids", path, "pids.max").read_text() == "17\n"
    assert file("memory", path, "memory.limit_in_bytes").read_text() == f"{64 << 20}\n"
    assert file("memory", path, "memory.memsw.limit_in_bytes").read_text() == f"{64 << 20}\n"
    assert file("cpu", path, "cpu.shares").read_text() == "512\n"


@needs_v1
def test_a_limit_below_the_usage_is_refused_with_both_figures(path: str) -> None:
    create(path, Resources(memory_limit_bytes=64 << 20))
    code = f"import signal; b = bytearray(24 << 20); {TOUCH}; print(flush=True); signal.pause()"
    procs = file("memory", path, "cgroup.procs")
    with process("sh", "-c", f"echo 0 > {procs}; exec {sys.executable} -c '{code}'") as child:
        assert child.stdout is not None and child.stdout.readline()
        with pytest.raises(OSError, match=r"usage [0-9]+, peak [0-9]+"):
            effects.apply(NODE, plan(path, Resources(memory_limit_bytes=4 << 20), None, NODE))
    assert file("memory", path, "memory.limit_in_bytes").read_text() == f"{64 << 20}\n"


def test_a_failed_create_leaves_no_directory(path: str) -> None:
    with pytest.raises(OSError):
        effects.create(NODE, CgroupPlan(path, [("pids", "pids.nonsense", "1", True)]))
    assert not any(os.path.exists(tree + os.fsencode(ROOT)) for tree in NODE.trees())


def test_a_missing_file_that_is_not_required_is_skipped(path: str) -> None:
    effects.create(NODE, CgroupPlan(path, [("pids", "pids.nonsense", "1", False)]))


@views
def test_a_joined_process_is_in_every_tree(h: Hierarchy, path: str) -> None:
    create(path, h=h)
    with process() as child:
        effects.join(h, path, child.pid)
        member = Path(f"/proc/{child.pid}/cgroup").read_text().splitlines()
        assert sum(line.endswith(":" + path) for line in member) >= len(h.trees())
        assert effects.pids(h, path) == [child.pid]
        assert effects.pids(h, ROOT) == [child.pid], "pids looks below as well"
        assert not effects.is_empty(h, ROOT)
        assert not effects.remove(h, ROOT, tries=1), "a cgroup with a process stays"
    assert effects.is_empty(h, ROOT)
    assert effects.pids(h, path) == []


@views
def test_an_ended_process_that_nobody_has_reaped_does_not_keep_a_cgroup(h: Hierarchy, path: str) -> None:
    create(path, h=h)
    with process("sleep", "100") as child:
        effects.join(h, path, child.pid)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert effects.pids(h, path) == []
        assert effects.remove(h, ROOT, tries=1)


def test_joining_with_a_process_that_is_gone_says_so(path: str) -> None:
    create(path)
    with process("true") as child:
        child.wait()
        with pytest.raises(ProcessLookupError):
            effects.join(NODE, path, child.pid)


@views
def test_an_exec_leaf_holds_its_processes_beside_those_of_the_container(h: Hierarchy, path: str) -> None:
    create(path, h=h)
    with process() as init, process() as exec_:
        effects.join(h, path, init.pid)
        leaf = effects.exec_leaf(h, path, 0)
        assert effects.exec_leaf(h, path, 0) == leaf, "an empty leaf is used again"
        effects.join(h, leaf, exec_.pid)
        assert effects.pids(h, leaf) == [exec_.pid]
        assert sorted(effects.pids(h, path)) == sorted([init.pid, exec_.pid])
        assert sum(os.path.exists(tree + os.fsencode(leaf)) for tree in h.trees()) == 1
        if "memory" in h.controllers and not h.is_v2("memory"):
            assert Path(os.fsdecode(h.controllers["memory"]) + path, "cgroup.procs").read_text().count("\n") == 2
        effects.kill(h, leaf)
        assert exec_.wait(10) == -signal.SIGKILL
        assert init.poll() is None, "the container lives on"
    assert effects.remove(h, path)


FORKS = "while :; do setsid sh -c 'while :; do sleep 0.01 & wait; done' & sleep 0.01; done"


@views
def test_kill_ends_a_tree_that_keeps_forking_out_of_its_session(h: Hierarchy, path: str) -> None:
    create(path, Resources(pids_limit=60), h=h)
    with process("sh", "-c", f"kill -STOP $$; {FORKS}") as child:
        wait_until(lambda: "T (stopped)" in Path(f"/proc/{child.pid}/status").read_text())
        effects.join(h, path, child.pid)
        leaf = effects.exec_leaf(h, path, 3)
        child.send_signal(signal.SIGCONT)
        wait_until(lambda: len(effects.pids(h, path)) > 8)
        effects.join(h, leaf, child.pid)
        effects.kill(h, ROOT)
        assert child.wait(10) == -signal.SIGKILL
    wait_until(lambda: effects.is_empty(h, ROOT))
    assert effects.remove(h, ROOT)


@views
def test_a_frozen_cgroup_stands_still_and_can_be_killed(h: Hierarchy, path: str) -> None:
    create(path, h=h)
    with process("sh", "-c", "while :; do :; done") as child:
        effects.join(h, path, child.pid)
        effects.freeze(h, path)
        ticks = Path(f"/proc/{child.pid}/stat").read_text().split()[13]
        busy = time.process_time()
        while time.process_time() - busy < 0.05:  # time in which a running loop would gain ticks
            pass
        assert Path(f"/proc/{child.pid}/stat").read_text().split()[13] == ticks
        effects.thaw(h, path)
        wait_until(lambda: Path(f"/proc/{child.pid}/stat").read_text().split()[13] != ticks)
        effects.freeze(h, path)
        effects.kill(h, path)
        assert child.wait(10) == -signal.SIGKILL


@views
def test_a_cgroup_that_is_gone_is_empty(h: Hierarchy, path: str) -> None:
    effects.kill(h, path)
    effects.thaw(h, path)
    assert effects.pids(h, path) == []
    assert effects.is_empty(h, path)
    assert effects.oom_kills(h, path) == 0
    with pytest.raises(FileNotFoundError):
        effects.freeze(h, path)


@needs_v1
def test_oom_kills_of_cgroups_below_count(path: str) -> None:
    create(path, Resources(memory_limit_bytes=16 << 20))
    inner = file("memory", path, "inner")
    inner.mkdir()
    assert effects.oom_kills(NODE, path) == 0
    code = f"b = bytearray(64 << 20); {TOUCH}"
    with process("sh", "-c", f"echo 0 > {inner}/cgroup.procs; exec {sys.executable} -c '{code}'") as child:
        assert child.wait(30) == -signal.SIGKILL
    assert effects.oom_kills(NODE, path) == 1
    assert effects.oom_kills(NODE, ROOT) == 1


@needs_v2
def test_a_nest_deeper_than_a_path_can_say_is_listed_and_removed(path: str) -> None:
    create(path)
    name, depth = "n" * 250, 40  # 10,000 bytes of path, where PATH_MAX is 4096
    here = os.open(NODE.mount + os.fsencode(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(depth):
            os.mkdir(name, dir_fd=here)
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
        procs = os.open("cgroup.procs", os.O_WRONLY, dir_fd=here)
    finally:
        os.close(here)
    with process() as child:
        os.write(procs, str(child.pid).encode())
        os.close(procs)
        assert effects.pids(NODE, path) == [child.pid]
        effects.kill(NODE, path)
        assert child.wait(10) == -signal.SIGKILL
    assert effects.remove(NODE, path)


@needs_v2
def test_the_device_program_decides_and_can_be_exchanged(path: str, tmp_path: Path) -> None:
    create(path)
    node = tmp_path / "zero"
    os.mknod(node, 0o666 | 0o020000, os.makedev(1, 5))
    directory = effects.open_dir(NODE, path)
    procs = os.fsdecode(NODE.mount) + path + "/cgroup.procs"

    def can(action: str) -> bool:
        script = f"echo 0 > {procs} && {action}"
        return subprocess.run(["sh", "-c", script], stderr=subprocess.DEVNULL).returncode == 0

    reading, writing = f"head -c1 {node} > /dev/null", f"true 2>&1 >{node}"
    making = f"mknod {tmp_path}/made b 7 0 && rm {tmp_path}/made"
    try:
        assert (can(reading), can(writing), can(making)) == (True, True, True)
        only_reading = DeviceTable([DeviceRule(True, "c", 1, 5, "r"), DeviceRule(True, "c", 1, 3)]).program()
        assert only_reading is not None
        effects.attach_devices(directory, only_reading)
        assert (can(reading), can(writing), can(making)) == (True, False, False)
        all_but_writing = DeviceTable([DeviceRule(True), DeviceRule(False, "c", 1, 5, "w")]).program()
        assert all_but_writing is not None
        effects.attach_devices(directory, all_but_writing)
        assert (can(reading), can(writing), can(making)) == (True, False, True)
    finally:
        os.close(directory)


@needs_v1
def test_device_rules_of_v1_decide(path: str, tmp_path: Path) -> None:
    effects.create(NODE, plan(path, Resources(), [DeviceRule(True, "b", 7, 1, "r")], NODE))
    listed = file("devices", path, "devices.list").read_text().splitlines()
    assert "b 7:1 rm" in listed or {"b 7:1 r", "b *:* m"} <= set(listed)
    assert "a *:* rwm" not in listed
    node = tmp_path / "mem"
    os.mknod(node, 0o666 | 0o020000, os.makedev(1, 1))  # /dev/mem, which nothing allows
    script = f"echo 0 > {file('devices', path, 'cgroup.procs')} && head -c1 {node}"
    denied = subprocess.run(["sh", "-c", script], capture_output=True)
    assert b"Operation not permitted" in denied.stderr
    effects.remove(NODE, ROOT)
    effects.create(NODE, plan(path, Resources(), [DeviceRule(True)], NODE))
    assert file("devices", path, "devices.list").read_text() == "a *:* rwm\n"


@needs_v2
def test_a_unified_key_is_refused_where_v1_controllers_rule(path: str) -> None:
    if NODE.mode == "v2":
        pytest.skip("this host has no cgroup v1")
    with pytest.raises(InvalidSpec, match=r"memory\.high"):
        plan(path, Resources(unified={"memory.high": "1"}), None, NODE)


@needs_v2
def test_huge_page_limits_reach_the_v2_tree_and_exec_leaves_still_work(path: str) -> None:
    if not NODE.is_v2("hugetlb"):
        pytest.skip("cgroup v1 has hugetlb here")
    sizes = [name[len("hugepages-") : -len("kB")] for name in os.listdir("/sys/kernel/mm/hugepages")]
    size = f"{int(sizes[0]) >> 10}MB"
    before = Path(os.fsdecode(NODE.mount), "cgroup.subtree_control").read_text()
    try:
        create(path, Resources(hugepage_limits={size: 4 << 30}))
        assert file("hugetlb", path, f"hugetlb.{size}.max").read_text() == f"{4 << 30}\n"
        with process() as init, process() as exec_:
            effects.join(NODE, path, init.pid)
            effects.join(NODE, effects.exec_leaf(NODE, path, 0), exec_.pid)
            assert len(effects.pids(NODE, path)) == 2
    finally:
        effects.kill(NODE, ROOT)
        wait_until(lambda: effects.remove(NODE, ROOT, tries=1))
        if "hugetlb" not in before:
            Path(os.fsdecode(NODE.mount), "cgroup.subtree_control").write_text("-hugetlb")


@views
def test_stats_of_a_working_process(h: Hierarchy, path: str) -> None:
    create(path, Resources(memory_limit_bytes=256 << 20), h=h)
    code = f"b = bytearray(8 << 20); {TOUCH}; print(flush=True)\nwhile True: pass"
    with process("sh", "-c", f"kill -STOP $$; exec {sys.executable} -c '{code}'") as child:
        wait_until(lambda: "T (stopped)" in Path(f"/proc/{child.pid}/status").read_text())
        effects.join(h, path, child.pid)
        child.send_signal(signal.SIGCONT)
        assert child.stdout is not None and child.stdout.readline()
        wait_until(lambda: (stats.read(h, path).cpu_usage_ns or 0) > 20_000_000)
        wait_until(lambda: (stats.read(h, path).cpu_user_ns or 0) > 0)  # v1 counts it in ticks
        sample = stats.read(h, path)
    assert sample.pids_current == 1
    assert sample.usage_bytes is not None and 8 << 20 < sample.usage_bytes < 256 << 20
    assert sample.working_set_bytes is not None and 0 < sample.working_set_bytes <= sample.usage_bytes
    assert sample.memory_limit_bytes == 256 << 20
    assert sample.available_bytes == (256 << 20) - sample.working_set_bytes
    assert sample.rss_bytes is not None and sample.rss_bytes >= 8 << 20
    assert sample.page_faults is not None and sample.page_faults > 0  # few when the kernel gives huge pages
    assert sample.swap_usage_bytes == 0
    assert sample.cpu_user_ns is not None and sample.cpu_user_ns > 0
    if h.mount and os.path.exists("/proc/pressure/cpu"):
        assert sample.cpu_pressure is not None and sample.cpu_pressure.some is not None


@views
def test_stats_of_a_cgroup_that_is_gone_are_unknown(h: Hierarchy, path: str) -> None:
    sample = stats.read(h, path)
    assert (sample.cpu_usage_ns, sample.usage_bytes, sample.pids_current, sample.io_read_bytes) == (None,) * 4


def test_a_process_enters_a_cgroup_by_itself(path: str) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            effects.enter(NODE, os.fsencode(path))
            lines = Path("/proc/self/cgroup").read_text().splitlines()
            os._exit(0 if sum(line.endswith(":" + path) for line in lines) == len(NODE.trees()) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
