from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.errors import InvalidSpec
from crishim.images.references import Reference, is_digest, parse_image_id, parse_reference

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("user/app", "docker.io/user/app:latest"),
        ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("127.0.0.1:5000/a/b/c:v1", "127.0.0.1:5000/a/b/c:v1"),
        ("[::1]:5000/app:v1", "[::1]:5000/app:v1"),
        ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
        ("REGISTRY.example/app", "REGISTRY.example/app:latest"),
        ("Upper/app", "Upper/app:latest"),
        (f"quay.io/a/b@{DIGEST}", f"quay.io/a/b@{DIGEST}"),
        (f"quay.io/a/b:v1@{DIGEST}", f"quay.io/a/b:v1@{DIGEST}"),
        ("a/b__c/d.e/f---g", "docker.io/a/b__c/d.e/f---g:latest"),
    ],
)
def test_a_short_name_is_made_complete(text: str, complete: str) -> None:
    assert str(parse_reference(text)) == complete


@pytest.mark.parametrize(
    "text",
    [
        "",
        "busybox:",
        "busybox@",
        "busybox@sha256:abc",
        f"busybox@{DIGEST.upper()}",
        "Busybox",
        "library/Busybox",
        "busybox:la test",
        "busybox:" + "x" * 129,
        "busybox:-x",
        "/busybox",
        "busybox/",
        "a//b",
        "../etc",
        "a/../b",
        "a/./b",
        "host:port/app",
        "host:123456/app",
        "-host.example/app",
        "[1:2:::3]/app",
        "http://host/app",
        "a_/b",
        "busybox\n",
        "busybox:1\n",
        "büsy",
        "a/" * 200 + "b",
    ],
)
def test_a_malformed_reference_is_refused_and_named(text: str) -> None:
    with pytest.raises(InvalidSpec, match="image reference"):
        parse_reference(text)


@given(st.text(max_size=40))
def test_any_text_gives_a_reference_that_stays_itself_or_an_error(text: str) -> None:
    try:
        reference = parse_reference(text)
    except InvalidSpec:
        return
    assert parse_reference(str(reference)) == reference
    assert reference.tag is not None or reference.digest is not None


def test_a_digest_wins_over_the_tag() -> None:
    reference = parse_reference(f"busybox:1@{DIGEST}")
    assert reference == Reference("docker.io", "library/busybox", "1", DIGEST)
    assert reference.tagged is None
    assert reference.with_digest(DIGEST) == f"docker.io/library/busybox@{DIGEST}"


def test_an_id_is_known_with_and_without_its_prefix() -> None:
    assert parse_image_id("ab" * 32) == parse_image_id(DIGEST) == DIGEST
    assert parse_image_id("ab" * 31) is None
    assert parse_image_id("AB" * 32) is None
    assert is_digest(DIGEST)
    assert not is_digest("sha256:../../etc/passwd")
