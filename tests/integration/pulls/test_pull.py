"""Pulls from Debian's docker-registry on loopback: names, indexes, layers, and callers that join."""

from __future__ import annotations

import asyncio
import gzip
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from crishim.errors import NotFound, RegistryUnavailable
from crishim.images.store import ImageStore, PullProgress
from crishim.model.image import Image
from tests.support.pulls import BASE, TOP, names_in, pull
from tests.support.registry import (
    ARCHITECTURE,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Registry,
    free_port,
    image_config,
    sha256,
)
from tests.support.roles import ForkUnpacker

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="unpacking a layer needs root"),
    pytest.mark.skipif(shutil.which("docker-registry") is None, reason="docker-registry is not installed"),
]


def test_an_image_is_pulled_by_tag_and_listed_under_all_its_names(registry: Registry, store: ImageStore) -> None:
    digest = registry.push_image("team/app", "v1", [BASE, TOP], config={"User": "1000:5", "Env": ["A=1"]})
    image = pull(store, f"{registry.host}/team/app:v1")
    assert image.repo_tags == (f"{registry.host}/team/app:v1",)
    assert image.repo_digests == (f"{registry.host}/team/app@{digest}",)
    assert image.config.user == "1000:5"
    assert image.size_bytes > 0
    for name in (image.id, image.id.removeprefix("sha256:"), image.id[:20], *image.repo_tags, *image.repo_digests):
        assert store.resolve(name) is store.resolve(image.id)
    assert store.list(image.repo_tags[0]) == store.list() == [image]
    assert store.list("docker.io/library/other") == store.list("NOT A NAME") == []
    assert names_in(store, image) == {"etc", "etc/base", "etc/top"}
    assert len(store.layer_paths(image)) == 2


def test_a_pull_by_digest_has_no_tag_and_a_second_tag_joins_the_image(registry: Registry, store: ImageStore) -> None:
    digest = registry.push_image("team/app", "v2", [BASE])
    by_digest = pull(store, f"{registry.host}/team/app@{digest}")
    assert by_digest.repo_tags == ()
    both = pull(store, f"{registry.host}/team/app:v2@{digest}")
    assert both.repo_tags == ()
    tagged = pull(store, f"{registry.host}/team/app:v2")
    assert tagged.id == by_digest.id
    assert tagged.repo_tags == (f"{registry.host}/team/app:v2",)
    assert len(store.list()) == 1


def test_a_tag_that_moved_leaves_the_old_image_with_its_digest(registry: Registry, store: ImageStore) -> None:
    registry.push_image("team/moving", "latest", [BASE])
    old = pull(store, f"{registry.host}/team/moving")
    registry.push_image("team/moving", "latest", [TOP])
    new = pull(store, f"{registry.host}/team/moving")
    assert new.id != old.id
    assert store.resolve(f"{registry.host}/team/moving").id == new.id
    assert store.resolve(old.id).repo_tags == ()
    assert store.resolve(old.id).repo_digests == old.repo_digests


@pytest.mark.parametrize("kind", [OCI_INDEX, DOCKER_LIST])
def test_an_index_gives_the_manifest_of_this_machine(registry: Registry, store: ImageStore, kind: str) -> None:
    manifest_type = OCI_MANIFEST if kind == OCI_INDEX else DOCKER_MANIFEST
    ours = registry.push_image("multi", "ours", [BASE], media_type=manifest_type)
    other = registry.push_image("multi", "other", [TOP], architecture="mips", media_type=manifest_type)
    entries = []
    for digest, architecture in ((other, "mips"), (ours, ARCHITECTURE)):
        size = registry.blob_path(digest).stat().st_size
        platform = {"os": "linux", "architecture": architecture}
        entries.append({"mediaType": manifest_type, "digest": digest, "size": size, "platform": platform})
    index = registry.push_manifest("multi", "latest", {"schemaVersion": 2, "mediaType": kind, "manifests": entries})
    image = pull(store, f"{registry.host}/multi")
    assert image.repo_digests == (f"{registry.host}/multi@{index}",)
    assert names_in(store, image) == {"etc", "etc/base"}
    with pytest.raises(NotFound, match="linux/mips"):
        pull(store, f"{registry.host}/multi:other")


