"""Hostile images, mounts and processes against the executor. Each docstring names the attack and the defence."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from crishim.errors import StartFailed
from crishim.model.process import ContainerSpec, MountSpec
from crishim.model.resources import Resources
from tests.support.container import (
    IDLE,
    MOUNTS,
    Pod,
    all_capabilities,
    program,
    read_all,
    read_line,
    script,
    wait_until,
)

_RENAMEAT2 = {"x86_64": 316, "aarch64": 276}[os.uname().machine]
_RENAME_EXCHANGE = 2
_libc = ctypes.CDLL(None, use_errno=True)

LOADER = Path(__file__).parents[2] / "support" / "loader.c"
WITHOUT_DEV = tuple(mount for mount in MOUNTS if not mount.target.startswith("/dev"))


def with_layer(spec: ContainerSpec, layer: Path) -> ContainerSpec:
    """The same container with a hostile layer on top of its image."""
    return replace(spec, rootfs=replace(spec.rootfs, lowers=(str(layer), *spec.rootfs.lowers)))


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """A layer of an image that the attacker wrote."""
    place = tmp_path / "hostile-layer"
    place.mkdir()
    return place


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A directory of the host that nothing may change."""
    place = tmp_path / "victim"
    (place / "sub").mkdir(parents=True)
    (place / "file").write_text("precious")
    before = _tree(place)
    yield place
    assert _tree(place) == before, "the host's directory was changed"


def _tree(place: Path) -> dict[str, tuple[int, int, str]]:
    found = {}
    for path in sorted(place.rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_mode, status.st_ino, path.read_text() if path.is_file() else "")
    return found


@contextmanager
def swapping(first: Path, second: Path) -> Iterator[None]:
    """Exchange two names as fast as the kernel can, as a process in a container that shares the volume would."""
    stop = threading.Event()
    names = os.fsencode(first), os.fsencode(second)

    def swap() -> None:
        while not stop.is_set():
            assert _libc.syscall(_RENAMEAT2, -100, names[0], -100, names[1], _RENAME_EXCHANGE) == 0

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_t2_no_process_of_ours_can_be_looked_into_while_it_joins(pod: Pod) -> None:
    """CVE-2016-9962: descriptors and directories of an exec are read through /proc/PID before its execve(2).

    Defence: the child is not dumpable from its first step on, so /proc/PID/fd and cwd need CAP_SYS_PTRACE.
    """
    watch = script(
        "echo up; while :; do ls -l /proc/[0-9]*/fd/ /proc/[0-9]*/cwd /proc/[0-9]*/exe; done >> /tmp/seen 2>&1"
    )
    container = pod.start(watch)
    assert read_line(container.stdout) == "up"
    assert container.spec.rootfs.upper is not None
    seen = Path(container.spec.rootfs.upper) / "tmp/seen"
    for _ in range(60):
        assert pod.exec(container, program("/bin/true")).code == 0
    wait_until(lambda: seen.stat().st_size > 50_000, "some rounds of the watcher")
    container.kill()
    targets = {line.split(" -> ", 1)[1] for line in seen.read_text(errors="replace").splitlines() if " -> " in line}
    assert targets, "the watcher saw at least itself"
    strange = {
        target
        for target in targets
        if not target.startswith(("pipe:", "/proc/")) and target not in {"/", "/dev/null", "/bin/busybox", "/tmp/seen"}
    }
    # busybox programs are hard links of one file, so /proc/PID/exe may show any of their names
    assert {target for target in strange if not target.startswith("/bin/")} == set()


