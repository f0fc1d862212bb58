"""Mounts, masks and devices row by row: flags, modes, targets that are links, what a mask withstands, device rules."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from crishim.errors import InvalidSpec, StartFailed
from crishim.model.id_mapping import IdMapping
from crishim.model.process import Capabilities, CgroupSpec, DeviceNode, DeviceRule, MountSpec, User
from tests.support.container import DEVICES, IDLE, MOUNTS, Container, Pod, all_capabilities, program, script
from tests.support.hostile import with_layer


def flags(container: Container, target: str) -> set[str]:
    """Flags of the mount at `target`, as the kernel tells the host."""
    lines = (line.split() for line in container.proc("mountinfo").splitlines())
    return {*next(fields[5] for fields in lines if fields[4] == target).split(",")}


# -- flags


@pytest.mark.parametrize(
    ("given", "there", "absent"),
    [
        (("ro",), {"ro"}, {"rw"}),
        (("nosuid", "nodev", "noexec"), {"nosuid", "nodev", "noexec", "rw"}, {"ro"}),
        (("noatime",), {"noatime"}, {"relatime"}),
        (("relatime",), {"relatime"}, {"noatime"}),
        (("strictatime",), {"rw"}, {"noatime", "relatime"}),
        (("nodiratime",), {"nodiratime"}, set()),
        (("nosymfollow",), {"nosymfollow"}, set()),
        (("ro", "rw"), {"rw"}, {"ro"}),
        (("nosuid", "suid"), {"rw"}, {"nosuid"}),
        (("nodev", "dev", "noexec", "exec"), {"rw"}, {"nodev", "noexec"}),
        (("noatime", "strictatime"), {"rw"}, {"noatime", "relatime"}),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, tuple) else None,
)
def test_the_flags_of_a_mount_are_those_given_and_a_later_one_wins(
    pod: Pod, tmp_path: Path, given: tuple[str, ...], there: set[str], absent: set[str]
) -> None:
    container = pod.start(program(*IDLE), mounts=(*MOUNTS, MountSpec("/data", source=str(tmp_path), flags=given)))
    found = flags(container, "/data")
    assert there <= found and not absent & found, found


@pytest.mark.parametrize("flag", ["nosuid", "noexec", "nodev", "nosymfollow"])
def test_a_flag_bites(pod: Pod, tmp_path: Path, flag: str) -> None:
    (tmp_path / "busybox").write_bytes(Path(pod.root, "bin/busybox").read_bytes())
    (tmp_path / "busybox").chmod(0o755)
    (tmp_path / "link").symlink_to("/etc/group")
    os.mknod(tmp_path / "zero", 0o020666, os.makedev(1, 5))
    mounts = (*MOUNTS, MountSpec("/data", source=str(tmp_path), flags=(flag,)))
    tried = script(
        "/data/busybox true 2>/dev/null && echo executed; head -c1 /data/zero >/dev/null 2>&1 && echo opened;"
        " cat /data/link >/dev/null 2>&1 && echo followed"
    )
    missing = {"nosuid": "", "noexec": "executed", "nodev": "opened", "nosymfollow": "followed"}[flag]
    assert pod.run(tried, mounts=mounts).lines == [
        word for word in ("executed", "opened", "followed") if word != missing
    ]


@pytest.mark.parametrize(
    ("mount", "sentence"),
    [
        (MountSpec("/data", "ext4"), "kind: 'ext4'"),
        (MountSpec("data", "tmpfs"), "target: 'data' is not an absolute path"),
        (MountSpec("/a/../b", "tmpfs"), r"target: '/a/\.\./b' has a \.\. component"),
        (MountSpec("/", "tmpfs"), "target: '/' cannot be mounted over"),
        (MountSpec("/data", "tmpfs", flags=("sync",)), "flags: 'sync'"),
        (MountSpec("/data", source="here"), "source: 'here'"),
    ],
    ids=lambda value: value.target + ":" + value.kind if isinstance(value, MountSpec) else None,
)
def test_a_mount_that_cannot_be_is_refused_by_name(pod: Pod, mount: MountSpec, sentence: str) -> None:
    with pytest.raises(InvalidSpec, match=rf"mounts\[{len(MOUNTS)}\]\.{sentence}"):
        pod.run(program("/bin/true"), mounts=(*MOUNTS, mount))


def test_an_option_that_a_file_system_does_not_know_is_a_sentence(pod: Pod) -> None:
    with pytest.raises(StartFailed, match='mounting "/data": invalid argument'):
        pod.run(program("/bin/true"), mounts=(*MOUNTS, MountSpec("/data", "tmpfs", options=("no_such=1",))))


# -- file systems in memory


@pytest.mark.parametrize(
    ("options", "exists", "mode"),
    [(("mode=711",), True, "711"), (("mode=1777",), True, "1777"), ((), False, "1777"), ((), True, "750")],
    ids=["explicit", "explicit-sticky", "default", "of-the-target"],
)
def test_the_mode_of_a_tmpfs_is_the_one_given_or_its_targets(
    pod: Pod, tmp_path: Path, options: tuple[str, ...], exists: bool, mode: str
) -> None:
    layer = tmp_path / "layer"
    layer.mkdir()
    if exists:
        (layer / "scratch").mkdir()
        (layer / "scratch").chmod(0o750)
    spec = pod.spec(
        program("/bin/stat", "-c", "%a", "/scratch"), mounts=(*MOUNTS, MountSpec("/scratch", "tmpfs", options=options))
    )
    container = pod.start_spec(with_layer(spec, layer))
    assert container.wait().code == 0
    assert os.read(container.stdout, 100).decode() == mode + "\n"


@pytest.mark.parametrize("target", ["/scratch", "/dev"])
def test_a_tmpfs_may_be_read_only(pod: Pod, target: str) -> None:
    mounts = tuple(replace(mount, flags=(*mount.flags, "ro")) if mount.target == target else mount for mount in MOUNTS)
    if target == "/scratch":
        mounts = (*MOUNTS, MountSpec("/scratch", "tmpfs", flags=("ro",)))
    ended = pod.run(
        script(
            f"(touch {target}/x) 2>&1; head -c1 /dev/zero | wc -c; echo x > /dev/null; touch /dev/shm/x && echo shm"
        ),
        mounts=mounts,
    )
    assert ended.lines == [f"touch: {target}/x: Read-only file system", "1", "shm"]


# -- targets


@pytest.mark.parametrize(
    ("link", "target", "real"),
    [
        ("/elsewhere", "/link/made", "/elsewhere/made"),
        ("elsewhere", "/link/made", "/elsewhere/made"),
        ("../../elsewhere", "/link", "/elsewhere"),
        ("/missing/deep", "/link/made", "/missing/deep/made"),
        ("missing", "/link", "/missing"),
    ],
)
def test_a_target_that_passes_a_link_is_where_it_leads_inside(
    pod: Pod, tmp_path: Path, link: str, target: str, real: str
) -> None:
    """Dangling links too: images rely on /var/run -> /run before there is a /run."""
    layer, source = tmp_path / "layer", tmp_path / "source"
    (layer / "elsewhere").mkdir(parents=True)
    (layer / "link").symlink_to(link)
    source.mkdir()
    (source / "content").write_text("here")
    spec = pod.spec(program("/bin/cat", f"{real}/content"), mounts=(*MOUNTS, MountSpec(target, source=str(source))))
    container = pod.start_spec(with_layer(spec, layer))
    assert container.wait().code == 0
    assert os.read(container.stdout, 100) == b"here"


def test_a_file_on_a_directory_and_a_directory_on_a_file_are_sentences(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target, source in (("/etc", tmp_path / "file"), ("/etc/group", tmp_path)):
        with pytest.raises(StartFailed, match=f'mounting "{target}": (not a directory|invalid argument)'):
            pod.run(program("/bin/true"), mounts=(*MOUNTS, MountSpec(target, source=str(source))))


# -- masks


def test_a_masked_file_cannot_be_read_written_moved_removed_or_uncovered(pod: Pod) -> None:
    attack = script(
        "cat /etc/group; echo x > /etc/group; cat /etc/group; rm /etc/group; mv /etc/group /etc/other;"
        " umount /etc/group; mount -t tmpfs x /etc; cat /etc/group; ls /etc"
    )
    ended = pod.run(attack, masked_paths=("/etc/group",))
    assert "root:x" not in ended.output
    assert ended.output.count("busy") == 2 and ended.lines[-2:] == ["group", "passwd"], ended.output


def test_a_file_of_proc_may_be_covered_as_lxcfs_does(make_pod: Callable[..., Pod], tmp_path: Path) -> None:
    (tmp_path / "fake").write_text("MemTotal: 1 kB\n")
    mounts = (*MOUNTS, *(MountSpec(f"/proc/{name}", source=str(tmp_path / "fake")) for name in ("meminfo", "uptime")))
    users = (IdMapping(0, 200_000, 65536),)
    for pod in (make_pod(network=True), make_pod(network=True, uid_mappings=users, gid_mappings=users)):
        seen = pod.run(script("cat /proc/meminfo /proc/uptime"), mounts=mounts, readonly_paths=("/proc/sys",))
        assert seen.lines == ["MemTotal: 1 kB"] * 2


def test_a_covered_file_must_be_on_the_containers_procfs(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "fake").write_text("")
    covered = MountSpec("/proc/meminfo", source=str(tmp_path / "fake"))
    without = tuple(mount for mount in MOUNTS if mount.target != "/proc")
    with pytest.raises(StartFailed, match='mounting "/proc/meminfo": '):
        pod.start(program(*IDLE), mounts=(*without, covered))
    with pytest.raises(StartFailed, match='mounting "/proc/meminfo": '):
        pod.start(program(*IDLE), mounts=(*MOUNTS, replace(covered, source=str(tmp_path))))


def test_masks_hold_on_a_read_only_root(pod: Pod) -> None:
    spec = pod.spec(
        script("cat /etc/group; ls -A /root; (touch /root/x) 2>&1; true"), masked_paths=("/etc/group", "/root")
    )
    container = pod.start_spec(replace(spec, rootfs=replace(spec.rootfs, readonly=True)))
    assert container.wait().code == 0
    assert os.read(container.stdout, 1000).decode() == "touch: /root/x: Read-only file system\n"


def test_a_mask_covers_what_a_link_names(pod: Pod, tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    layer.mkdir()
    (layer / "link").symlink_to("/etc/group")
    spec = pod.spec(program("/bin/cat", "/etc/group", "/link"), masked_paths=("/link",))
    container = pod.start_spec(with_layer(spec, layer))
    assert container.wait().code == 0
    assert os.read(container.stdout, 100) == b""


# -- devices


@pytest.mark.parametrize(
    ("access", "reads", "writes"),
    [("", False, False), ("r", True, False), ("w", False, True), ("rw", True, True), ("m", False, False)],
)
@pytest.mark.parametrize("kind", ["b", "c"])
def test_a_device_may_be_used_as_its_rule_says(pod: Pod, kind: str, access: str, reads: bool, writes: bool) -> None:
    """With numbers that no driver has: ENXIO or ENODEV tells that the rule let it through, EPERM that it did not."""
    rules = (DeviceRule(True, kind, 250, 77, access),) if access else ()
    node = DeviceNode("/dev/thing", kind, 250, 77)
    spec = pod.spec(
        script("(: < /dev/thing) 2>&1; (: > /dev/thing) 2>&1", capabilities=all_capabilities(pod.node)),
        device_nodes=(*DEVICES, node),
    )
    container = pod.start_spec(replace(spec, cgroup=CgroupSpec(spec.cgroup.path, devices=rules)))
    container.wait()
    lines = os.read(container.stdout, 1000).decode().splitlines()
    assert ["not permitted" not in line for line in lines] == [reads, writes], lines
    assert all("No such device" in line or "not permitted" in line for line in lines), lines


def test_a_list_of_devices_may_repeat_the_usual_ones(pod: Pod) -> None:
    again = (DeviceNode("/dev/tty", "c", 5, 0), DeviceNode("/dev/null", "c", 1, 3))
    assert (
        pod.run(script("echo fine > /dev/null; stat -c %t:%T /dev/tty"), device_nodes=(*DEVICES, *again)).output
        == "5:0\n"
    )


def test_a_device_has_the_owner_mode_and_place_asked_for(pod: Pod) -> None:
    nodes = (DeviceNode("/dev/deep/thing", "b", 250, 77, 0o640, 12, 34), DeviceNode("/srv/other", "c", 250, 78, 0o600))
    shown = pod.run(script("stat -c '%a %u:%g %t:%T %F' /dev/deep/thing /srv/other"), device_nodes=(*DEVICES, *nodes))
    assert shown.lines == ["640 12:34 fa:4d block special file", "600 0:0 fa:4e character special file"]


def test_another_device_of_a_usual_name_is_a_sentence(pod: Pod) -> None:
    with pytest.raises(StartFailed, match="device nodes in /dev: file exists"):
        pod.run(program("/bin/true"), device_nodes=(*DEVICES, DeviceNode("/dev/null", "c", 1, 5)))


def test_the_null_device_stays_roots_whoever_uses_it(pod: Pod) -> None:
    who = User(uid=1000, gid=1000)
    container = pod.start(program(*IDLE, user=who))
    assert pod.exec(container, program("/bin/stat", "-c", "%u:%g %a", "/dev/null", user=who)).output == "0:0 666\n"


# -- cgroups inside


def test_cgroups_may_be_writable_when_asked_for(pod: Pod) -> None:
    mounts = tuple(
        replace(mount, flags=tuple(flag for flag in mount.flags if flag != "ro")) if mount.kind == "cgroup" else mount
        for mount in MOUNTS
    )
    chown = frozenset({"CAP_SYS_ADMIN"})
    make = script(
        "cd /sys/fs/cgroup; for d in pids .; do [ -e $d/cgroup.procs ] && { mkdir $d/inner"
        " && echo $$ > $d/inner/cgroup.procs && grep -c . $d/inner/cgroup.procs; break; }; done; exec sleep 600",
        capabilities=Capabilities(chown, chown, chown),
    )
    container = pod.start(make, mounts=mounts)
    count = os.read(container.stdout, 100)
    assert int(count) >= 1
    assert pod.exec(container, script("cat /proc/self/cgroup")).code == 0, "an exec joins though the init moved"
