"""Mirrors of a registry: the order in which they are asked, and what becomes of what they spoil."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from crishim.images.registry import RegistryConfig
from crishim.images.store import ImageStore
from crishim.model.image import Credentials
from tests.support.front import Answer, Request, running_front
from tests.support.pulls import BASE, FAST, forward, names_in, pull
from tests.support.registry import OCI_LAYER, Registry, image_config, layer_tar, sha256
from tests.support.roles import ForkUnpacker

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="unpacking a layer needs root"),
    pytest.mark.skipif(shutil.which("docker-registry") is None, reason="docker-registry is not installed"),
]


def test_mirrors_are_asked_first_and_may_fail(registry: Registry, tmp_path: Path) -> None:
    registry.push_image("library/mirrored", "latest", [BASE])
    with running_front(lambda request: Answer(500)) as broken:
        mirrors = {"docker.io": (f"http://{broken.host}", f"http://{registry.host}/")}
        config: dict[str, Any] = {"mirrors": mirrors, **FAST}
        store = ImageStore(tmp_path / "root", ForkUnpacker(), RegistryConfig(**config))
        try:
            image = pull(store, "mirrored", Credentials("user", "pass"))
            assert image.repo_tags == ("docker.io/library/mirrored:latest",)
            assert broken.seen("ns=docker.io")
            assert not [request for request in broken.requests if "Authorization" in request.headers]
        finally:
            store.close()


@pytest.mark.parametrize("part", ["manifest", "config", "layer"])
def test_a_mirror_that_spoils_content_is_passed_over(registry: Registry, tmp_path: Path, part: str) -> None:
    digest = registry.push_image("spoiled", "latest", [BASE])
    manifest = json.loads(registry.blob_path(digest).read_bytes())
    target = {"manifest": digest, "config": manifest["config"]["digest"], "layer": manifest["layers"][0]["digest"]}[
        part
    ]

    def spoil(request: Request) -> Answer:
        answer = forward(registry, request)
        if target in request.path:
            answer.body = answer.body[:-1] + bytes([answer.body[-1] ^ 1])
        return answer

    with running_front(spoil) as mirror:
        config = RegistryConfig(mirrors={registry.host: (f"http://{mirror.host}",)}, **FAST)
        store = ImageStore(tmp_path / "root", ForkUnpacker(), config)
        try:
            image = pull(store, f"{registry.host}/spoiled@{digest}")
            assert names_in(store, image) == {"etc", "etc/base"}
            assert mirror.seen(target)
        finally:
            store.close()


def test_what_a_mirror_began_wrong_is_fetched_whole_from_the_registry(registry: Registry, tmp_path: Path) -> None:
    content = layer_tar([("noise", os.urandom(1_000_000))])
    blob = {"mediaType": OCI_LAYER, **registry.push_blob("begun", content)}
    registry.push_documents("begun", "latest", image_config([sha256(content)], {}), [blob])

    def cut(request: Request) -> Answer:
        if blob["digest"] not in request.path:
            return forward(registry, request)
        if "Range" in request.headers:
            return Answer(500)
        return Answer(200, bytes(len(content)), cut_after=500_000)

    with running_front(cut) as mirror:
        config = RegistryConfig(mirrors={registry.host: (f"http://{mirror.host}",)}, **FAST)
        store = ImageStore(tmp_path / "root", ForkUnpacker(), config)
        try:
            assert names_in(store, pull(store, f"{registry.host}/begun")) == {"noise"}
        finally:
            store.close()