def test_t3_an_entrypoint_that_is_our_own_program_finds_a_sealed_copy(pod: Pod, layer: Path) -> None:
    """CVE-2019-5736: the entrypoint is a link to /proc/self/exe, and the image's loader runs inside our interpreter.

    Defence: the zygote runs from a memfd that is sealed against writing; the host's file is never mapped.
    """
    loader = _loader_of_this_interpreter()
    compiler = shutil.which("cc")
    if loader is None or compiler is None:
        pytest.skip("a dynamically linked interpreter and a C compiler are needed to put a loader into the image")
    host = Path(getattr(sys, "_base_executable", sys.executable))
    before = hashlib.sha256(host.read_bytes()).digest()
    place = layer / loader.lstrip("/")
    place.parent.mkdir(parents=True)
    flags = ["-nostdlib", "-static", "-no-pie", "-ffreestanding", "-fno-stack-protector", "-O1"]
    subprocess.run([compiler, *flags, "-o", place, LOADER], check=True)
    (layer / "entry").symlink_to("/proc/self/exe")
    spec = pod.spec(program("/entry", capabilities=all_capabilities(pod.node)))
    container = pod.start_spec(with_layer(spec, layer))
    stdout, container.stdout = container.stdout, -1
    output = read_all(stdout).decode().splitlines()
    assert container.wait().code == 0
    assert output[0].startswith("/memfd:crishim") and output[0].endswith(" refused"), output
    assert output[-1] == "done" and len(output) == 5, output
    assert hashlib.sha256(host.read_bytes()).digest() == before
    zygote = Path(f"/proc/{pod.node.executor.pid}/exe").read_bytes()
    assert hashlib.sha256(zygote).digest() == before


def _loader_of_this_interpreter() -> str | None:
    """PT_INTERP of the program file (elf(5), 64-bit little endian)."""
    data = Path(getattr(sys, "_base_executable", sys.executable)).read_bytes()
    table = int.from_bytes(data[32:40], "little")
    size, count = int.from_bytes(data[54:56], "little"), int.from_bytes(data[56:58], "little")
    for start in range(table, table + size * count, size):
        if int.from_bytes(data[start : start + 4], "little") == 3:
            offset = int.from_bytes(data[start + 8 : start + 16], "little")
            length = int.from_bytes(data[start + 32 : start + 40], "little")
            return data[offset : offset + length].rstrip(b"\0").decode()
    return None


@pytest.mark.parametrize("target", ["/link/sub/made", "/link/made/deep"])
def test_t5_a_mount_target_below_a_link_of_the_image_stays_inside(
    pod: Pod, layer: Path, victim: Path, tmp_path: Path, target: str
) -> None:
    """CVE-2019-18837: a link of the image leads a mount target to a path of the host.

    Defence, twice: the root is entered before any target is opened, in a mount namespace that holds nothing of the
    host; and targets are opened with RESOLVE_IN_ROOT.
    """
    (layer / "link").symlink_to(victim)
    (tmp_path / "source").write_text("mounted")
    mounts = (*MOUNTS, MountSpec(target, source=str(tmp_path / "source")))
    container = pod.start_spec(with_layer(pod.spec(program("/bin/cat", target), mounts=mounts), layer))
    assert container.wait().code == 0
    assert os.read(container.stdout, 100) == b"mounted"


@pytest.mark.parametrize("missing", [False, True], ids=["t8-existing", "t16-missing"])
def test_t8_t16_a_target_swapped_for_a_link_during_the_mount_stays_inside(
    pod: Pod, victim: Path, tmp_path: Path, missing: bool
) -> None:
    """CVE-2021-30465, CVE-2024-45310: a directory of a shared volume is exchanged for a link while we mount below it.

    Defence, twice: nothing of the host has a name where targets are opened; and a target is opened once, the mount
    attached to that descriptor, missing directories made one by one relative to their parent's descriptor.
    """
    volume = tmp_path / "volume"
    (volume / "real" / "sub").mkdir(parents=True)
    (volume / "trap").symlink_to(victim)
    (tmp_path / "source").mkdir()
    name = "made/deep" if missing else "sub"
    mounts = (
        *MOUNTS,
        MountSpec("/volume", source=str(volume)),
        MountSpec(f"/volume/real/{name}", source=str(tmp_path / "source")),
    )
    with swapping(volume / "real", volume / "trap"):
        for _ in range(40):
            try:
                container = pod.start(program(*IDLE), mounts=mounts)
            except StartFailed:
                continue  # refused in the middle of an exchange: that is fine, too
            table = [line.split() for line in container.proc("mountinfo").splitlines()]
            places = {fields[4] for fields in table if fields[3].endswith("/source")}
            inside = (f"/volume/real/{name}", f"/volume/trap/{name}", f"{victim}/{name}")
            assert places <= {*inside}, places
            container.kill()
            if missing:
                for end in ("real", "trap"):
                    shutil.rmtree(volume / end / "made", ignore_errors=True)
    pod.start(program(*IDLE), mounts=mounts).kill()  # with nobody in the way the same start succeeds
    assert str(victim) not in Path("/proc/self/mountinfo").read_text()


