"""Manifests, indexes and configurations of images: bytes from a registry or an archive, to checked values. Pure.

Formats: OCI image-spec (manifest, index, config) and Docker schema 2 (manifest, list). All bytes are hostile; an
InvalidSpec says which document is wrong and where.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from crishim.errors import InvalidSpec, NotFound, Unsupported
from crishim.images.references import is_digest
from crishim.model.image import ImageConfig

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
#: what a registry is asked for, best first
ACCEPTED = (OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST)

#: bytes of a manifest (the distribution specification's own limit) and of a configuration
MAX_MANIFEST = 4 << 20
MAX_CONFIG = 8 << 20
MAX_LAYERS = 500  # as many lower directories as overlayfs takes
#: texts of a configuration that are kept, and their characters. They stay in memory as long as the image: a document of
#: short texts takes thirty times its size
_MAX_TEXTS = 10_000
_MAX_CHARACTERS = 2 << 20
#: of User, which every ListImages repeats, and of WorkingDir and StopSignal; PATH_MAX of linux/limits.h
_MAX_TEXT = 4096
_MAX_SIZE = 1 << 50

_ARCHITECTURES = MappingProxyType(
    {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386", "s390x": "s390x", "ppc64le": "ppc64le"}
)
#: variants that every processor of an architecture runs
_BASE_VARIANTS = MappingProxyType({"amd64": frozenset({"", "v1"}), "arm64": frozenset({"", "v8"})})


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system and processor as GOOS, GOARCH and variant."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to content: what it is, its digest, its size in bytes (OCI descriptor)."""

    digest: str
    size: int
    media_type: str = ""
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image for one platform: its configuration, and its layers from the bottom up."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """Manifests of one image for several platforms."""

    manifests: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Configuration:
    """An image's configuration document."""

    config: ImageConfig
    diff_ids: tuple[str, ...]
    platform: Platform
    created_at_ns: int


def host_platform() -> Platform:
    """The platform of this machine, named as images name it."""
    machine = os.uname().machine
    return Platform("linux", _ARCHITECTURES.get(machine, machine))


def digest_of(body: bytes, algorithm: str = "sha256") -> str:
    """ "sha256:<hex>" of the bytes."""
    return f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}"


def parse_manifest(body: bytes) -> Manifest | Index:
    """What a manifest document says; Unsupported for schema 1 and for artifacts that are no image."""
    document = _document(body, "manifest")
    if document.get("manifests") is not None and not (document.get("layers") is document.get("config") is None):
        # CVE-2021-41190: who checks a digest and who runs it could read two images
        raise InvalidSpec("the manifest has manifests beside config or layers: it could be read in two ways")
    if isinstance(document.get("manifests"), list):
        return Index(tuple(_descriptor(entry) for entry in document["manifests"][:MAX_LAYERS]))
    if document.get("schemaVersion") == 1:
        raise Unsupported("the manifest has schema version 1, which no registry writes any more")
    layers = document.get("layers")
    if not isinstance(layers, list) or not isinstance(document.get("config"), dict):
        raise InvalidSpec("the manifest has neither manifests nor config and layers")
    if len(layers) > MAX_LAYERS:
        raise InvalidSpec(f"the manifest has {len(layers)} layers, more than {MAX_LAYERS}")
    return Manifest(_descriptor(document["config"]), tuple(_descriptor(layer) for layer in layers))


def select_manifest(index: Index, platform: Platform) -> Descriptor:
    """The entry for the platform; NotFound lists what there is."""
    allowed = _BASE_VARIANTS.get(platform.architecture, frozenset({""})) | {platform.variant}
    fitting = [entry for entry in index.manifests if _fits(entry.platform, platform) and entry.platform]
    for entry in sorted(fitting, key=lambda entry: entry.platform != platform):
        if entry.platform and entry.platform.variant in allowed:
            return entry
    unnamed = [entry for entry in index.manifests if entry.platform is None]
    if len(unnamed) == 1 and len(index.manifests) == 1:
        return unnamed[0]  # its configuration tells, and is checked
    offered = ", ".join(sorted({str(entry.platform) for entry in index.manifests})) or "nothing"
    raise NotFound(f"the image has no manifest for {platform}; it has {offered}")


