"""What the metrics need beyond a sample, from files as both versions have them."""

from __future__ import annotations

from pathlib import Path

from crishim.cgroups.details import read
from crishim.cgroups.hierarchy import Hierarchy


def fill(directory: Path, **files: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)


def v2(root: Path) -> Hierarchy:
    tree = bytes(root)
    controllers = dict.fromkeys(("memory", "io", "pids", "hugetlb"), tree)
    return Hierarchy("v2", tree, controllers)


def v1(root: Path) -> Hierarchy:
    controllers = {name: bytes(root / name) for name in ("memory", "blkio", "pids", "hugetlb")}
    return Hierarchy("v1", b"", controllers)


def test_v2_files_are_understood(tmp_path: Path) -> None:
    fill(
        tmp_path / "c",
        memory__stat="anon 5\nfile 10\nfile_mapped 4\nkernel 3\n",
        memory__peak="99\n",
        memory__low="8\n",
        memory__events="low 0\nhigh 0\nmax 6\noom 1\noom_kill 2\n",
        pids__max="50\n",
        io__stat="8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n8:16 rbytes=5\n",
    )
    (tmp_path / "c" / "hugetlb.2MB.current").write_text("7\n")
    found = read(v2(tmp_path), "/c")
    assert (found.cache_bytes, found.mapped_file_bytes, found.kernel_bytes) == (10, 4, 3)
    assert (found.max_usage_bytes, found.failcnt, found.oom_kills) == (99, 6, 2)
    assert (found.threads_max, found.reservation_bytes) == (50, 8)
    assert [(io.device, io.read_bytes, io.write_bytes, io.reads, io.writes) for io in found.io] == [
        ("8:0", 1, 2, 3, 4),
        ("8:16", 5, 0, 0, 0),
    ]
    assert found.hugetlb == [("2MB", 7, None)]


def test_v1_files_are_understood(tmp_path: Path) -> None:
    fill(
        tmp_path / "memory" / "c",
        memory__stat="cache 1\ntotal_cache 10\ntotal_mapped_file 4\n",
        memory__max_usage_in_bytes="99\n",
        memory__failcnt="6\n",
        memory__kmem__usage_in_bytes="3\n",
        memory__soft_limit_in_bytes="9223372036854771712\n",
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    )
    fill(tmp_path / "pids" / "c", pids__max="max\n")
    fill(
        tmp_path / "blkio" / "c",
        blkio__throttle__io_service_bytes_recursive="8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n",
        blkio__throttle__io_serviced_recursive="8:0 Read 3\n8:0 Write 4\nTotal 7\n",
    )
    fill(tmp_path / "hugetlb" / "c", hugetlb__2MB__usage_in_bytes="7\n", hugetlb__2MB__max_usage_in_bytes="8\n")
    found = read(v1(tmp_path), "/c")
    assert (found.cache_bytes, found.mapped_file_bytes, found.kernel_bytes) == (10, 4, 3)
    assert (found.max_usage_bytes, found.failcnt, found.oom_kills) == (99, 6, 2)
    assert (found.threads_max, found.reservation_bytes) == (None, None)
    assert [(io.device, io.read_bytes, io.write_bytes, io.reads, io.writes) for io in found.io] == [("8:0", 1, 2, 3, 4)]
    assert found.hugetlb == [("2MB", 7, 8)]


def test_a_cgroup_that_is_gone_has_no_details(tmp_path: Path) -> None:
    found = read(v2(tmp_path), "/gone")
    assert (found.cache_bytes, found.threads_max, found.io, found.hugetlb) == (None, None, [], [])