OUTSIDE = (
    "here=$(stat -c %d:%i ../../../../../../../../../..); root=$(stat -c %d:%i /); "
    '[ "$here" = "$root" ] && echo inside || echo "outside: $(ls ../../../../../../../../../..)"'
)


@pytest.mark.parametrize("how", ["init", "exec"])
def test_t13_no_working_directory_leads_out_through_a_descriptor(pod: Pod, how: str) -> None:
    """CVE-2024-21626: cwd is /proc/self/fd/N, a directory of the host that is open while we start a process.

    Defence: descriptors are really closed before the directory is entered, and getcwd(2) must be below our root.
    """
    container = pod.start(program(*IDLE)) if how == "exec" else None
    for number in [*range(3, 24), 100, 101, 102, 103]:
        process = script(OUTSIDE, cwd=f"/proc/self/fd/{number}")
        try:
            ended = pod.exec(container, process) if container else pod.run(process)
        except StartFailed as error:
            assert f"/proc/self/fd/{number}" in str(error)
            continue
        assert ended.output == "inside\n", (number, ended.output)


@pytest.mark.parametrize("how", ["init", "exec"])
def test_t14_no_command_path_leads_out_through_a_descriptor(pod: Pod, tmp_path: Path, how: str) -> None:
    """CVE-2024-21626 again: the command is looked up below /proc/self/fd/N.

    Defence: as above; at execve(2) only 0, 1, 2 and the report socket are open.
    """
    container = pod.start(program(*IDLE)) if how == "exec" else None
    for number in range(3, 16):
        for path in (f"/proc/self/fd/{number}/../../../bin/ls", f"/proc/self/fd/{number}/bin/ls"):
            process = program(path, "/")
            with pytest.raises(StartFailed, match=f"/proc/self/fd/{number}/"):
                if container:
                    pod.exec(container, process)
                else:
                    pod.run(process)


def test_t15_an_init_process_has_no_descriptor_of_ours(pod: Pod) -> None:
    """Descriptors that survive execve(2) are doors. Seen from the host, which sees them all."""
    container = pod.start(program(*IDLE))
    targets = {
        name: os.readlink(f"/proc/{container.pid}/fd/{name}") for name in os.listdir(f"/proc/{container.pid}/fd")
    }
    assert set(targets) == {"0", "1", "2"}
    assert targets["0"] == "/dev/null" and targets["1"].startswith("pipe:") and targets["2"].startswith("pipe:")


@pytest.mark.parametrize("goal", ["mask", "stdin"])
def test_t18_a_null_device_that_is_a_link_is_not_bound_anywhere(pod: Pod, tmp_path: Path, goal: str) -> None:
    """CVE-2025-31133: /dev/null of a volume is a link to a file of /proc, which masking would bind read-write.

    Defence: the null device is opened without following links and must be character device 1:3.
    """
    core_pattern = Path("/proc/sys/kernel/core_pattern")
    before = core_pattern.read_text()
    dev = tmp_path / "dev"
    dev.mkdir()
    (dev / "null").symlink_to("/proc/sys/kernel/core_pattern")
    mounts = (*WITHOUT_DEV, MountSpec("/dev", source=str(dev)))
    process = script(
        "echo '|/evil' > /proc/version; echo '|/evil' > /dev/null", capabilities=all_capabilities(pod.node)
    )
    sentence = "mask paths: .*/proc/version" if goal == "mask" else "set stdio: too many levels of symbolic links"
    with pytest.raises(StartFailed, match=sentence):
        if goal == "mask":
            pod.run(process, mounts=mounts, masked_paths=("/proc/version",), device_nodes=())
        else:  # without descriptors of a caller, all three are the container's null device
            pod.node.run(pod.monitor.start_container(pod.spec(process, mounts=mounts, device_nodes=())))
    assert core_pattern.read_text() == before


