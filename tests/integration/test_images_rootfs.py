"""What a container sees of an image: layers stacked by overlayfs, its own writable layer, the users in it."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import shutil
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crishim.app.serve import ROLES
from crishim.errors import InvalidSpec, NotFound
from crishim.images.demo import build_demo_image
from crishim.images.store import ImageStore
from crishim.images.users import UserDatabase
from crishim.linux.mount import new_mount
from crishim.model.id_mapping import IdMapping
from crishim.model.image import Image
from crishim.model.process import RootFs
from crishim.model.sandbox import NamespaceMode, UserNamespace
from tests.support.layers import archive, directory, symlink
from tests.support.registry import image_config, sha256
from tests.support.roles import ForkUnpacker, run_role

MAPS = (IdMapping(0, 100_000, 65536),)
USERS = UserNamespace(NamespaceMode.POD, MAPS, MAPS)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="layers and overlays need root")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    store = ImageStore(tmp_path / "root", ForkUnpacker())
    yield store
    store.close()


def save(path: Path, layers: list[bytes], tags: list[str]) -> Path:
    """An archive as docker save writes it."""
    config = image_config([sha256(layer) for layer in layers], {"User": "app"})
    manifest = [{"Config": "config.json", "RepoTags": tags, "Layers": [f"{n}/layer.tar" for n in range(len(layers))]}]
    members: list[tarfile.TarInfo | tuple[str, bytes]] = [("config.json", config)]
    members += [(f"{number}/layer.tar", layer) for number, layer in enumerate(layers)]
    members.append(("manifest.json", json.dumps(manifest).encode()))
    path.write_bytes(archive(members))
    return path


def load(store: ImageStore, tmp_path: Path, *layers: bytes, tag: str = "test:1") -> Image:
    (image,) = asyncio.run(store.load(save(tmp_path / "archive.tar", list(layers), [tag])))
    return image


@contextmanager
def overlay(rootfs: RootFs) -> Iterator[int]:
    """The root directory of a container as a detached mount, which nobody else can see."""
    options: list[tuple[bytes, bytes | None]] = [(b"lowerdir", ":".join(rootfs.lowers).encode())]
    assert rootfs.upper
    assert rootfs.work
    options += [(b"upperdir", rootfs.upper.encode()), (b"workdir", rootfs.work.encode())]
    mounted = new_mount(b"overlay", tuple(options))
    try:
        yield mounted
    finally:
        os.close(mounted)


def names(root: int, path: str = ".") -> set[str]:
    descriptor = os.open(path, os.O_RDONLY, dir_fd=root)
    try:
        return set(os.listdir(descriptor))
    finally:
        os.close(descriptor)


def read(root: int, path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY, dir_fd=root)
    try:
        return os.read(descriptor, 1 << 20)
    finally:
        os.close(descriptor)


def test_layers_show_as_the_image_means_them(store: ImageStore, tmp_path: Path) -> None:
    bottom = archive(
        [
            directory(".", 0o711, uid=3),
            *(directory(name) for name in ("keep", "opaque", "gone", "typed")),
            *((f"{name}/old", b"old") for name in ("keep", "opaque", "gone", "typed")),
            ("file", b"old"),
            ("deleted", b"old"),
        ]
    )
    top = archive(
        [
            (".wh.deleted", b""), (".wh.gone", b""), directory("opaque"), ("opaque/.wh..wh..opq", b""),
            ("opaque/new", b"new"), ("keep/new", b"new"), ("file", b"new"), symlink("typed", "keep"),
        ]
    )  # fmt: skip
    image = load(store, tmp_path, bottom, top)
    rootfs = asyncio.run(store.rootfs.prepare("c1", image))
    with overlay(rootfs) as root:
        assert names(root) == {"keep", "opaque", "file", "typed"}
        assert names(root, "keep") == {"old", "new"}
        assert names(root, "opaque") == {"new"}
        assert read(root, "file") == b"new"
        assert names(root, "typed") == {"old", "new"}
        # the top layer says nothing of "/", so the bottom one does
        assert stat.S_IMODE(os.fstat(root).st_mode) == 0o711
        assert os.fstat(root).st_uid == 3


def test_a_layer_that_hides_everything_below_is_the_last(store: ImageStore, tmp_path: Path) -> None:
    image = load(store, tmp_path, archive([("old", b"")]), archive([(".wh..wh..opq", b""), ("new", b"")]))
    with overlay(asyncio.run(store.rootfs.prepare("c1", image))) as root:
        assert names(root) == {"new"}


def test_a_root_that_a_user_namespace_lacks_is_refused(store: ImageStore, tmp_path: Path) -> None:
    image = load(store, tmp_path, archive([("file", b"")]))
    nobody = replace(USERS, gids=(IdMapping(1, 100_000, 10),))
    with pytest.raises(InvalidSpec, match=r'its "/" belongs to 0:0'):
        asyncio.run(store.rootfs.prepare("c1", image, nobody))
    asyncio.run(store.rootfs.release("c1"))


def test_a_rootfs_keeps_its_layers_and_its_changes(store: ImageStore, tmp_path: Path) -> None:
    image = load(store, tmp_path, archive([("file", b"old")]))
    rootfs = asyncio.run(store.rootfs.prepare("c1", image, USERS))
    with overlay(rootfs) as root:
        os.close(os.open("made", os.O_CREAT | os.O_WRONLY, dir_fd=root))
        assert os.fstat(root).st_uid == 100_000
    asyncio.run(store.remove("test:1"))
    assert store.list() == []
    assert asyncio.run(store.rootfs.prepare("c1", image, USERS)) == rootfs
    assert store.rootfs.prepared() == {"c1": image.id}
    with overlay(rootfs) as root:
        assert names(root) == {"file", "made"}
    asyncio.run(store.rootfs.release("c1"))
    asyncio.run(store.rootfs.release("c1"))
    assert store.rootfs.prepared() == {}
    assert os.listdir(tmp_path / "root/layers") == os.listdir(tmp_path / "root/containers") == []
    with pytest.raises(NotFound):
        asyncio.run(store.rootfs.prepare("c2", image))
    assert store.rootfs.prepared() == {}


@pytest.mark.parametrize("name", ["", "..", "a/b", "/a", "x" * 200, "a\0b"])
def test_a_container_id_that_is_no_name_is_refused(store: ImageStore, tmp_path: Path, name: str) -> None:
    image = load(store, tmp_path, archive([("file", b"")]))
    with pytest.raises(InvalidSpec):
        asyncio.run(store.rootfs.prepare(name, image))


def test_nobody_else_can_enter_the_store(store: ImageStore, tmp_path: Path) -> None:
    load(store, tmp_path, archive([("file", b"")]))
    for name in ("", "images", "layers", "containers"):
        assert stat.S_IMODE((tmp_path / "root" / name).stat().st_mode) == 0o700


def test_an_archive_of_docker_has_its_tags(store: ImageStore, tmp_path: Path) -> None:
    layer = archive([("file", b"")])
    path = save(tmp_path / "a.tar", [layer], ["app:1", "quay.io/x/app"])
    (image,) = asyncio.run(store.load(path))
    assert image.repo_tags == ("docker.io/library/app:1", "quay.io/x/app:latest")
    assert image.config.user == "app"


@pytest.mark.skipif(shutil.which("busybox") is None, reason="busybox is not installed")
def test_the_demo_image_is_reproducible_and_complete(store: ImageStore, tmp_path: Path) -> None:
    assert build_demo_image(tmp_path / "one.tar", "demo") == build_demo_image(tmp_path / "two.tar", "demo")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    (image,) = asyncio.run(store.load(tmp_path / "one.tar"))
    assert image.repo_tags == ("docker.io/library/demo:latest",)
    assert len(image.repo_digests) == 1
    with overlay(asyncio.run(store.rootfs.prepare("c1", image))) as root:
        assert {"sh", "ls", "id", "cat", "sleep", "env"} <= names(root, "bin")
        assert b"root:x:0:0" in read(root, "etc/passwd")
        assert stat.S_IMODE(os.stat("tmp", dir_fd=root).st_mode) == 0o1777


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([("file", b"")], "no image archive"),
        ([("manifest.json", b"[")], "not JSON"),
        ([("manifest.json", b'[{"Config": "../../etc/passwd", "Layers": []}]')], "has no '../../etc/passwd'"),
        ([("manifest.json", b'[{"Config": 1}]')], "text belongs"),
        ([symlink("index.json", "/etc/passwd"), ("x", b"")], "no image archive"),
        ([("index.json", b'{"manifests": [{"digest": "sha256:' + b"0" * 64 + b'", "size": 1}]}')], "has no 'blobs"),
        ([("../index.json", b"{}")], "climbs out"),
    ],
)  # fmt: skip
def test_an_archive_that_makes_no_sense_is_refused(
    store: ImageStore, tmp_path: Path, members: list[tarfile.TarInfo | tuple[str, bytes]], why: str
) -> None:
    (tmp_path / "a.tar").write_bytes(archive(members))
    with pytest.raises(InvalidSpec, match=why):
        asyncio.run(store.load(tmp_path / "a.tar"))
    assert os.listdir(tmp_path / "root/images/spool") == []


def test_a_fifo_given_as_an_archive_is_refused_and_not_waited_for(store: ImageStore, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    async def load_in_time() -> None:
        try:
            await asyncio.wait_for(store.load(fifo), 10)
        finally:
            os.close(os.open(fifo, os.O_RDWR))  # lets go of a reader that waits

    with pytest.raises(InvalidSpec, match="not a regular file"):
        asyncio.run(load_in_time())


def users_below(root: int) -> dict[str, Any]:
    return asyncio.run(run_role("read_users", {}, [root]))


def users_of(top: Path) -> dict[str, Any]:
    root = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return users_below(root)
    finally:
        os.close(root)


def test_users_are_read_through_links_and_whiteouts_of_the_whole_root(store: ImageStore, tmp_path: Path) -> None:
    bottom = archive(
        [directory("etc"), ("etc/group", b"hidden:x:1:\n"), directory("usr"), ("usr/passwd", b"low:x:1:1::/:\n")]
    )
    top = archive(
        [symlink("etc/passwd", "/usr/passwd"), ("etc/.wh.group", b""), ("usr/passwd", b"top:x:7:8::/home:\n")]
    )
    image = load(store, tmp_path, bottom, top)
    rootfs = asyncio.run(store.rootfs.prepare("c1", image))
    with overlay(rootfs) as root:
        reply = users_below(root)
    assert reply == {"passwd": b"top:x:7:8::/home:\n", "group": b""}
    assert reply == asyncio.run(run_role("read_users", {"lowers": [os.fsencode(path) for path in rootfs.lowers]}, []))
    assert UserDatabase.parse(**reply).resolve("top").uid == 7


def test_a_huge_or_strange_user_file_is_not_read(tmp_path: Path) -> None:
    """CVE-2025-4437: a sparse /etc/passwd of 3 GB; and a fifo, on which an open would wait."""
    (tmp_path / "etc").mkdir()
    with (tmp_path / "etc/passwd").open("wb") as file:
        file.truncate(3 << 30)
    os.mkfifo(tmp_path / "etc/group")
    reply = users_of(tmp_path)
    assert "3221225472 bytes" in reply["passwd_error"]
    assert "not a regular file" in reply["group_error"]
    users = UserDatabase.parse(**reply)
    assert users.resolve("1000:1000").uid == 1000
    with pytest.raises(InvalidSpec, match="cannot be used"):
        users.resolve("root")


def test_user_files_that_link_out_of_the_root_end_inside(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"root:x:0:0::/:\n")
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/passwd").symlink_to("../../outside")
    (tmp_path / "root/etc/group").symlink_to(tmp_path / "outside")
    assert users_of(tmp_path / "root") == {"passwd": b"", "group": b""}


def test_users_of_a_single_layer_are_read_from_its_directory(store: ImageStore, tmp_path: Path) -> None:
    image = load(store, tmp_path, archive([directory("etc"), ("etc/passwd", b"a:x:1:1::/:\n"), ("etc/.wh.group", b"")]))
    request = {"lowers": [os.fsencode(path) for path in store.layer_paths(image)]}
    assert asyncio.run(run_role("read_users", request, [])) == {"passwd": b"a:x:1:1::/:\n", "group": b""}


def test_the_role_that_the_server_runs_reads_layers_at_long_paths_and_no_device(tmp_path: Path) -> None:
    """A value of fsconfig(2) holds 255 bytes, and the root directory of a node may lie deep."""
    module, function = ROLES["read_users"].split(":")
    role = getattr(importlib.import_module(module), function)
    layers = tmp_path / ("deep" * 40) / ("deep" * 40)
    for number in ("1", "2"):
        (layers / number / "etc").mkdir(parents=True)
    (layers / "1/etc/passwd").write_bytes(b"a:x:1:1::/:\n")
    os.mknod(layers / "2/etc/group", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    request = {"lowers": [os.fsencode(layers / number) for number in ("1", "2")]}
    reply = asyncio.run(run_role(role.__name__, request, []))
    assert reply["passwd"] == b"a:x:1:1::/:\n"
    assert "not a regular file" in reply["group_error"]
    assert module == "crishim.images.roles"


def test_an_empty_root_has_no_users(tmp_path: Path) -> None:
    assert users_of(tmp_path) == {"passwd": b"", "group": b""}