def parse_configuration(body: bytes, platform: Platform) -> Configuration:
    """The configuration document; NotFound when it is for another platform than ours."""
    document = _document(body, "configuration")
    rootfs = document.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list) or not all(isinstance(text, str) and is_digest(text) for text in diff_ids):
        raise InvalidSpec("the image configuration has no list of digests at rootfs.diff_ids")
    own = Platform(_text(document, "os"), _text(document, "architecture"), _text(document, "variant"))
    if own.os and own.architecture and not _fits(own, platform):
        raise NotFound(f"the image is for {own}, this machine is {platform}")
    return Configuration(_image_config(document.get("config")), tuple(diff_ids), own, _created(document))


def chain_ids(diff_ids: Sequence[str]) -> tuple[str, ...]:
    """Identity of each layer together with all below it (image-spec config.md, "Layer ChainID"), bottom first."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(digest_of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return tuple(chain)


def _fits(candidate: Platform | None, platform: Platform) -> bool:
    return candidate is not None and candidate.os == platform.os and candidate.architecture == platform.architecture


def _document(body: bytes, what: str) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidSpec(f"the image {what} is not JSON") from None
    if not isinstance(document, dict):
        raise InvalidSpec(f"the image {what} is not a JSON object")
    return document


def _descriptor(value: object) -> Descriptor:
    if not isinstance(value, dict):
        raise InvalidSpec("the manifest has a descriptor that is not an object")
    digest, size, platform = value.get("digest"), value.get("size"), value.get("platform")
    if not isinstance(digest, str) or not is_digest(digest):
        raise InvalidSpec(f"the manifest has the digest {str(digest)[:80]!r}, which is not one")
    if not isinstance(size, int) or not 0 <= size <= _MAX_SIZE:
        raise InvalidSpec(f"the manifest gives {digest} the size {str(size)[:32]!r}")
    target = None
    if isinstance(platform, dict):
        target = Platform(_text(platform, "os"), _text(platform, "architecture"), _text(platform, "variant"))
    return Descriptor(digest, size, _text(value, "mediaType"), target, _texts_by_name(value.get("annotations")))


def _image_config(value: object) -> ImageConfig:
    source = value if isinstance(value, dict) else {}
    volumes = source.get("Volumes")
    for key in ("User", "WorkingDir", "StopSignal"):
        if len(_text(source, key)) > _MAX_TEXT:
            raise InvalidSpec(f"the image configuration has a {key} of more than {_MAX_TEXT} characters")
    config = ImageConfig(
        user=_text(source, "User"),
        env=_texts(source, "Env"),
        entrypoint=_texts(source, "Entrypoint"),
        cmd=_texts(source, "Cmd"),
        working_dir=_text(source, "WorkingDir"),
        stop_signal=_text(source, "StopSignal"),
        volumes=tuple(sorted(volumes)) if isinstance(volumes, dict) else (),
        labels=_texts_by_name(source.get("Labels")),
    )
    texts = [*config.env, *config.entrypoint, *config.cmd, *config.volumes, *config.labels, *config.labels.values()]
    if len(texts) > _MAX_TEXTS or sum(map(len, texts)) > _MAX_CHARACTERS:
        raise InvalidSpec(
            f"the image configuration has {len(texts)} texts of {sum(map(len, texts))} characters in Env, Entrypoint, "
            f"Cmd, Volumes and Labels; it may have {_MAX_TEXTS} of {_MAX_CHARACTERS}"
        )
    return config


def _text(source: Mapping[str, Any], key: str) -> str:
    value = source.get(key)
    if value is None:
        return ""
    if not _is_text(value):
        raise InvalidSpec(f"the image has a {key} that is not text")
    return str(value)


def _is_text(value: object) -> bool:
    """Text that a process can be given: no zero byte, and no half of a surrogate pair (JSON can write "\\ud800")."""
    return isinstance(value, str) and "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)


def _texts(source: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = source.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(_is_text(text) for text in value):
        raise InvalidSpec(f"the image configuration has a {key} that is not a list of texts")
    return tuple(value)


def _texts_by_name(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {name: text for name, text in value.items() if _is_text(name) and _is_text(text)}


def _created(document: Mapping[str, Any]) -> int:
    """Nanoseconds of the `created` time, 0 when there is none that can be read."""
    try:
        moment = datetime.datetime.fromisoformat(str(document.get("created")))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        return max(0, int(moment.timestamp())) * 1_000_000_000
    except (ValueError, OverflowError):
        return 0
