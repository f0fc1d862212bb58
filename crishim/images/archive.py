"""Images in one file: an OCI image layout or what `docker save` writes, as tar, plain or compressed.

The archive is hostile. Its members are copied to numbered files of ours, never to a name of theirs, and what they say
about each other is checked like a registry's answer.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crishim.errors import InvalidSpec
from crishim.images import tar
from crishim.images.disk import own_files, write_all
from crishim.images.manifests import (
    MAX_CONFIG,
    MAX_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    Platform,
    digest_of,
    parse_manifest,
    select_manifest,
)
from crishim.images.references import parse_reference
from crishim.images.stream import LayerStream

_MAX_MEMBERS = 100_000
#: bytes of the names and links of all members: they are kept in memory
_MAX_NAMES = 16 << 20
#: images that manifest.json may list: each has its configuration read
_MAX_IMAGES = 500
_MAX_BYTES = 256 << 30
_NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


@dataclass(frozen=True, slots=True)
class ArchivedImage:
    """One image of an archive, its layers in files of ours."""

    #: complete references by tag
    names: tuple[str, ...]
    #: b"" when the archive has none (docker save)
    manifest: bytes
    configuration: bytes
    #: blob files from the bottom up; a file may be there twice
    layers: tuple[Path, ...]


def read_archive(path: Path, spool: Path, platform: Platform) -> list[ArchivedImage]:
    """The images of the archive for the platform; `spool` is an empty directory that receives the members' content.

    InvalidSpec when it is neither kind of archive or contradicts itself, OSError when it cannot be read, Exhausted when
    the spool is full.
    """
    members = _spool(path, spool)
    if "index.json" in members:
        return list(_oci_images(members, platform))
    if "manifest.json" in members:
        return list(_docker_images(members))
    raise InvalidSpec(f"{path} holds neither index.json nor manifest.json: it is no image archive")


def _spool(path: Path, spool: Path) -> dict[str, Path]:
    """Name to content file of every regular member; links among them point to the same file."""
    members: dict[str, Path] = {}
    links: dict[str, str] = {}
    # without waiting for the writer of a fifo, which may never come
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidSpec(f"{path} is not a regular file")
        stream = LayerStream(descriptor, _MAX_BYTES)
        names_bytes = 0
        for count, entry in enumerate(tar.read_entries(stream)):
            if count >= _MAX_MEMBERS:
                raise InvalidSpec(f"{path} has more than {_MAX_MEMBERS} members")
            names_bytes += len(entry.name) + len(entry.link)
            if names_bytes > _MAX_NAMES:
                raise InvalidSpec(f"{path} has members with names of more than {_MAX_NAMES} bytes")
            name = os.fsdecode(tar.clean_name(entry.name))
            if entry.kind == tar.FILE and entry.segments is None:
                members[name] = _copy(stream, entry.stored, spool / str(count))
                stream.skip(entry.padding)
                continue
            if entry.kind == tar.SYMLINK:
                links[name] = _join(os.path.dirname(name), os.fsdecode(entry.link))
            elif entry.kind == tar.HARDLINK:
                links[name] = os.fsdecode(tar.clean_name(entry.link))
            stream.skip(entry.stored + entry.padding)
    finally:
        os.close(descriptor)
    # docker save writes a layer that several images share once, and links the other names to it
    members.update({name: members[target] for name, target in links.items() if target in members})
    return members


def _copy(stream: LayerStream, length: int, path: Path) -> Path:
    with own_files(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for piece in stream.pieces(length):
            with own_files(path):
                write_all(descriptor, piece)
    finally:
        os.close(descriptor)
    return path


def _join(directory: str, link: str) -> str:
    """A symlink's target within the archive, lexically."""
    return os.path.normpath("/" + os.path.join(directory, link)).lstrip("/")


