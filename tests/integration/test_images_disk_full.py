"""An image store on a disk that is full: each call says so, and works again when there is room."""

from __future__ import annotations

import asyncio
import gzip
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from crishim.errors import Exhausted
from crishim.images.blobs import BlobStore
from crishim.images.download import PartialBlob
from crishim.images.manifests import OCI_LAYER_GZIP, Descriptor
from crishim.images.references import parse_reference
from crishim.images.registry import RegistryClient, RegistryConfig
from crishim.images.repository import Repository
from crishim.images.store import ImageStore
from crishim.images.table import ImageTable
from crishim.model.image import Image, ImageConfig
from crishim.runtime.images import Images
from tests.support.layers import archive
from tests.support.registry import image_config, sha256
from tests.support.roles import ForkUnpacker

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 1 MiB."""
    point = tmp_path / "disk"
    point.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", point], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"cannot mount a tmpfs: {made.stderr.decode().strip()}")
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
    return filler


def save(path: Path, content: bytes) -> Path:
    layer = archive([("file", content)])
    manifest = b'[{"Config": "config.json", "RepoTags": ["app:1"], "Layers": ["layer.tar"]}]'
    config = image_config([sha256(layer)], {})
    path.write_bytes(
        archive([("config.json", config), ("layer.tar", gzip.compress(layer)), ("manifest.json", manifest)])
    )
    return path


def test_an_archive_that_does_not_fit_says_that_the_disk_is_full(disk: Path, tmp_path: Path) -> None:
    store = ImageStore(disk / "root", ForkUnpacker())
    try:
        images = Images(store, None, None)  # type: ignore[arg-type]  # loading uses neither
        large = save(tmp_path / "large.tar", os.urandom(2_000_000))
        for _ in range(2):
            with pytest.raises(Exhausted, match="the disk is full"):
                asyncio.run(images.load(large))
            assert os.listdir(disk / "root/images/spool") == []
        (image,) = asyncio.run(images.load(save(tmp_path / "small.tar", b"s")))
        filler = fill(disk)
        with pytest.raises(Exhausted, match="the disk is full"):
            asyncio.run(store.rootfs.prepare("c1", image))
        filler.unlink()
        asyncio.run(store.rootfs.prepare("c1", image))
    finally:
        store.close()


def test_a_blob_that_does_not_fit_says_that_the_disk_is_full(disk: Path) -> None:
    class Large(Repository):
        def download(self, blob: PartialBlob) -> None:
            blob.begin(200, "")
            blob.receive(bytes(blob.missing))

    async def fetch(store: BlobStore, repository: Repository) -> None:
        blob = Descriptor("sha256:" + "0" * 64, 2_000_000, OCI_LAYER_GZIP)
        await store.fetch(repository, blob, lambda _: None)

    repository = Large(RegistryClient(RegistryConfig()), parse_reference("host.example/app"), None)
    with ThreadPoolExecutor(1) as threads, pytest.raises(Exhausted, match=r"partial.*the disk is full"):
        asyncio.run(fetch(BlobStore(disk, threads), repository))
    assert os.listdir(disk / "partial") == [], "it does not hold the disk full"


def test_a_table_that_cannot_grow_says_that_the_disk_is_full(disk: Path) -> None:
    table = ImageTable(disk / "images.db")
    image = Image("sha256:" + "1" * 64, (), (), 1, ImageConfig(), ())
    try:
        filler = fill(disk)
        with pytest.raises(Exhausted, match=r"images\.db"):
            table.put_image(image, ["docker.io/library/app:1"], b"", bytes(100_000))
        assert table.images() == []
        filler.unlink()
        table.put_image(image, ["docker.io/library/app:1"], b"", bytes(100_000))
        assert len(table.images()) == 1
    finally:
        table.close()