@pytest.mark.parametrize("file_or_link", ["file", "wrong-device"])
def test_t18_a_null_device_that_is_something_else_is_refused(pod: Pod, tmp_path: Path, file_or_link: str) -> None:
    """The same with a plain file, or with another device under the name."""
    dev = tmp_path / "dev"
    dev.mkdir()
    if file_or_link == "file":
        (dev / "null").write_text("")
    else:
        os.mknod(dev / "null", 0o020666, os.makedev(1, 5))
    mounts = (*WITHOUT_DEV, MountSpec("/dev", source=str(dev)))
    with pytest.raises(StartFailed, match=r"no such device \(/proc/version\)"):
        pod.run(program("/bin/true"), mounts=mounts, masked_paths=("/proc/version",), device_nodes=())


def test_t23_a_dev_that_is_a_link_is_set_up_inside(pod: Pod, layer: Path, victim: Path, busybox_root: Path) -> None:
    """CVE-2026-41579: /dev of the image is a link; nodes, links and mounts would be made at the host's place.

    Defence: the root is entered before /dev is touched, so a link can only name paths inside.
    """
    (layer / "dev").symlink_to(victim)
    container = pod.start_spec(with_layer(pod.spec(script("ls /dev/; cat /dev/null")), layer))
    assert container.wait().code == 0
    assert b"urandom" in os.read(container.stdout, 4096)


def test_who_leaves_a_chroot_arrives_in_the_root_again(pod: Pod, layer: Path) -> None:
    """The oldest escape: a second chroot below the working directory, and then up with "..".

    Defence: the container's root is the topmost mount of its namespace, so that "up" ends there.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a C compiler is needed")
    subprocess.run([compiler, "-static", "-o", layer / "escape", LOADER.with_name("escape.c")], check=True)
    (layer / "only-here").touch()
    spec = pod.spec(program("/escape", capabilities=all_capabilities(pod.node)))
    container = pod.start_spec(with_layer(spec, layer))
    assert container.wait().code == 0
    assert "only-here" in os.read(container.stdout, 4096).decode().split()


@pytest.mark.parametrize("kind", ["proc", "sysfs"])
def test_proc_and_sys_are_not_mounted_through_a_link(pod: Pod, layer: Path, kind: str) -> None:
    """CVE-2019-19921: /proc is a link into a volume, so what we write to /proc/self could be forged.

    Defence: these two go only on plain directories.
    """
    name = {"proc": "proc", "sysfs": "sys"}[kind]
    (layer / "elsewhere").mkdir()
    (layer / name).symlink_to("/elsewhere")
    with pytest.raises(StartFailed, match=f'mounting "/{name}"'):
        pod.start_spec(with_layer(pod.spec(program("/bin/true")), layer))


@pytest.mark.parametrize("key", ["../../etc/passwd", "kernel/../../../etc/passwd", "net/../../self/oom_score_adj"])
def test_a_sysctl_key_cannot_lead_out_of_its_directory(pod: Pod, key: str) -> None:
    """CVE-2025-52881 is about what lies over /proc/sys; a key with ".." is the plainest way to somewhere else.

    Defence: sysctls are written through a procfs that was mounted for this alone, below its own root.
    """
    with pytest.raises(StartFailed, match="writing a sysctl"):
        pod.run(program("/bin/true"), sysctls={key: "77"})


def test_a_fork_bomb_ends_with_its_container(pod: Pod) -> None:
    """A container whose processes fork faster than anybody reads their list. Defence: its PID namespace, its cgroup."""
    bomb = script("echo up; f() { f & f & wait; }; f", no_new_privileges=True)
    container = pod.start(bomb, resources=Resources(pids_limit=64))
    assert read_line(container.stdout) == "up"
    container.kill()
    pid = container.pid
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the end of the bomb")
