from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.errors import CrishimError, InvalidSpec, NotFound, Unsupported
from crishim.images.manifests import (
    Index,
    Manifest,
    Platform,
    chain_ids,
    parse_configuration,
    parse_manifest,
    select_manifest,
)

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
AMD64 = Platform("linux", "amd64")
CONFIG: dict[str, Any] = {
    "os": "linux",
    "architecture": "amd64",
    "created": "2024-05-06T07:08:09.123456789Z",
    "config": {
        "User": "app",
        "Env": ["A=1", "B=2"],
        "Entrypoint": ["/init"],
        "Cmd": None,
        "WorkingDir": "/srv",
        "StopSignal": "SIGQUIT",
        "Volumes": {"/b": {}, "/a": {}},
        "Labels": {"k": "v"},
    },
    "rootfs": {"type": "layers", "diff_ids": [A, B]},
}
MANIFEST: dict[str, Any] = {
    "schemaVersion": 2,
    "config": {"digest": A, "size": 10, "mediaType": "x"},
    "layers": [{"digest": B, "size": 20}],
}


def index(*platforms: tuple[str, str, str]) -> Index:
    entries = [
        {"digest": "sha256:" + f"{number:064x}", "size": 1, "platform": {"os": os, "architecture": arch, "variant": v}}
        for number, (os, arch, v) in enumerate(platforms)
    ]
    parsed = parse_manifest(json.dumps({"schemaVersion": 2, "manifests": entries}).encode())
    assert isinstance(parsed, Index)
    return parsed


def test_a_manifest_names_its_configuration_and_layers() -> None:
    manifest = parse_manifest(json.dumps(MANIFEST).encode())
    assert isinstance(manifest, Manifest)
    assert (manifest.config.digest, manifest.config.size) == (A, 10)
    assert [layer.digest for layer in manifest.layers] == [B]


@pytest.mark.parametrize(
    "change",
    [
        {"config": None},
        {"config": {"digest": "md5:1", "size": 1}},
        {"config": {"digest": A, "size": -1}},
        {"config": {"digest": A, "size": "1"}},
        {"config": {"digest": A, "size": 1 << 60}},
        {"layers": "x"},
        {"layers": [1]},
        {"layers": [{"digest": "sha256:../../../etc", "size": 1}]},
        {"layers": [{"digest": B, "size": 1}] * 501},
        {"manifests": []},
        {"manifests": {}},
        {"manifests": [{"digest": A, "size": 1}], "config": None},
    ],
)
def test_a_manifest_with_a_wrong_part_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec):
        parse_manifest(json.dumps({**MANIFEST, **change}).encode())


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null", b"[" * 100_000, b"\xff", b'{"a": 1e999999}', b"1" * 5000])
def test_what_is_no_manifest_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidSpec):
        parse_manifest(body)


def test_schema_1_is_unsupported() -> None:
    with pytest.raises(Unsupported):
        parse_manifest(b'{"schemaVersion": 1, "fsLayers": []}')


def test_the_entry_of_our_platform_is_selected() -> None:
    found = index(
        ("linux", "arm64", "v8"), ("windows", "amd64", ""), ("linux", "amd64", ""), ("unknown", "unknown", "")
    )
    assert select_manifest(found, AMD64).digest.endswith("2")
    assert select_manifest(found, Platform("linux", "arm64")).digest.endswith("0")


def test_a_variant_that_not_every_processor_runs_is_not_selected() -> None:
    assert select_manifest(index(("linux", "amd64", "v3"), ("linux", "amd64", "")), AMD64).digest.endswith("1")
    with pytest.raises(NotFound, match="linux/amd64/v3"):
        select_manifest(index(("linux", "amd64", "v3")), AMD64)


def test_a_configuration_becomes_what_a_container_inherits() -> None:
    found = parse_configuration(json.dumps(CONFIG).encode(), AMD64)
    assert found.config.user == "app"
    assert found.config.env == ("A=1", "B=2")
    assert found.config.entrypoint == ("/init",)
    assert found.config.cmd == ()
    assert found.config.volumes == ("/a", "/b")
    assert found.config.labels == {"k": "v"}
    assert found.diff_ids == (A, B)
    assert found.created_at_ns == 1714979289 * 10**9


@pytest.mark.parametrize(
    "config",
    [
        {"User": 1},
        {"User": "u" * 5000},
        {"WorkingDir": "/" * 5000},
        {"Env": "A=1"},
        {"Env": [1]},
        {"Env": ["A=" + "x" * (1 << 20)] * 3},
        {"Env": ["A=1"] * 10_001},
        {"Labels": {str(number): "" for number in range(5001)}},
        {"Volumes": {str(number): {} for number in range(10_001)}},
        {"Cmd": ["a\0b"]},
        {"Entrypoint": ["\ud800"]},
        {"WorkingDir": ["/"]},
    ],
    ids=lambda config: next(iter(config)),
)
def test_a_configuration_with_a_wrong_field_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec):
        parse_configuration(json.dumps({**CONFIG, "config": config}).encode(), AMD64)


def test_an_image_for_another_platform_is_not_found() -> None:
    with pytest.raises(NotFound, match="linux/amd64, this machine is linux/arm64"):
        parse_configuration(json.dumps(CONFIG).encode(), Platform("linux", "arm64"))


def test_chain_ids_follow_the_image_specification() -> None:
    first, second = chain_ids([A, B])
    assert first == A
    assert second == "sha256:ccd722928bd92476ba1745586fed6e45a102504185ad88cd89e01ff116fd146c"
    assert chain_ids([A, A]) != (A, A)
    assert chain_ids([]) == ()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["schemaVersion", "config", "layers", "manifests", "rootfs", "os"]), json_values)
)
def test_any_document_is_a_value_or_an_error_of_ours(document: dict[str, Any]) -> None:
    body = json.dumps(document).encode()
    for parse in (parse_manifest, lambda body: parse_configuration(body, AMD64)):
        try:
            parse(body)
        except CrishimError:
            continue