@pytest.mark.parametrize("compress", [bytes, zstandard.ZstdCompressor().compress, gzip.compress])
def test_layers_of_every_compression_are_unpacked(
    registry: Registry, store: ImageStore, compress: Callable[[bytes], bytes]
) -> None:
    blob = {"mediaType": OCI_LAYER, **registry.push_blob("compressed", compress(BASE))}
    registry.push_documents("compressed", "latest", image_config([sha256(BASE)], {}), [blob])
    assert names_in(store, pull(store, f"{registry.host}/compressed")) == {"etc", "etc/base"}


def test_the_same_layer_twice_and_shared_layers_are_kept_apart_by_chain(registry: Registry, store: ImageStore) -> None:
    registry.push_image("twice", "latest", [BASE, BASE, TOP])
    registry.push_image("shares", "latest", [BASE, TOP])
    twice, shares = pull(store, f"{registry.host}/twice"), pull(store, f"{registry.host}/shares")
    assert len(set(store.layer_paths(twice))) == 3
    assert store.layer_paths(twice)[-1] == store.layer_paths(shares)[-1]


def test_removing_by_any_name_removes_the_image_and_frees_what_nobody_shares(
    registry: Registry, store: ImageStore, tmp_path: Path
) -> None:
    registry.push_image("one", "a", [BASE])
    registry.push_image("two", "a", [BASE, TOP])
    pull(store, f"{registry.host}/one:a")
    two = pull(store, f"{registry.host}/two:a")
    asyncio.run(store.remove(two.repo_digests[0]))
    asyncio.run(store.remove(two.repo_digests[0]))
    with pytest.raises(NotFound):
        store.resolve(two.id)
    assert len(os.listdir(tmp_path / "root/layers")) == 1
    asyncio.run(store.remove(f"{registry.host}/one:a"))
    assert os.listdir(tmp_path / "root/layers") == []
    assert (store.usage().used_bytes, store.usage().inodes_used) == (0, 0)


def test_the_store_is_the_same_after_it_is_opened_again(registry: Registry, store: ImageStore, tmp_path: Path) -> None:
    registry.push_image("again", "latest", [BASE, TOP], config={"Cmd": ["/a", "b"], "Labels": {"k": "v"}})
    image = pull(store, f"{registry.host}/again")
    paths, usage = store.layer_paths(image), store.usage()
    store.close()
    for leftover in ("layers/new-7", "layers/99", "images/spool/x"):
        (tmp_path / "root" / leftover / "deep").mkdir(parents=True)
    opened = ImageStore(tmp_path / "root", ForkUnpacker())
    try:
        assert opened.list() == [image]
        assert opened.layer_paths(image) == paths
        assert opened.usage().used_bytes == usage.used_bytes
        assert sorted(os.listdir(tmp_path / "root/layers")) == ["1", "2"]
        assert os.listdir(tmp_path / "root/images/spool") == []
    finally:
        opened.close()


def test_calls_for_the_same_image_join_and_one_that_gives_up_does_not_stop_the_others(
    registry: Registry, store: ImageStore
) -> None:
    registry.push_image("joined", "latest", [BASE, TOP])
    reference = f"{registry.host}/joined"

    async def many() -> list[Image | BaseException]:
        calls = [asyncio.ensure_future(store.pull(reference)) for _ in range(4)]
        await asyncio.sleep(0)
        calls[0].cancel()
        return await asyncio.gather(*calls, return_exceptions=True)

    first, *others = asyncio.run(many())
    assert isinstance(first, asyncio.CancelledError)
    assert {image.id for image in others if isinstance(image, Image)} == {store.resolve(reference).id}
    assert len(others) == 3


def test_progress_tells_what_arrived(registry: Registry, store: ImageStore) -> None:
    registry.push_image("progress", "latest", [BASE])
    seen: list[PullProgress] = []
    asyncio.run(store.pull(f"{registry.host}/progress", None, seen.append))
    assert seen[-1].received_bytes == seen[-1].size_bytes > 0


def test_what_the_registry_does_not_have_is_not_found(registry: Registry, store: ImageStore) -> None:
    for reference in (f"{registry.host}/nothing", f"{registry.host}/nothing@sha256:{'0' * 64}"):
        with pytest.raises(NotFound, match="nothing"):
            pull(store, reference)


def test_a_registry_that_is_away_is_unavailable(store: ImageStore) -> None:
    with pytest.raises(
        RegistryUnavailable, match=r"^RegistryUnavailable: 127\.0\.0\.1:\d+: the connection was refused"
    ):
        pull(store, f"127.0.0.1:{free_port()}/app")
