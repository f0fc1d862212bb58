"""Registries that cut, spoil, stall, lie or make no sense, all on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from crishim.errors import CrishimError, InvalidSpec, RegistryUnavailable, Unavailable
from crishim.images.download import PartialBlob
from crishim.images.layers import LayerLimits
from crishim.images.manifests import Descriptor
from crishim.images.references import parse_reference
from crishim.images.registry import RegistryClient, RegistryConfig
from crishim.images.repository import Repository
from crishim.images.store import ImageStore
from tests.support.front import Answer, Request, running_front
from tests.support.pulls import BASE, FAST, TOP, forward, pull
from tests.support.registry import OCI_LAYER, Registry, image_config, layer_tar, sha256
from tests.support.roles import ForkUnpacker

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="unpacking a layer needs root"),
    pytest.mark.skipif(shutil.which("docker-registry") is None, reason="docker-registry is not installed"),
]


def test_a_cut_download_goes_on_where_it_stopped(registry: Registry, store: ImageStore) -> None:
    content = layer_tar([("noise", os.urandom(3_000_000))])
    blob = {"mediaType": OCI_LAYER, **registry.push_blob("cut", content)}
    registry.push_documents("cut", "latest", image_config([sha256(content)], {}), [blob])

    def cut(request: Request) -> Answer:
        answer = forward(registry, request)
        if blob["digest"] in request.path and len(answer.body) > 1_100_000:
            answer.cut_after = 1_000_000
        return answer

    with running_front(cut) as front:
        pull(store, f"{front.host}/cut")
        ranges = [request.headers.get("Range") for request in front.seen(str(blob["digest"]))]
    assert ranges == [None, "bytes=1000000-", "bytes=2000000-"]


def test_a_download_goes_on_in_another_server_after_this_one(
    registry: Registry, store: ImageStore, tmp_path: Path
) -> None:
    content = layer_tar([("noise", os.urandom(2_000_000))])
    blob = {"mediaType": OCI_LAYER, **registry.push_blob("resumed", content)}
    registry.push_documents("resumed", "latest", image_config([sha256(content)], {}), [blob])
    broken = True

    def answer(request: Request) -> Answer:
        answer = forward(registry, request)
        if blob["digest"] in request.path and broken:
            return Answer(500) if "Range" in request.headers else Answer(200, answer.body, cut_after=1_500_000)
        return answer

    with running_front(answer) as front:
        with pytest.raises(RegistryUnavailable, match=r"^RegistryUnavailable: .*status 500"):
            pull(store, f"{front.host}/resumed")
        store.close()
        broken = False
        front.requests.clear()
        second = ImageStore(tmp_path / "root", ForkUnpacker(), RegistryConfig(**FAST))
        try:
            pull(second, f"{front.host}/resumed")
        finally:
            second.close()
        assert [r.headers.get("Range") for r in front.seen(str(blob["digest"]))] == ["bytes=1500000-"]


@pytest.mark.parametrize("part", ["manifest", "config", "layer"])
def test_content_with_another_digest_does_not_count(
    registry: Registry, store: ImageStore, tmp_path: Path, part: str
) -> None:
    digest = registry.push_image("wrong", "latest", [BASE])
    manifest = json.loads(registry.blob_path(digest).read_bytes())
    target = {"manifest": digest, "config": manifest["config"]["digest"], "layer": manifest["layers"][0]["digest"]}[
        part
    ]

    def spoil(request: Request) -> Answer:
        answer = forward(registry, request)
        if target in request.path:
            answer.body = answer.body[:-1] + bytes([answer.body[-1] ^ 1])
        return answer

    with running_front(spoil) as front, pytest.raises(RegistryUnavailable, match="another digest"):
        pull(store, f"{front.host}/wrong@{digest}")
    assert store.list() == []
    assert os.listdir(tmp_path / "root/layers") == []
    assert os.listdir(tmp_path / "root/images/partial") == []


def test_a_layer_that_unpacks_to_something_else_does_not_count(
    registry: Registry, store: ImageStore, tmp_path: Path
) -> None:
    registry.push_image("lying", "latest", [BASE], diff_ids=[sha256(TOP)])
    with pytest.raises(InvalidSpec, match="configuration says"):
        pull(store, f"{registry.host}/lying")
    assert os.listdir(tmp_path / "root/layers") == []
    assert os.listdir(tmp_path / "root/images/blobs") == []


def test_a_hostile_layer_fails_the_pull_and_leaves_nothing(
    registry: Registry, store: ImageStore, tmp_path: Path
) -> None:
    registry.push_image("hostile", "latest", [BASE, layer_tar([("../../escape", b"")])])
    with pytest.raises(InvalidSpec, match="climbs out"):
        pull(store, f"{registry.host}/hostile")
    assert not list(tmp_path.rglob("escape*"))
    assert not [path for path in (tmp_path / "root/layers").iterdir() if path.name.startswith("new-")]


def test_a_layer_larger_than_allowed_is_refused(registry: Registry, tmp_path: Path) -> None:
    registry.push_image("large", "latest", [layer_tar([("zeros", bytes(2_000_000))])])
    store = ImageStore(tmp_path / "root", ForkUnpacker(), limits=LayerLimits(max_bytes=1_000_000))
    try:
        with pytest.raises(InvalidSpec, match="larger than 1000000 bytes"):
            pull(store, f"{registry.host}/large")
    finally:
        store.close()


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_registry_that_recovers_is_asked_again(registry: Registry, store: ImageStore, status: int) -> None:
    registry.push_image("flaky", "latest", [BASE])
    failures: dict[str, int] = {}

    def answer(request: Request) -> Answer:
        failures[request.path] = failures.get(request.path, 0) + 1
        return Answer(status) if failures[request.path] < 3 else forward(registry, request)

    with running_front(answer) as front:
        pull(store, f"{front.host}/flaky")
    assert set(failures.values()) == {3}


def test_a_download_that_drips_is_seen_and_stopped(tmp_path: Path) -> None:
    """The server sends ten bytes and is silent: they are told at once, and the pull can be ended."""
    stop, over = threading.Event(), threading.Event()
    seen: list[int] = []

    def told(count: int) -> None:
        seen.append(count)
        if count:
            stop.set()
            over.set()

    digest = "sha256:" + "0" * 64
    with (
        running_front(lambda request: Answer(200, b"x" * 1000, cut_after=10, hold=over)) as front,
        (tmp_path / "partial").open("w+b") as file,
    ):
        client = RegistryClient(RegistryConfig(**{**FAST, "read_timeout_s": 1.0}))
        try:
            repository = Repository(client, parse_reference(f"{front.host}/drip"), None, stop)
            blob = PartialBlob(file.fileno(), Descriptor(digest, 1000, OCI_LAYER), told)
            with pytest.raises(Unavailable, match="stopped"):
                repository.download(blob)
        finally:
            client.close()
    assert seen == [0, 10]


def test_a_registry_that_hangs_takes_no_thread_from_others(tmp_path: Path) -> None:
    over = threading.Event()

    async def pull_and_do_something_else(store: ImageStore, host: str) -> None:
        with ThreadPoolExecutor(1) as threads:
            asyncio.get_running_loop().set_default_executor(threads)
            hanging = asyncio.ensure_future(store.pull(f"{host}/app"))
            while not asked.requests:
                await asyncio.sleep(0.01)
            try:
                await asyncio.wait_for(asyncio.to_thread(int), 5)
            finally:
                over.set()
                hanging.cancel()
                await asyncio.wait([hanging])

    store = ImageStore(tmp_path / "root", ForkUnpacker(), RegistryConfig(**FAST))
    try:
        with running_front(lambda request: Answer(200, b"x", cut_after=0, hold=over)) as asked:
            asyncio.run(pull_and_do_something_else(store, asked.host))
    finally:
        store.close()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer(200, b"x" * ((4 << 20) + 1)), "more than 4194304 bytes"),
        (Answer(307, headers={"Location": "file:///etc/passwd"}), "redirects"),
        (Answer(307, headers={"Location": "/v2/"}), "redirects more than"),
        (Answer(401), "no way to log in"),
        (Answer(401, headers={"WWW-Authenticate": "Bearer realm=x"}), "does not let us pull"),
        (Answer(307, headers={"Location": "http://[x"}), "no address"),
        (Answer(307, headers={"Location": "http://127.0.0.1:99999999/"}), "RegistryUnavailable|no address"),
        (Answer(401, headers={"WWW-Authenticate": 'Bearer realm="http://[x"'}), "no address"),
        (Answer(401, headers={"WWW-Authenticate": "Bearer realm=x" + " ," * 5000}), "no way to log in"),
        (Answer(503, headers={"Retry-After": "\u00b2"}), "status 503"),
        (Answer(403, b'{"errors":[{"message":"go away"}]}'), "go away"),
        (Answer(400, b"\xff"), "status 400"),
        (Answer(200, b"{"), "not JSON"),
    ],
)
def test_a_registry_that_makes_no_sense_gives_a_sentence(store: ImageStore, answer: Answer, why: str) -> None:
    with running_front(lambda request: answer) as front, pytest.raises(CrishimError, match=why):
        pull(store, f"{front.host}/app")
    assert store.list() == []
