"""What a container sees of file systems: mounts and their flags, propagation, /dev, masked and read-only paths."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crishim.errors import StartFailed
from crishim.linux import mount
from crishim.model.process import MountSpec, Propagation
from tests.support.container import DEVICES, IDLE, MOUNTS, Container, Node, Pod, all_capabilities, program, script


def flags(container: Container) -> dict[str, set[str]]:
    """Mount flags by target, as the kernel tells the host of the container's table."""
    table: dict[str, set[str]] = {}
    for line in container.proc("mountinfo").splitlines():
        fields = line.split()
        table[fields[4]] = set(fields[5].split(","))
    return table


def bind(source: Path | str, target: str, *names: str, **changes: object) -> MountSpec:
    return replace(MountSpec(target, source=str(source), flags=names), **changes)  # type: ignore[arg-type]


def test_the_mount_table_holds_what_was_asked_for_and_nothing_of_the_host(pod: Pod) -> None:
    table = flags(pod.start(program(*IDLE)))
    cgroups = {target for target in table if target.startswith("/sys/fs/cgroup")}
    assert set(table) - cgroups == {"/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys"}
    assert {"nosuid", "nodev", "noexec"} <= table["/proc"]
    assert {"nosuid"} <= table["/dev"] and "noexec" not in table["/dev"] and "relatime" not in table["/dev"]
    assert {"ro", "nosuid", "nodev", "noexec"} <= table["/sys"]
    assert all("ro" in table[target] for target in cgroups)


def test_nothing_of_a_container_is_in_the_hosts_mount_table(pod: Pod) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    container = pod.start(program(*IDLE))
    pod.exec(container, program("/bin/true"))
    after = Path("/proc/self/mountinfo").read_text()
    ours = [line for line in after.splitlines() if line not in before and str(pod.home) in line]
    assert ours == []


