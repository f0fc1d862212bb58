from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from crishim.errors import Exhausted, RegistryUnavailable, Unavailable
from crishim.images.blobs import BlobStore
from crishim.images.download import PartialBlob
from crishim.images.manifests import OCI_LAYER_GZIP, Descriptor
from crishim.images.references import parse_reference
from crishim.images.registry import RegistryClient, RegistryConfig
from crishim.images.repository import Repository

CONTENT = b"content"
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
BLOB = Descriptor(DIGEST, len(CONTENT), OCI_LAYER_GZIP)


class Local(Repository):
    """A repository without a network: it gives CONTENT, or fails."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.failure: Exception | None = None
        super().__init__(RegistryClient(RegistryConfig()), parse_reference("host.example/app"), None, self.stop)

    def download(self, blob: PartialBlob) -> None:
        if self.failure:
            raise self.failure
        blob.begin(200, "")
        blob.receive(CONTENT)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[BlobStore]:
    with ThreadPoolExecutor(1) as threads:
        yield BlobStore(tmp_path, threads)


async def fetch(store: BlobStore, repository: Repository) -> bytes:
    with store.used([DIGEST]):
        return (await store.fetch(repository, BLOB, lambda _: None)).read_bytes()


def names(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.glob("*/*")}


def test_a_blob_is_on_the_disk_before_it_has_its_name(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[set[str]] = []
    fsync = os.fsync

    def full(descriptor: int) -> None:
        synced.append(names(tmp_path))
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Exhausted, match="the disk is full"):
        asyncio.run(fetch(store, Local()))
    partial = {"partial/" + DIGEST.replace(":", "-")}
    assert synced == [partial]
    assert names(tmp_path) == set(), "and a full disk is not held full"
    monkeypatch.setattr(os, "fsync", fsync)
    assert asyncio.run(fetch(store, Local())) == CONTENT


def test_a_pull_that_waits_for_another_thread_can_be_stopped(store: BlobStore, tmp_path: Path) -> None:
    partial = tmp_path / "partial" / DIGEST.replace(":", "-")
    holder = os.open(partial, os.O_RDWR | os.O_CREAT)
    fcntl.flock(holder, fcntl.LOCK_EX)
    repository = Local()

    async def stopped() -> None:
        waiting = asyncio.ensure_future(fetch(store, repository))
        await asyncio.sleep(0)
        repository.stop.set()
        done, _ = await asyncio.wait([waiting], timeout=10)
        fcntl.flock(holder, fcntl.LOCK_UN)
        assert done
        with pytest.raises(Unavailable, match="stopped"):
            await waiting

    try:
        asyncio.run(stopped())
    finally:
        os.close(holder)


def test_a_download_that_brought_nothing_leaves_no_file(store: BlobStore, tmp_path: Path) -> None:
    repository = Local()
    repository.failure = RegistryUnavailable("away")
    with pytest.raises(RegistryUnavailable, match="away"):
        asyncio.run(fetch(store, repository))
    assert names(tmp_path) == set()


def test_a_content_range_of_any_length_is_read(tmp_path: Path) -> None:
    with (tmp_path / "partial").open("w+b") as file:
        blob = PartialBlob(file.fileno(), BLOB, lambda _: None)
        assert not blob.begin(206, f"bytes {'9' * 5000}-1/2")
        assert blob.begin(206, "bytes 0-6/7")


def test_what_a_pull_uses_or_may_resume_is_kept_and_the_rest_freed(store: BlobStore, tmp_path: Path) -> None:
    name = DIGEST.replace(":", "-")
    old, used, young = tmp_path / "partial" / "sha256-old", tmp_path / "blobs" / name, tmp_path / "partial" / "sha256-x"
    for path in (old, used, young):
        path.touch()
    for path in (old, used):
        os.utime(path, (1, 1))
    with store.used([DIGEST]):
        assert store.in_use() == {name}
        for path in (old, used, young):
            store.free(path.name)
        assert names(tmp_path) == {f"blobs/{name}", "partial/sha256-x"}
