"""The role that copies VOLUME directories, on trees that an image could hold."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.support.roles import run_role

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a root directory of one's own needs root")

_LEVELS = 3000


def copied(layers: list[Path], target: Path, *paths: bytes) -> dict[str, Any]:
    target.mkdir()
    descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        request = {"lowers": [os.fsencode(layer) for layer in layers], "paths": list(paths)}
        return asyncio.run(run_role("copy_volumes", request, [descriptor]))
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_hole_stays_a_hole(tmp_path: Path, layers: int) -> None:
    image = tmp_path / "image"
    (image / "data").mkdir(parents=True)
    with open(image / "data/sparse", "wb") as file:
        file.truncate(1 << 34)
        file.seek(1 << 33)
        file.write(b"x" * 5000)
    lowers = [image]
    if layers == 2:
        (tmp_path / "lower").mkdir()
        lowers.append(tmp_path / "lower")
    assert copied(lowers, tmp_path / "out", b"/data") == {"targets": [b"/data"]}
    made = os.stat(tmp_path / "out/0/sparse")
    assert made.st_size == 1 << 34 and made.st_blocks * 512 < 1 << 20
    with open(tmp_path / "out/0/sparse", "rb") as file:
        file.seek((1 << 33) - 1)
        assert file.read(5002) == b"\0" + b"x" * 5000 + b"\0"


def test_a_tree_of_any_depth_is_copied(tmp_path: Path) -> None:
    image = tmp_path / "image"
    (image / "data").mkdir(parents=True)
    here = os.open(image / "data", os.O_RDONLY)
    for _ in range(_LEVELS):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("end", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=here))
    os.close(here)
    assert copied([image], tmp_path / "out", b"/data") == {"targets": [b"/data"]}
    here = os.open(tmp_path / "out/0", os.O_RDONLY)
    for _ in range(_LEVELS):
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    assert os.listdir(here) == ["end"]
    os.close(here)


def test_devices_whiteouts_and_attributes_of_the_host_are_not_copied(tmp_path: Path) -> None:
    image = tmp_path / "image"
    data = image / "data"
    data.mkdir(parents=True)
    os.mknod(data / "kmsg", stat.S_IFCHR | 0o666, os.makedev(1, 11))
    os.mknod(data / "whiteout", stat.S_IFCHR, 0)
    (data / "file").write_text("x")
    os.setxattr(data / "file", "user.kept", b"1")
    os.setxattr(data / "file", "trusted.secret", b"1")
    assert copied([image], tmp_path / "out", b"/data") == {"targets": [b"/data"]}
    assert os.listdir(tmp_path / "out/0") == ["file"]
    assert [name for name in os.listxattr(tmp_path / "out/0/file") if name.startswith(("user", "trusted"))] == [
        "user.kept"
    ]


def test_links_of_the_image_end_inside_of_it(tmp_path: Path) -> None:
    image = tmp_path / "image"
    (image / "inner").mkdir(parents=True)
    (image / "inner/mine").write_text("")
    (image / "up").symlink_to("../../../../" + str(tmp_path / "host"))
    (image / "absolute").symlink_to("/inner")
    host = tmp_path / "host"
    host.mkdir()
    (host / "secret").write_text("")
    reply = copied([image], tmp_path / "out", b"/absolute", b"/absolute/new/er", b"/")
    assert reply == {"targets": [b"/inner", b"/inner/new/er", b"/"]}
    assert [sorted(os.listdir(tmp_path / "out" / name)) for name in "012"] == [
        ["mine"],
        [],
        ["absolute", "inner", "up"],
    ]
    reply = copied([image], tmp_path / "again", b"/up")
    assert reply["kind"] == "InvalidSpec" and "leads nowhere" in reply["error"]
