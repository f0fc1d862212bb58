"""What mount flags do, told by what a process may do there; and what a tmpfs takes over from the place it covers."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crishim.errors import InvalidSpec
from crishim.model.process import Capabilities, MountSpec, RootFs, User
from tests.support.container import DEVICES, MOUNTS, Node, Pod, all_capabilities, script

NOBODY = User(uid=65534, gid=65534)


@pytest.fixture(scope="module")
def who(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static program that tells its effective uid: what a shell gives away at once."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    directory = tmp_path_factory.mktemp("who")
    source = '#include <stdio.h>\n#include <unistd.h>\nint main(void) { return printf("%d\\n", geteuid()) < 0; }\n'
    (directory / "who.c").write_text(source)
    subprocess.run(["gcc", "-static", "-o", directory / "who", directory / "who.c"], check=True)
    return directory / "who"


@pytest.fixture
def tree(tmp_path: Path, who: Path) -> Iterator[Path]:
    """A directory on a file system that allows everything, with another one mounted below it."""
    tree = tmp_path / "tree"
    tree.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tree], check=True)
    (tree / "below").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tree / "below"], check=True)
    for place in (tree, tree / "below"):
        place.chmod(0o777)
        shutil.copy2(who, place / "who")
        (place / "who").chmod(0o4755)
        os.mknod(place / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    yield tree
    subprocess.run(["umount", "--lazy", "--recursive", tree], check=True)


def run(pod: Pod, text: str, *mounts: MountSpec, **changes: object) -> list[str]:
    return pod.run(script(text, **changes), mounts=(*MOUNTS, *mounts)).lines


def try_all(place: str) -> str:
    return (
        f"{place}/who; "
        f"(exec 3< {place}/null) 2> /dev/null && echo opened; (echo > {place}/new) 2> /dev/null && echo wrote"
    )


@pytest.mark.parametrize(
    ("flags", "lines"),
    [
        ((), ["0", "opened", "wrote"]),
        (("nosuid",), ["65534", "opened", "wrote"]),
        (("nodev",), ["0", "wrote"]),
        (("noexec",), ["opened", "wrote"]),
        (("ro",), ["0", "opened"]),
        (("ro", "nosuid", "nodev", "noexec"), []),
    ],
)
def test_flags_of_a_bind_mount_take_away_what_they_say(
    node: Node, pod: Pod, tree: Path, flags: tuple[str, ...], lines: list[str]
) -> None:
    mount = MountSpec("/x", source=str(tree), flags=flags)
    bounding = all_capabilities(node).bounding
    process = {"user": NOBODY, "no_new_privileges": False, "capabilities": Capabilities(bounding=bounding)}
    found = run(pod, f"({try_all('/x')}) 2> /dev/null", mount, **process)
    assert found == lines


def test_read_only_is_the_mount_alone_and_recursively_all_below(pod: Pod, tree: Path) -> None:
    text = "for place in /x /x/below; do (echo > $place/new) 2> /dev/null && echo $place; done"
    assert run(pod, text, MountSpec("/x", source=str(tree), flags=("ro",))) == ["/x/below"]
    assert run(pod, text, MountSpec("/x", source=str(tree), flags=("rro",))) == []


def test_a_bind_that_is_not_recursive_shows_nothing_that_is_mounted_below(pod: Pod, tree: Path) -> None:
    assert run(pod, "ls /x/below", MountSpec("/x", source=str(tree), recursive=False)) == []


# -- tmpfs


@pytest.fixture
def layered(busybox_root: Path, tmp_path: Path) -> RootFs:
    """A root with a directory that a tmpfs will cover."""
    layer = tmp_path / "layer"
    covered = layer / "covered"
    (covered / "sub").mkdir(parents=True)
    covered.chmod(0o1750)
    (covered / "file").write_text("content\n")
    os.chown(covered / "file", 7, 8)
    (covered / "file").chmod(0o4711)
    os.utime(covered / "file", (1000, 2000))
    (covered / "sub" / "deep").write_bytes(b"x" * 3_000_000)
    (covered / "sub").chmod(0o2700)
    os.utime(covered / "sub", (1000, 3000))
    (covered / "link").symlink_to("/etc/passwd")
    os.mkfifo(covered / "fifo", 0o640)
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    lowers = (str(layer), str(busybox_root))
    return RootFs(lowers=lowers, upper=str(tmp_path / "upper"), work=str(tmp_path / "work"))


def in_root(pod: Pod, rootfs: RootFs, text: str, *mounts: MountSpec, **changes: object) -> list[str]:
    return pod.run(script(text, **changes), rootfs=rootfs, mounts=(*MOUNTS, *mounts)).lines


def test_a_tmpfs_begins_with_what_it_covers_when_that_is_asked_for(
    node: Node, pod: Pod, layered: RootFs, tmp_path: Path
) -> None:
    text = (
        "cd /covered; stat -c '%n %a %u %g %F' file link fifo sub sub/deep .; stat -c '%n %Y' file sub; "
        "cat file; readlink link; wc -c < sub/deep; echo changed > file; stat -f -c %T ."
    )
    assert in_root(
        pod, layered, text, MountSpec("/covered", "tmpfs", copy_up=True), capabilities=all_capabilities(node)
    ) == [
        "file 4711 7 8 regular file",
        "link 777 0 0 symbolic link",
        "fifo 640 0 0 fifo",
        "sub 2700 0 0 directory",
        "sub/deep 644 0 0 regular file",
        ". 1750 0 0 directory",
        "file 2000",
        "sub 3000",
        "content",
        "/etc/passwd",
        "3000000",
        "tmpfs",
    ]
    assert (tmp_path / "layer" / "covered" / "file").read_text() == "content\n"
    assert not list((tmp_path / "upper").glob("covered/*"))


def test_a_read_only_tmpfs_with_content_takes_no_writes(node: Node, pod: Pod, layered: RootFs) -> None:
    mount = MountSpec("/covered", "tmpfs", flags=("ro",), copy_up=True)
    text = "cat /covered/file; touch /covered/new 2> /dev/null || echo refused"
    assert in_root(pod, layered, text, mount, capabilities=all_capabilities(node)) == ["content", "refused"]


def test_mounts_find_their_place_in_a_tmpfs_that_will_be_read_only(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s\n")
    mounts = (MountSpec("/run", "tmpfs", flags=("ro",)), MountSpec("/run/a/secret", source=str(tmp_path / "secret")))
    assert run(pod, "cat /run/a/secret; touch /run/x 2> /dev/null || echo refused", *mounts) == ["s", "refused"]


def test_a_tmpfs_that_does_not_hold_what_it_covers_is_a_sentence(pod: Pod, layered: RootFs) -> None:
    mount = MountSpec("/covered", "tmpfs", options=("size=64k",), copy_up=True)
    with pytest.raises(Exception, match='mounting "/covered": no space left on device'):
        pod.start_spec(pod.spec(script("true"), rootfs=layered, mounts=(*MOUNTS, mount)))


@pytest.mark.parametrize(
    ("mount", "mode"),
    [
        (MountSpec("/covered", "tmpfs"), "1750"),
        (MountSpec("/covered", "tmpfs", options=("mode=711",)), "711"),
        (MountSpec("/brand/new", "tmpfs"), "1777"),
    ],
)
def test_a_tmpfs_has_the_mode_given_or_of_what_it_covers(
    pod: Pod, layered: RootFs, mount: MountSpec, mode: str
) -> None:
    assert in_root(pod, layered, f"stat -c %a {mount.target}; ls {mount.target}", mount) == [mode]


def test_dev_is_read_only_when_asked_with_its_nodes_in_it(pod: Pod) -> None:
    mounts = tuple(replace(mount, flags=(*mount.flags, "ro")) if mount.target == "/dev" else mount for mount in MOUNTS)
    text = "touch /dev/new 2> /dev/null || echo refused; echo lost > /dev/null && ls /dev/pts/ptmx"
    assert pod.run(script(text), mounts=mounts, device_nodes=DEVICES).lines == ["refused", "/dev/pts/ptmx"]


@pytest.mark.parametrize(
    "mount", [MountSpec("/x", source="/y", copy_up=True), MountSpec("/dev", "tmpfs", copy_up=True)]
)
def test_only_a_tmpfs_can_begin_with_what_it_covers(pod: Pod, mount: MountSpec) -> None:
    with pytest.raises(InvalidSpec, match=r"mounts\[0\].copy_up"):
        pod.start_spec(pod.spec(script("true"), mounts=(mount,)))
