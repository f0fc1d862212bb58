"""Layers applied by the confined child on a real file system: what honest ones become, what hostile ones cannot."""

from __future__ import annotations

import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.support.layers import archive, directory, entry, hardlink, snapshot, symlink, unpack

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking a layer needs root")

FORMATS = (
    ["--format=pax"],
    ["--format=gnu"],
    ["--format=gnu", "--sparse"],
    ["--format=pax", "--sparse"],
    ["--format=pax", "--sparse", "--sparse-version=0.0"],
    ["--format=pax", "--sparse", "--sparse-version=0.1"],
)
OPAQUE = "trusted.overlay.opaque"


def make_tree(top: Path) -> None:
    """One of each kind of file, with everything a layer can carry."""
    (top / "bin").mkdir(parents=True)
    (top / "bin/su").write_bytes(b"program" * 1000)
    os.chown(top / "bin/su", 0, 7)
    (top / "bin/su").chmod(0o6755)
    os.link(top / "bin/su", top / "bin/other")
    (top / "bin/ping").write_bytes(b"p")
    os.setxattr(top / "bin/ping", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
    os.setxattr(top / "bin/ping", "user.note", b"two\nlines=\xff")
    (top / "link").symlink_to("/bin/../nowhere/" + "x" * 150)
    os.lchown(top / "link", 12, 13)
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(top / "disk", stat.S_IFBLK | 0o640, os.makedev(7, 300))
    os.mkfifo(top / "fifo", 0o622)
    (top / ("deep/" * 40 + "d")).mkdir(parents=True)
    (top / ("deep/" * 40) / ("long-name-" * 20)).write_bytes(b"content")
    (top / "empty").touch()
    (top / "bytes-\udcff").write_bytes(b"\0")
    (top / "shared").mkdir()
    os.chown(top / "shared", 3_000_000_000, 42)
    (top / "shared").chmod(0o3777)
    with (top / "sparse").open("wb") as file:
        for at in range(40):
            file.seek(at * 1_000_000)
            file.write(b"data%d" % at)
        file.truncate(50_000_000)
    for number, path in enumerate(sorted(top.rglob("*"), reverse=True)):
        os.utime(path, ns=(0, 1_600_000_000_123456789 + number), follow_symlinks=False)


@pytest.mark.parametrize("options", FORMATS, ids=" ".join)
def test_what_gnu_tar_packs_comes_out_the_same(tmp_path: Path, options: list[str]) -> None:
    make_tree(tmp_path / "source")
    xattrs = ["--xattrs", "--xattrs-include=*"] if "--format=pax" in options else []
    packed = subprocess.run(
        ["tar", *options, *xattrs, "--numeric-owner", "-C", tmp_path / "source", "-cf", "-", "."],
        check=True,
        capture_output=True,
    ).stdout
    reply = unpack(packed, tmp_path / "layer")
    assert "error" not in reply
    expected, found = snapshot(tmp_path / "source"), snapshot(tmp_path / "layer")
    if not xattrs:  # the old formats carry neither attributes nor parts of a second
        expected = {name: (*value[:4], value[4] // 10**9, value[5], {}) for name, value in expected.items()}
        found = {name: (*value[:4], value[4] // 10**9, *value[5:]) for name, value in found.items()}
    assert found == expected
    if "--sparse" in options:
        assert (tmp_path / "layer/sparse").stat().st_blocks < 2000
    assert reply["root_given"]
    assert reply["inodes"] == len({path.lstat().st_ino for path in (tmp_path / "layer").rglob("*")}) + 1


def test_whiteouts_become_devices_and_opaque_marks(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    members = [("d/.wh.gone", b""), directory("e"), ("e/.wh..wh..opq", b""), ("e/new", b"n"), (".wh..wh.plnk", b"")]
    assert "error" not in unpack(archive(members), layer)
    assert snapshot(layer).keys() == {"d", "d/gone", "e", "e/new"}
    gone = (layer / "d/gone").lstat()
    assert stat.S_ISCHR(gone.st_mode)
    assert gone.st_rdev == 0
    assert os.getxattr(layer / "e", OPAQUE) == b"y"


def test_a_whiteout_and_its_name_in_one_layer_hide_the_lower_one_only(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    members = [
        (".wh.before", b""), directory("before"), ("before/f", b""),
        directory("after"), ("after/f", b""), (".wh.after", b""),
        (".wh.implied", b""), ("implied/f", b""),
        ("file", b"f"), (".wh.file", b""),
    ]  # fmt: skip
    assert "error" not in unpack(archive(members), layer)
    assert (layer / "file").read_bytes() == b"f"
    for name in ("before", "after", "implied"):
        assert (layer / name / "f").exists()
        assert os.getxattr(layer / name, OPAQUE) == b"y"


def test_a_layer_whose_root_is_opaque_says_so(tmp_path: Path) -> None:
    assert unpack(archive([(".wh..wh..opq", b""), ("f", b"")]), tmp_path / "layer")["root_opaque"]


def test_a_later_entry_of_the_same_name_counts(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    members = [
        ("file", b"one"), ("file", b"two"),
        directory("was-directory"), ("was-directory/f", b""), symlink("was-directory", "file"),
        symlink("was-link", "file"), directory("was-link", 0o700),
        directory("kept"), ("kept/f", b""), directory("kept", 0o711),
    ]  # fmt: skip
    assert "error" not in unpack(archive(members), layer)
    assert (layer / "file").read_bytes() == b"two"
    assert (layer / "was-directory").is_symlink()
    assert stat.S_IMODE((layer / "was-link").lstat().st_mode) == 0o700
    assert (layer / "kept/f").exists()
    assert stat.S_IMODE((layer / "kept").lstat().st_mode) == 0o711


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([("../escape", b"")], "climbs out"),
        ([("a/../../escape", b"")], "climbs out"),
        ([hardlink("a", "../../etc/passwd")], "climbs out"),
        ([hardlink("a", "/etc/passwd")], "does not hold"),
        ([hardlink("a", "a")], "itself"),
        ([directory("d"), hardlink("a", "d")], "cannot be made"),
        ([("f", b""), ("f/below", b"")], "no directory"),
        ([symlink("s", "/nowhere"), ("s/below", b"")], "leads nowhere"),
        ([symlink("s", "s"), ("s/below", b"")], "cannot be made"),
        ([(".wh..", b"")], "whiteout"),
        ([("d/.wh.", b"")], "whiteout"),
        ([("x" * 300, b"")], "cannot be made"),
        ([("/".join(["d" * 200] * 30), b"")], "cannot be made"),
        ([entry(".", tarfile.REGTYPE)], "root directory"),
        ([symlink("s", "x" * 5000)], "cannot be made"),
    ],
)  # fmt: skip
def test_a_hostile_layer_is_refused_with_a_sentence(
    tmp_path: Path, members: list[tarfile.TarInfo | tuple[str, bytes]], why: str
) -> None:
    reply = unpack(archive(members), tmp_path / "layer")
    assert reply["kind"] == "InvalidSpec"
    assert why in reply["error"]
    assert set(os.listdir(tmp_path)) == {"layer"}


def test_limits_of_bytes_and_entries_are_kept(tmp_path: Path) -> None:
    assert "larger than" in unpack(archive([("f", bytes(100_000))]), tmp_path / "a", max_bytes=50_000)["error"]
    assert (
        "more than 3 entries"
        in unpack(archive([(str(n), b"") for n in range(4)]), tmp_path / "b", max_entries=3)["error"]
    )


def test_attributes_that_steer_overlayfs_or_label_are_dropped(tmp_path: Path) -> None:
    file = entry("f")
    names = ("trusted.overlay.redirect", "trusted.x", "user.overlay.opaque", "security.selinux", "user.kept")
    file.pax_headers = {f"SCHILY.xattr.{name}": "v" for name in names}
    assert "error" not in unpack(archive([file]), tmp_path / "layer")
    assert os.listxattr(tmp_path / "layer/f") == ["user.kept"]
