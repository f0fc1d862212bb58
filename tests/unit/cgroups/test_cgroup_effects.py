"""The v2 paths of the effects, on a fake tree; the real trees are in tests/integration."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crishim.cgroups import effects, files, stats
from crishim.cgroups.hierarchy import Hierarchy, detect
from crishim.cgroups.plan import plan
from crishim.cgroups.planned import CgroupPlan
from crishim.model.resources import Resources

if TYPE_CHECKING:
    from conftest import FakeV2

LIMITS = Resources(cpu_shares=1024, memory_limit_bytes=1000, pids_limit=5)


def test_controllers_are_handed_down_to_the_container_and_not_below(v2: FakeV2) -> None:
    effects.create(v2.hierarchy, plan("/kube/pod/c", LIMITS, None, v2.hierarchy))
    for ancestor in ("", "kube", "kube/pod"):
        assert (v2.root / ancestor / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    assert (v2.root / "kube/pod/c/cgroup.subtree_control").read_text() == ""
    assert (v2.root / "kube/pod/c/cpu.weight").read_text() == "100"
    assert (v2.root / "kube/pod/c/memory.max").read_text() == "1000"
    assert (v2.root / "kube/pod/c/memory.swap.max").read_text() == "0"


def test_a_cgroup_with_processes_hands_down_nothing_rather_than_a_part(
    v2: FakeV2, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[bytes, str]] = []

    def write(path: bytes, value: str) -> None:
        written.append((path, value))
        if path.endswith(b"/kube/cgroup.subtree_control"):
            raise OSError(errno.EBUSY, "busy", path)

    monkeypatch.setattr(effects, "write", write)
    effects.create(v2.hierarchy, CgroupPlan("/kube/pod/c", []))
    everything = "+cpu +memory +pids"
    assert [(os.fsdecode(path).removeprefix(str(v2.root)), value) for path, value in written] == [
        ("/cgroup.subtree_control", everything),
        ("/kube/cgroup.subtree_control", everything),
    ]


def test_controllers_can_be_left_where_they_are(v2: FakeV2) -> None:
    effects.create(v2.hierarchy, CgroupPlan("/monitors/hooks.1", []), hand_down=False)
    assert (v2.root / "monitors/hooks.1").is_dir()
    assert {(v2.root / each / "cgroup.subtree_control").read_text() for each in ("", "monitors")} == {""}


def test_a_change_can_be_taken_back_after_it_was_made(v2: FakeV2) -> None:
    effects.create(v2.hierarchy, plan("/kube/pod/c", LIMITS, None, v2.hierarchy))
    more = Resources(cpu_shares=2048, memory_limit_bytes=2000)
    undo = effects.apply(v2.hierarchy, plan("/kube/pod/c", more, None, v2.hierarchy))
    assert (v2.root / "kube/pod/c/memory.max").read_text() == "2000"
    assert effects.revert(undo) == []
    assert (v2.root / "kube/pod/c/memory.max").read_text() == "1000"
    assert (v2.root / "kube/pod/c/cpu.weight").read_text() == "100"


def test_a_pod_that_has_its_controllers_is_not_touched(v2: FakeV2) -> None:
    effects.create(v2.hierarchy, plan("/pod/a", LIMITS, None, v2.hierarchy))
    (v2.root / "cgroup.subtree_control").write_text("cpu memory pids")
    effects.create(v2.hierarchy, plan("/pod/b", LIMITS, None, v2.hierarchy))
    assert (v2.root / "cgroup.subtree_control").read_text() == "cpu memory pids"


def test_a_missing_limit_file_undoes_the_directories_made(v2: FakeV2) -> None:
    os.mkdir(os.fsencode(v2.root / "kube"))
    with pytest.raises(FileNotFoundError) as error:
        effects.create(v2.hierarchy, CgroupPlan("/kube/pod/c", [("memory", "memory.high", "1", True)]))
    assert os.fsdecode(error.value.filename).endswith("/kube/pod/c/memory.high")
    assert (v2.root / "kube").is_dir() and not (v2.root / "kube/pod").exists()


def test_an_update_that_fails_sets_back_what_it_wrote(v2: FakeV2) -> None:
    effects.create(v2.hierarchy, plan("/c", LIMITS, None, v2.hierarchy))
    update = CgroupPlan("/c", [("pids", "pids.max", "9", True), ("memory", "memory.high", "1", True)])
    with pytest.raises(FileNotFoundError):
        effects.apply(v2.hierarchy, update)
    assert (v2.root / "c/pids.max").read_text().strip() == "5"


def test_kill_and_freeze_write_the_switches_of_v2(v2: FakeV2) -> None:
    effects.create(v2.hierarchy, plan("/c", Resources(), None, v2.hierarchy))
    effects.kill(v2.hierarchy, "/c")
    assert (v2.root / "c/cgroup.kill").read_text() == "1"
    (v2.root / "c/cgroup.events").write_text("populated 1\nfrozen 1\n")
    effects.freeze(v2.hierarchy, "/c")
    assert (v2.root / "c/cgroup.freeze").read_text() == "1"
    assert not effects.is_empty(v2.hierarchy, "/c")


def test_what_cannot_be_frozen_in_time_is_thawed_again(v2: FakeV2) -> None:
    effects.create(v2.hierarchy, plan("/c", Resources(), None, v2.hierarchy))
    with pytest.raises(TimeoutError):
        effects.freeze(v2.hierarchy, "/c", timeout_s=0)
    assert (v2.root / "c/cgroup.freeze").read_text() == "0"


def test_membership_is_written_to_the_leaf_when_there_is_one(v2: FakeV2) -> None:
    effects.create(v2.hierarchy, plan("/c", Resources(), None, v2.hierarchy))
    effects.join(v2.hierarchy, b"/c/exec.0", 41)
    assert (v2.root / "c/cgroup.procs").read_text() == "41"
    leaf = effects.exec_leaf(v2.hierarchy, "/c", 0)
    effects.join(v2.hierarchy, leaf, 42)
    assert (v2.root / "c/exec.0/cgroup.procs").read_text() == "42"
    assert effects.pids(v2.hierarchy, "/c") == [41, 42]


def test_remove_takes_the_children_first_and_leaves_what_is_busy(v2: FakeV2) -> None:
    effects.create(v2.hierarchy, plan("/c/inner/more", Resources(), None, v2.hierarchy))
    effects.exec_leaf(v2.hierarchy, "/c", 0)
    (v2.root / "c/inner/cgroup.procs").write_text("7\n")
    assert not effects.remove(v2.hierarchy, "/c", tries=1)
    assert not (v2.root / "c/exec.0").exists() and (v2.root / "c/inner").exists()
    (v2.root / "c/inner/cgroup.procs").write_text("")
    assert effects.remove(v2.hierarchy, "/c", tries=1)
    assert not (v2.root / "c").exists()


def test_directories_are_named_as_the_container_sees_them(v2: FakeV2) -> None:
    assert effects.directories(v2.hierarchy, "/c") == [(b"", os.fsencode(v2.root / "c"))]
    assert effects.task_files(v2.hierarchy, "/c") == []
    merged = Hierarchy("v1", b"", {"cpu": b"/g/cpu,cpuacct", "cpuacct": b"/g/cpu,cpuacct", "pids": b"/g/pids"})
    assert effects.directories(merged, "/c") == [(b"cpu,cpuacct", b"/g/cpu,cpuacct/c"), (b"pids", b"/g/pids/c")]
    assert effects.open_dir(merged, "/c") == -1


def test_oom_kills_are_those_of_the_subtree(v2: FakeV2) -> None:
    effects.create(v2.hierarchy, plan("/c", LIMITS, None, v2.hierarchy))
    (v2.root / "c/memory.events").write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert effects.oom_kills(v2.hierarchy, "/c") == 2
    assert effects.oom_kills(v2.hierarchy, "/gone") == 0


def test_stats_of_v2(v2: FakeV2) -> None:
    directory = v2.root / "c"
    os.mkdir(os.fsencode(directory))
    for name, text in {
        "cpu.stat": "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\nnr_throttled 3\nthrottled_usec 7\n",
        "memory.current": "1000\n",
        "memory.max": "5000\n",
        "memory.swap.current": "11\n",
        "memory.swap.max": "max\n",
        "memory.stat": "anon 300\ninactive_file 400\npgfault 5\npgmajfault 2\n",
        "pids.current": "6\n",
        "cpu.pressure": "some avg10=1.50 avg60=0.20 avg300=0.00 total=12\nfull avg10=0 avg60=0 avg300=0 total=3\n",
    }.items():
        (directory / name).write_text(text)
    sample = stats.read(v2.hierarchy, "/c")
    assert (sample.cpu_usage_ns, sample.cpu_user_ns, sample.cpu_system_ns) == (30000, 20000, 10000)
    assert (sample.nr_periods, sample.nr_throttled, sample.throttled_ns) == (4, 3, 7000)
    assert (sample.usage_bytes, sample.working_set_bytes, sample.available_bytes) == (1000, 600, 4400)
    assert (sample.rss_bytes, sample.page_faults, sample.major_page_faults) == (300, 5, 2)
    assert (sample.swap_usage_bytes, sample.swap_limit_bytes, sample.pids_current) == (11, None, 6)
    assert sample.io_read_bytes is None
    assert sample.memory_pressure is None
    assert sample.cpu_pressure is not None
    assert (sample.cpu_pressure.some, sample.cpu_pressure.full) == ((12000, 1.5, 0.2, 0.0), (3000, 0.0, 0.0, 0.0))


def test_io_of_every_device_is_summed(v2: FakeV2) -> None:
    os.mkdir(os.fsencode(v2.root / "c"))
    v2.hierarchy.controllers["io"] = v2.hierarchy.mount
    (v2.root / "c/io.stat").write_text("8:0 rbytes=10 wbytes=1 rios=1 wios=1 dbytes=0 dios=0\n8:16 rbytes=5 wbytes=2\n")
    sample = stats.read(v2.hierarchy, "/c")
    assert (sample.io_read_bytes, sample.io_write_bytes) == (15, 3)


@pytest.mark.parametrize("path", ["/", "", b"//", "/pod/../..", "pod//c"])
def test_the_root_is_never_killed_frozen_or_removed(v2: FakeV2, path: str | bytes) -> None:
    for act in (effects.kill, effects.freeze, effects.thaw, effects.remove, effects.pids, effects.open_dir):
        with pytest.raises(OSError) as error:
            act(v2.hierarchy, path)
        assert error.value.errno == errno.EINVAL
    assert (v2.root / "cgroup.kill").read_text() == (v2.root / "cgroup.freeze").read_text() == ""


def test_a_v1_node_is_known_by_its_trees(tmp_path: Path) -> None:
    for name in ("cpu,cpuacct", "memory", "cpuset", "systemd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.procs").touch()
    (tmp_path / "cpu").symlink_to("cpu,cpuacct")
    (tmp_path / "cpuacct").symlink_to("cpu,cpuacct")
    (tmp_path / "not-a-tree").mkdir()
    root = os.fsencode(tmp_path)
    found = detect(root)
    assert (found.mode, found.mount) == ("v1", b"")
    assert list(found.controllers) == ["cpuset", "memory", "cpu", "cpuacct", "name=systemd"]
    assert found.controllers["cpu"] == found.controllers["cpuacct"] == root + b"/cpu,cpuacct"
    assert found.trees() == [root + b"/cpuset", root + b"/memory", root + b"/cpu,cpuacct", root + b"/systemd"]


def test_a_hybrid_node_has_a_v2_tree_beside_the_others(tmp_path: Path) -> None:
    for name in ("memory", "unified"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.procs").touch()
    (tmp_path / "unified/cgroup.controllers").write_text("hugetlb memory\n")
    found = detect(os.fsencode(tmp_path))
    assert found.mode == "hybrid"
    assert found.is_v2("hugetlb") and not found.is_v2("memory") and not found.is_v2("pids")
    assert found.trees()[-1] == found.mount
    again = Hierarchy.from_value(found.to_value())
    assert (again.mode, again.mount, again.controllers) == (found.mode, found.mount, found.controllers)


def test_a_machine_without_cgroups_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        detect(os.fsencode(tmp_path))
    with pytest.raises(TypeError):
        Hierarchy.from_value({"mode": 1, "mount": b"", "controllers": {}})


def test_a_link_in_place_of_a_kernel_file_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept")
    (tmp_path / "pids.max").symlink_to(target)
    with pytest.raises(OSError) as error:
        files.write(os.fsencode(tmp_path / "pids.max"), "1")
    assert error.value.errno == errno.ELOOP
    assert target.read_text() == "kept"


def test_what_a_monitor_imports_is_small() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "import crishim.cgroups.effects, crishim.cgroups.hierarchy, crishim.cgroups.planned;"
        "heavy = {'dataclasses', 'logging', 'threading', 'random', 'inspect', 're', 'pathlib', 'typing'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    root = str(Path(__file__).parents[3])
    done = subprocess.run([sys.executable, "-I", "-S", "-E", "-c", code, root], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