def _oci_images(members: dict[str, Path], platform: Platform) -> Iterator[ArchivedImage]:
    index = parse_manifest(_read(members, "index.json", MAX_MANIFEST))
    if not isinstance(index, Index):
        raise InvalidSpec("index.json of the archive is not an index")
    tags = _docker_tags(members)
    for entry in index.manifests:
        manifest, body = _oci_manifest(members, entry, platform)
        configuration = _blob(members, manifest.config, MAX_CONFIG)
        layers = tuple(_blob_path(members, layer) for layer in manifest.layers)
        names = {*_annotated_names(entry), *tags.get(manifest.config.digest, ())}
        yield ArchivedImage(tuple(sorted(names)), body, configuration, layers)


def _oci_manifest(members: dict[str, Path], entry: Descriptor, platform: Platform) -> tuple[Manifest, bytes]:
    body = _blob(members, entry, MAX_MANIFEST)
    document = parse_manifest(body)
    if isinstance(document, Index):
        body = _blob(members, select_manifest(document, platform), MAX_MANIFEST)
        document = parse_manifest(body)
    if isinstance(document, Index):
        raise InvalidSpec("the archive has an index inside an index")
    return document, body


def _docker_images(members: dict[str, Path]) -> Iterator[ArchivedImage]:
    for entry in _docker_manifest(members):
        configuration = _read(members, _text(entry.get("Config")), MAX_CONFIG)
        layers = tuple(_member(members, _text(name)) for name in _list(entry.get("Layers")))
        yield ArchivedImage(_docker_names(entry), b"", configuration, layers)


def _docker_tags(members: dict[str, Path]) -> dict[str, tuple[str, ...]]:
    """Configuration digest to tags, of the manifest.json that newer docker versions put beside index.json."""
    if "manifest.json" not in members:
        return {}
    return {
        digest_of(_read(members, _text(entry.get("Config")), MAX_CONFIG)): _docker_names(entry)
        for entry in _docker_manifest(members)
    }


def _docker_manifest(members: dict[str, Path]) -> list[dict[str, Any]]:
    try:
        document = json.loads(_read(members, "manifest.json", MAX_MANIFEST))
    except (ValueError, RecursionError):
        raise InvalidSpec("manifest.json of the archive is not JSON") from None
    entries = [entry for entry in _list(document) if isinstance(entry, dict)]
    if len(entries) > _MAX_IMAGES:
        raise InvalidSpec(f"manifest.json of the archive lists {len(entries)} images, more than {_MAX_IMAGES}")
    return entries


def _docker_names(entry: dict[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(str(parse_reference(_text(tag))) for tag in _list(entry.get("RepoTags"))))


def _annotated_names(entry: Descriptor) -> list[str]:
    """The image's name as writers of OCI layouts note it; a ref.name that is only a tag names no repository."""
    for key in _NAME_ANNOTATIONS:
        text = entry.annotations.get(key, "")
        if "/" in text or (text and key == _NAME_ANNOTATIONS[0]):
            reference = parse_reference(text)
            return [reference.tagged] if reference.tagged else []
    return []


def _blob_path(members: dict[str, Path], descriptor: Descriptor) -> Path:
    algorithm, _, encoded = descriptor.digest.partition(":")
    path = _member(members, f"blobs/{algorithm}/{encoded}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != encoded:
        raise InvalidSpec(f"the archive's content for {descriptor.digest} has another digest")
    return path


def _blob(members: dict[str, Path], descriptor: Descriptor, max_bytes: int) -> bytes:
    path = _blob_path(members, descriptor)
    if path.stat().st_size > max_bytes:
        raise InvalidSpec(f"{descriptor.digest} of the archive has more than {max_bytes} bytes")
    return path.read_bytes()


def _read(members: dict[str, Path], name: str, max_bytes: int) -> bytes:
    path = _member(members, name)
    if path.stat().st_size > max_bytes:
        raise InvalidSpec(f"{name} of the archive has more than {max_bytes} bytes")
    return path.read_bytes()


def _member(members: dict[str, Path], name: str) -> Path:
    path = members.get(os.path.normpath(name))
    if path is None:
        raise InvalidSpec(f"the archive has no {name!r}, which it refers to")
    return path


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidSpec("manifest.json of the archive has something else where a text belongs")
    return value


def _list(value: object) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidSpec("manifest.json of the archive has something else where a list belongs")
    return value
