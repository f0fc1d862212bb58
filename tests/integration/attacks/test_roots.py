"""Images and mounts that try to make the runtime act on the host while it builds a container's root.

Each test attacks in the way of the CVE its docstring names, and says what the defence is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from crishim.errors import InvalidSpec, StartFailed
from crishim.model.process import MountSpec
from tests.support.container import IDLE, MOUNTS, Pod, all_capabilities, program, script
from tests.support.hostile import compiled, swapping, with_layer

WITHOUT_DEV = tuple(mount for mount in MOUNTS if not mount.target.startswith("/dev"))
CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")


@pytest.mark.parametrize("target", ["/proc", "/proc/self/attr", "/proc/sys", "/dev/../proc"])
def test_t04_nothing_is_mounted_over_proc(pod: Pod, tmp_path: Path, target: str) -> None:
    """CVE-2019-16884: a volume over /proc, where the runtime would write labels to files of the attacker.

    Defence: such a mount is refused before anything is made.
    """
    with pytest.raises(InvalidSpec, match="mounts"):
        pod.run(program("/bin/true"), mounts=(*MOUNTS, MountSpec(target, source=str(tmp_path))))


@pytest.mark.parametrize("target", ["/data", "/data/sys/kernel", "/data/self/attr", "/data/sys/kernel/core_pattern"])
def test_t04_nothing_is_mounted_over_proc_by_a_link_of_the_image(
    pod: Pod, layer: Path, tmp_path: Path, target: str
) -> None:
    """The same by an innocent path, which a link of the image leads into /proc.

    Defence: a target is looked at once it is open, and must not be on the container's procfs.
    """
    (layer / "data").symlink_to("/proc")
    source = tmp_path / "source"
    if target.endswith("pattern"):
        source.write_text("forged")
    else:
        source.mkdir()
    spec = pod.spec(program("/bin/true"), mounts=(*MOUNTS, MountSpec(target, source=str(source))))
    with pytest.raises(StartFailed, match=f'mounting "{target}": .*cannot be mounted over'):
        pod.start_spec(with_layer(spec, layer))


def test_t04_a_file_system_of_its_own_does_not_get_over_proc_either(pod: Pod, layer: Path) -> None:
    """The same with a tmpfs, as a volume in memory."""
    (layer / "data").symlink_to("/proc/sys")
    spec = pod.spec(program("/bin/true"), mounts=(*MOUNTS, MountSpec("/data", "tmpfs")))
    with pytest.raises(StartFailed, match=r'mounting "/data": .*cannot be mounted over'):
        pod.start_spec(with_layer(spec, layer))


@pytest.mark.parametrize("target", ["/link/sub/made", "/link/made/deep"])
def test_t05_a_mount_target_below_a_link_of_the_image_stays_inside(
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


def test_t06_a_proc_in_a_volume_that_another_container_exchanges_is_refused(
    pod: Pod, layer: Path, tmp_path: Path
) -> None:
    """CVE-2019-19921: /proc leads into a volume, where another container exchanges directories during the start.

    Defence: proc and sysfs go only on plain directories, with no link on the way.
    """
    volume = tmp_path / "volume"
    for name in ("real", "fake"):
        (volume / name / "proc").mkdir(parents=True)
    (layer / "proc").symlink_to("/volume/real/proc")
    mounts = (MountSpec("/volume", source=str(volume)), *MOUNTS)
    spec = with_layer(pod.spec(program("/bin/true"), mounts=mounts), layer)
    with swapping(volume / "real", volume / "fake"):
        for _ in range(5):
            with pytest.raises(StartFailed, match='mounting "/proc": too many levels of symbolic links'):
                pod.start_spec(spec)


@pytest.mark.parametrize("missing", [False, True], ids=["t08-existing", "t16-missing"])
def test_t08_t16_a_target_swapped_for_a_link_during_the_mount_stays_inside(
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
            assert places and places <= {*inside}, places
            container.kill()
            if missing:
                for end in ("real", "trap"):
                    shutil.rmtree(volume / end / "made", ignore_errors=True)
    pod.start(program(*IDLE), mounts=mounts).kill()  # with nobody in the way the same start succeeds
    assert str(victim) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize("name", ["proc", "sys"])
def test_t12_proc_and_sys_are_not_mounted_through_a_link(pod: Pod, layer: Path, name: str) -> None:
    """CVE-2023-27561, CVE-2023-28642: /proc or /sys of the image is a link, so masks miss what is used.

    Defence: as above.
    """
    (layer / "elsewhere").mkdir()
    (layer / name).symlink_to("/elsewhere")
    with pytest.raises(StartFailed, match=f'mounting "/{name}": too many levels'):
        pod.start_spec(with_layer(pod.spec(program("/bin/true")), layer))


def test_t17_files_of_the_pod_do_not_follow_links_of_the_image(
    pod: Pod, layer: Path, victim: Path, tmp_path: Path
) -> None:
    """CVE-2025-24965: the files that a runtime makes in a root exist in the image as links to the host's.

    Defence: they are bound from outside, on targets that are resolved inside the root; nothing is written by name.
    """
    names = ("hosts", "hostname", "resolv.conf")
    (layer / "etc").mkdir()
    (tmp_path / "ours").write_text("of the pod")
    for name in names:
        (layer / "etc" / name).symlink_to(victim / "file" if name == "hosts" else victim / "sub" / name)
    mounts = (*MOUNTS, *(MountSpec(f"/etc/{name}", source=str(tmp_path / "ours")) for name in names))
    show = script("cat /etc/hosts /etc/hostname /etc/resolv.conf")
    container = pod.start_spec(with_layer(pod.spec(show, mounts=mounts), layer))
    assert container.wait().code == 0
    assert os.read(container.stdout, 100) == b"of the pod" * 3


@pytest.mark.parametrize("goal", ["mask", "stdin"])
def test_t18_a_null_device_that_is_a_link_is_not_bound_anywhere(pod: Pod, tmp_path: Path, goal: str) -> None:
    """CVE-2025-31133: /dev/null of a volume is a link to a file of /proc, which masking would bind read-write.

    Defence: the null device is opened without following links and must be character device 1:3.
    """
    before = CORE_PATTERN.read_text()
    dev = tmp_path / "dev"
    dev.mkdir()
    (dev / "null").symlink_to(CORE_PATTERN)
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
    assert CORE_PATTERN.read_text() == before


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


@pytest.mark.parametrize("key", ["../../etc/passwd", "kernel/../../../etc/passwd", "net/../../self/oom_score_adj"])
def test_t21_a_sysctl_key_cannot_lead_out_of_its_directory(pod: Pod, key: str) -> None:
    """CVE-2025-52881 is about what lies over /proc/sys; a key with ".." is the plainest way to somewhere else.

    Defence: sysctls are written through a procfs that was mounted for this alone, below its own root.
    """
    with pytest.raises(StartFailed, match="writing a sysctl"):
        pod.run(program("/bin/true"), sysctls={key: "77"})


def test_t21_a_sysctl_reaches_the_kernel_though_its_file_is_covered(
    make_pod: Callable[..., Pod], layer: Path, tmp_path: Path
) -> None:
    """CVE-2025-52881: what lies at /proc/sys of the container is not procfs, and takes the write.

    Defence: as above; the procfs of the container is not asked. The image brings the file, and no /proc is mounted.
    """
    pod = make_pod(network=True)
    place = layer / "proc/sys/net/core"
    place.mkdir(parents=True)
    (place / "somaxconn").write_text("forged")
    mounts = tuple(mount for mount in MOUNTS if mount.target != "/proc")
    spec = pod.spec(
        program("/bin/cat", "/proc/sys/net/core/somaxconn"), mounts=mounts, sysctls={"net.core.somaxconn": "77"}
    )
    container = pod.start_spec(with_layer(spec, layer))
    assert container.wait().code == 0
    assert os.read(container.stdout, 100) == b"forged"
    seen = pod.run(program("/bin/cat", "/proc/sys/net/core/somaxconn"))
    assert seen.output == "77\n"


def test_t23_a_dev_that_is_a_link_is_set_up_inside(pod: Pod, layer: Path, victim: Path, busybox_root: Path) -> None:
    """CVE-2026-41579: /dev of the image is a link; nodes, links and mounts would be made at the host's place.

    Defence: the root is entered before /dev is touched, so a link can only name paths inside.
    """
    (layer / "dev").symlink_to(victim)
    container = pod.start_spec(with_layer(pod.spec(script("ls /dev/; cat /dev/null")), layer))
    assert container.wait().code == 0
    assert b"urandom" in os.read(container.stdout, 4096)


@pytest.mark.parametrize("link", ["../../../../../../..{victim}", "{victim}"], ids=["climbing", "absolute"])
def test_t43_an_etc_that_is_a_link_gets_nothing_made_on_the_host(
    pod: Pod, layer: Path, victim: Path, tmp_path: Path, link: str
) -> None:
    """CVE-2024-5154: /etc of the image leads to the host's, where the runtime would make mtab, hosts and the rest.

    Defence: as above; there is no mtab, and what is missing is made inside.
    """
    (layer / "etc").symlink_to(link.format(victim=victim))
    (tmp_path / "ours").write_text("of the pod")
    mounts = (*MOUNTS, MountSpec("/etc/hosts", source=str(tmp_path / "ours")))
    show = script("ls -A /etc/; cat /etc/hosts")
    container = pod.start_spec(with_layer(pod.spec(show, mounts=mounts), layer))
    assert container.wait().code == 0
    assert os.read(container.stdout, 100) == b"hosts\nof the pod"


@pytest.mark.parametrize("link", ["../../../../../../..{victim}", "{victim}"], ids=["climbing", "absolute"])
def test_t49_a_working_directory_below_a_link_is_made_inside(pod: Pod, layer: Path, victim: Path, link: str) -> None:
    """CVE-2024-9407 and its kin: WORKDIR is below a link of the image, and the runtime makes what is missing of it.

    Defence: it is made after the root was entered, component by component.
    """
    (layer / "app").symlink_to(link.format(victim=victim))
    spec = with_layer(pod.spec(program("/bin/pwd", "-P", cwd="/app/made/deep")), layer)
    container = pod.start_spec(spec)
    assert container.wait().code == 0
    assert os.read(container.stdout, 4096).decode() == f"{victim}/made/deep\n"
    assert spec.rootfs.upper is not None
    assert (Path(spec.rootfs.upper) / str(victim).lstrip("/") / "made/deep").is_dir()


def test_who_leaves_a_chroot_arrives_in_the_root_again(pod: Pod, layer: Path) -> None:
    """The oldest escape: a second chroot below the working directory, and then up with "..".

    Defence: the container's root is the topmost mount of its namespace, so that "up" ends there.
    """
    compiled("escape.c", layer / "escape")
    (layer / "only-here").touch()
    spec = pod.spec(program("/escape", capabilities=all_capabilities(pod.node)))
    container = pod.start_spec(with_layer(spec, layer))
    assert container.wait().code == 0
    assert "only-here" in os.read(container.stdout, 4096).decode().split()
