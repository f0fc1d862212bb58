"""Pulls from Debian's docker-registry, and from servers that misbehave, all on loopback."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import urllib3
import zstandard

from crishim.errors import CrishimError, InvalidSpec, NotFound, RegistryDenied, RegistryUnavailable, Unavailable
from crishim.images.download import PartialBlob
from crishim.images.layers import LayerLimits
from crishim.images.manifests import Descriptor
from crishim.images.references import parse_reference
from crishim.images.registry import RegistryClient, RegistryConfig
from crishim.images.repository import Repository
from crishim.images.store import ImageStore, PullProgress
from crishim.model.image import Credentials, Image
from tests.support.front import Answer, Request, running_front
from tests.support.registry import (
    ARCHITECTURE,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Registry,
    basic,
    free_port,
    image_config,
    layer_tar,
    running_registry,
    sha256,
)
from tests.support.roles import ForkUnpacker

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="unpacking a layer needs root"),
    pytest.mark.skipif(shutil.which("docker-registry") is None, reason="docker-registry is not installed"),
]

BASE = layer_tar([("etc", None), ("etc/base", b"base")])
TOP = layer_tar([("etc", None), ("etc/top", b"top"), ("etc/.wh.base", b"")])
HTPASSWD = "user:$2y$05$C6vJm0hfm.Z28fa9sa2JNujgvXyAjUDypajLhYjhn74jjtMy4TX5S\n"  # user, pass
FAST: dict[str, Any] = {"backoff_s": 0.001, "connect_timeout_s": 5.0, "read_timeout_s": 5.0}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    store = ImageStore(tmp_path / "root", ForkUnpacker(), RegistryConfig(**FAST))
    yield store
    store.close()


def pull(store: ImageStore, reference: str, credentials: Credentials | None = None) -> Image:
    return asyncio.run(store.pull(reference, credentials))


def names_in(store: ImageStore, image: Image) -> set[str]:
    return {str(path.relative_to(top)) for top in map(Path, store.layer_paths(image)) for path in top.rglob("*")}


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


def test_basic_authentication(tmp_path: Path, store: ImageStore) -> None:
    with running_registry(tmp_path / "registry", htpasswd=HTPASSWD) as registry:
        registry.headers = basic("user", "pass")
        registry.push_image("private", "latest", [BASE])
        reference = f"{registry.host}/private"
        for refused in (
            None,
            Credentials("user", "wrong"),
            Credentials("user", "pass", server_address="other.example"),
        ):
            with pytest.raises(RegistryDenied, match="does not let us pull"):
                pull(store, reference, refused)
        assert store.list() == []
        pull(store, reference, Credentials("user", "pass"))
        pull(store, reference, Credentials(auth=base64.b64encode(b"user:pass").decode()))


class TokenServer:
    """Answers of a registry that wants a token for each repository, and of its token server."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.host = ""
        self.good: set[str] = set()

    def __call__(self, request: Request) -> Answer:
        url = urlsplit(request.path)
        if url.path == "/token":
            return self.token(request, parse_qs(url.query or request.body.decode()))
        if request.headers.get("Authorization", "").removeprefix("Bearer ") in self.good:
            return Answer(307, headers={"Location": f"http://{self.registry.host}{request.path}"})
        challenge = f'Bearer realm="http://{self.host}/token",service="svc",scope="repository:secret/app:pull"'
        return Answer(401, headers={"WWW-Authenticate": challenge})

    def token(self, request: Request, query: dict[str, list[str]]) -> Answer:
        allowed = request.headers.get("Authorization") == basic("user", "pass")["Authorization"]
        if not allowed and query.get("refresh_token") != ["identity"]:
            return Answer(401, b'{"errors":[{"code":"UNAUTHORIZED","message":"who are you?"}]}')
        assert query["scope"] == ["repository:secret/app:pull"]
        assert query["service"] == ["svc"]
        self.good.add(f"token-{len(self.good)}")
        return Answer(200, json.dumps({"token": f"token-{len(self.good) - 1}", "expires_in": 300}).encode())


@pytest.mark.parametrize("credentials", [Credentials("user", "pass"), Credentials(identity_token="identity")])
def test_a_bearer_token_is_fetched_once_and_not_sent_along_redirects(
    registry: Registry, store: ImageStore, credentials: Credentials
) -> None:
    registry.push_image("secret/app", "latest", [BASE, TOP])
    tokens = TokenServer(registry)
    with running_front(tokens) as front:
        tokens.host = front.host
        with pytest.raises(RegistryDenied, match="who are you"):
            pull(store, f"{front.host}/secret/app", Credentials("user", "wrong"))
        front.requests.clear()
        pull(store, f"{front.host}/secret/app", credentials)
        assert len(front.seen("/token")) == 1
        tokens.good.clear()  # the server forgets: a new token is fetched
        pull(store, f"{front.host}/secret/app", credentials)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"token": "a\nb"}, "no header can hold"),
        ({"token": "t\u00f6ken"}, "no header can hold"),
        ({"token": 7}, "no header can hold"),
        ({"token": "good", "expires_in": 10**400}, "sent no token"),
    ],
)
def test_a_token_server_that_makes_no_sense_gives_a_sentence(
    store: ImageStore, answer: dict[str, object], why: str
) -> None:
    def ask(request: Request) -> Answer:
        if request.path.startswith("/token"):
            return Answer(200, json.dumps(answer).encode())
        return Answer(401, headers={"WWW-Authenticate": 'Bearer realm="/token"'})

    with running_front(ask) as front, pytest.raises(RegistryDenied, match=why):
        pull(store, f"{front.host}/app")


def test_a_registry_token_is_sent_as_it_is(registry: Registry, store: ImageStore) -> None:
    registry.push_image("secret/app", "latest", [BASE])
    tokens = TokenServer(registry)
    tokens.good.add("given")
    with running_front(tokens) as front:
        pull(store, f"{front.host}/secret/app", Credentials(registry_token="given"))
        assert front.seen("/token") == []


def test_authorization_stays_with_the_registry(registry: Registry, store: ImageStore) -> None:
    registry.push_image("moved", "latest", [BASE])
    with running_front(lambda request: forward(registry, request)) as storage:

        def redirect(request: Request) -> Answer:
            if "Authorization" not in request.headers:
                return Answer(401, headers={"WWW-Authenticate": 'Basic realm="r"'})
            return Answer(307, headers={"Location": f"http://{storage.host}{request.path}"})

        with running_front(redirect) as front:
            pull(store, f"{front.host}/moved", Credentials("user", "pass"))
        assert storage.requests
        assert not [request for request in storage.requests if "Authorization" in request.headers]


def forward(registry: Registry, request: Request) -> Answer:
    """The registry's own answer to a GET of a manifest or blob, Range included."""
    headers = {name: value for name, value in request.headers.items() if name in ("Accept", "Range")}
    got = urllib3.request("GET", f"http://{registry.host}{request.path}", headers=headers, decode_content=False)
    kept = {name: got.headers[name] for name in ("Content-Type", "Content-Range") if name in got.headers}
    return Answer(got.status, got.data, kept)


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