def test_bind_mounts_have_their_flags_and_files_are_files(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    (tmp_path / "tree").mkdir()
    mounts = (
        *MOUNTS,
        bind(tmp_path / "file", "/etc/config", "ro", "nosuid"),
        bind(tmp_path / "tree", "/new/deep", "noexec", "nodev"),
    )
    container = pod.start(program(*IDLE), mounts=mounts)
    table = flags(container)
    assert {"ro", "nosuid"} <= table["/etc/config"]
    assert {"rw", "noexec", "nodev"} <= table["/new/deep"]
    ended = pod.exec(container, script("cat /etc/config; echo x > /etc/config"))
    assert ended.output.startswith("content") and "Read-only file system" in ended.output


def test_mounts_are_done_in_the_order_given(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "inner").write_text("inner")
    outer, inner = bind(tmp_path / "a", "/data"), bind(tmp_path / "b", "/data/deep")
    assert pod.run(program("/bin/cat", "/data/deep/inner"), mounts=(*MOUNTS, outer, inner)).output == "inner"
    hidden = pod.run(program("/bin/ls", "-A", "/data/deep"), mounts=(*MOUNTS, inner, outer))
    assert hidden.output == "", "the later mount hides the earlier; its directory was made by the first container"


def test_a_tmpfs_takes_its_options(pod: Pod) -> None:
    tmpfs = MountSpec("/scratch", "tmpfs", flags=("nosuid",), options=("mode=1750", "size=64k"))
    ended = pod.run(script("stat -c '%a %T' -f /scratch; stat -c %a /scratch; df -k /scratch"), mounts=(*MOUNTS, tmpfs))
    assert "1750" in ended.lines
    assert ended.lines[-1].split()[1] == "64"


def test_a_missing_source_is_made_or_is_a_sentence(pod: Pod, tmp_path: Path) -> None:
    mounts = (*MOUNTS, bind(tmp_path / "missing", "/data"))
    with pytest.raises(StartFailed, match=f'mounting "{tmp_path}/missing" at "/data": no such file or directory'):
        pod.run(program("/bin/true"), mounts=mounts, make_missing_sources=False)
    assert pod.run(program("/bin/true"), mounts=mounts).code == 0
    assert (tmp_path / "missing").is_dir()


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A shared tmpfs on the host, of this test alone."""
    place = tmp_path / "shared"
    place.mkdir()
    target = os.fsencode(place)
    mount.mount(b"tmpfs", target, b"tmpfs", 0)
    mount.mount(None, target, None, mount.MS_SHARED)
    (place / "host").mkdir()
    (place / "inside").mkdir()
    yield place
    mount.umount2(target, mount.MNT_DETACH)


@pytest.mark.parametrize(
    ("propagation", "comes_in", "goes_out"),
    [
        (Propagation.PRIVATE, False, False),
        (Propagation.HOST_TO_CONTAINER, True, False),
        (Propagation.BIDIRECTIONAL, True, True),
    ],
)
def test_propagation(pod: Pod, shared: Path, propagation: Propagation, comes_in: bool, goes_out: bool) -> None:
    container = pod.start(program(*IDLE), mounts=(*MOUNTS, bind(shared, "/data", propagation=propagation)))
    mount.mount(b"tmpfs", os.fsencode(shared / "host"), b"tmpfs", 0)
    assert ("/data/host" in flags(container)) is comes_in
    everything = all_capabilities(pod.node)
    inside = program("/bin/mount", "-t", "tmpfs", "tmpfs", "/data/inside", capabilities=everything)
    ended = pod.exec(container, inside)
    assert ended.code == 0, ended.output
    assert os.path.ismount(shared / "inside") is goes_out


@pytest.mark.parametrize("propagation", [Propagation.HOST_TO_CONTAINER, Propagation.BIDIRECTIONAL])
def test_propagation_from_a_private_mount_is_refused(pod: Pod, shared: Path, propagation: Propagation) -> None:
    mount.mount(None, os.fsencode(shared), None, mount.MS_PRIVATE)
    with pytest.raises(StartFailed, match=f'mounting "{shared}" at "/data": invalid argument'):
        pod.run(program("/bin/true"), mounts=(*MOUNTS, bind(shared, "/data", propagation=propagation)))


def test_recursive_read_only_reaches_the_mounts_below(pod: Pod, shared: Path) -> None:
    mount.mount(b"tmpfs", os.fsencode(shared / "inside"), b"tmpfs", 0)
    touch = script("touch /data/x 2>/dev/null; echo $?; touch /data/inside/x 2>/dev/null; echo $?")
    assert pod.run(touch, mounts=(*MOUNTS, bind(shared, "/data", "ro"))).lines == ["1", "0"]
    assert pod.run(touch, mounts=(*MOUNTS, bind(shared, "/data", "rro"))).lines == ["1", "1"]
    assert pod.run(touch, mounts=(*MOUNTS, bind(shared, "/data"))).lines == ["0", "0"], "the host's stays writable"


def test_the_root_is_read_only_when_asked_and_dev_is_not(pod: Pod) -> None:
    spec = pod.spec(script("touch /x /tmp/x; touch /dev/x && echo fine"))
    container = pod.start_spec(replace(spec, rootfs=replace(spec.rootfs, readonly=True)))
    assert container.wait().code == 0
    output = os.read(container.stdout, 4096).decode()
    assert output.count("Read-only file system") == 2 and output.endswith("fine\n")


def test_a_directory_serves_as_root_without_layers(pod: Pod, busybox_root: Path) -> None:
    spec = pod.spec(program("/bin/cat", "/etc/group"), mounts=())
    rootfs = replace(spec.rootfs, lowers=(), upper=None, work=None, path=str(busybox_root), readonly=True)
    container = pod.start_spec(replace(spec, rootfs=rootfs, device_nodes=()))
    assert container.wait().code == 0
    assert os.read(container.stdout, 100) == b"root:x:0:\n"


def test_what_a_container_writes_lands_in_its_upper_layer(pod: Pod, busybox_root: Path) -> None:
    spec = pod.spec(script("echo new > /etc/passwd; rm /etc/group"))
    assert pod.start_spec(spec).wait().code == 0
    assert spec.rootfs.upper is not None
    upper = Path(spec.rootfs.upper)
    assert (upper / "etc/passwd").read_text() == "new\n"
    assert stat.S_ISCHR((upper / "etc/group").lstat().st_mode), "a whiteout"
    assert (busybox_root / "etc/group").read_text() == "root:x:0:\n"


def test_dev_holds_exactly_the_nodes_and_links(pod: Pod) -> None:
    names = {os.path.basename(node.path) for node in DEVICES}
    links = {"fd", "stdin", "stdout", "stderr", "ptmx"} | ({"core"} if os.path.exists("/proc/kcore") else set())
    shown = pod.run(
        script("cd /dev; ls -A1; for n in null tty; do stat -c '%n %a %u:%g %t:%T' $n; done; readlink ptmx")
    )
    assert set(shown.lines[:-3]) == names | links | {"pts", "shm", "mqueue"}
    assert shown.lines[-3:] == ["null 666 0:0 1:3", "tty 666 0:0 5:0", "pts/ptmx"]


def test_masked_files_read_empty_and_masked_directories_are_empty_and_read_only(pod: Pod) -> None:
    masked = ("/proc/version", "/proc/sys/kernel", "/sys/kernel", "/no/such/path", "/proc/version")
    shown = pod.run(
        script("cat /proc/version; ls -A /proc/sys/kernel /sys/kernel; touch /sys/kernel/x; echo x > /proc/version"),
        masked_paths=masked,
    )
    assert "Linux version" not in shown.output
    assert [line for line in shown.lines if line and not line.endswith(":")] == [
        "touch: /sys/kernel/x: Read-only file system"
    ]


def test_masked_directories_share_one_file_system(pod: Pod) -> None:
    shown = pod.run(
        program("/bin/stat", "-c", "%d", "/proc/sys/kernel", "/sys/kernel"),
        masked_paths=("/proc/sys/kernel", "/sys/kernel"),
    )
    assert len(set(shown.lines)) == 1


def test_a_masked_directory_is_read_only_also_for_who_may_remount_it(node: Node, pod: Pod) -> None:
    ended = pod.run(
        script("mount -o remount,bind,rw /sys/kernel && touch /sys/kernel/x", capabilities=all_capabilities(node)),
        masked_paths=("/sys/kernel",),
    )
    assert ended.output == "touch: /sys/kernel/x: Read-only file system\n"


def test_read_only_paths_keep_their_flags_and_cannot_be_written(pod: Pod) -> None:
    container = pod.start(program(*IDLE), readonly_paths=("/proc/sys", "/proc/irq", "/no/such/path"))
    table = flags(container)
    assert {"ro", "nosuid", "nodev", "noexec"} <= table["/proc/sys"]
    ended = pod.exec(container, script("echo 1 > /proc/sys/vm/drop_caches"))
    assert "Read-only file system" in ended.output


def test_a_container_sees_its_own_cgroup_as_the_root(pod: Pod) -> None:
    shown = pod.run(script("cut -d: -f3 /proc/self/cgroup | sort -u; ls /sys/fs/cgroup"))
    assert shown.lines[0] == "/"
    assert "memory" in shown.lines or "memory.max" in shown.lines or "cgroup.procs" in shown.lines
