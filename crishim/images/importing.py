"""A root file system that came without an image: made into one layer, a configuration and a manifest. Reproducible."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from pathlib import Path
from typing import Any

from crishim.errors import InvalidSpec
from crishim.images.manifests import OCI_CONFIG, OCI_MANIFEST, Platform, digest_of
from crishim.images.stream import LayerStream
from crishim.model.image import ImageConfig

_MAX_BYTES = 256 << 30
_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
#: what a compressed file begins with, to the end of its media type
_SUFFIXES = {b"\x1f\x8b": "+gzip", b"\x28\xb5": "+zstd"}


def layer_file_of(source: Path, spool: Path) -> tuple[Path, str]:
    """A tar file with the root file system `source`, and its diff id. Blocking.

    source is a tar file, or a directory, which is packed into `spool`; InvalidSpec when it is neither.
    """
    layer = source
    if source.is_dir():
        layer = spool / "layer"
        with tarfile.open(layer, "w", format=tarfile.PAX_FORMAT) as archive:
            archive.add(source, arcname=".", recursive=True)
    elif not source.is_file():
        raise InvalidSpec(f"{source} is neither a directory nor a tar file")
    descriptor = os.open(layer, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return layer, LayerStream(descriptor, _MAX_BYTES).drain()
    finally:
        os.close(descriptor)


def imported_documents(layer: Path, diff_id: str, config: ImageConfig, platform: Platform) -> tuple[bytes, bytes]:
    """Manifest and configuration of an image that has the one layer. Blocking: the layer file is hashed."""
    configuration = document(
        {
            "architecture": platform.architecture,
            "os": platform.os,
            "config": config_document(config),
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        }
    )
    with layer.open("rb") as file:
        digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        kind = _OCI_LAYER + _SUFFIXES.get(os.pread(file.fileno(), 2, 0), "")
    blob = {"mediaType": kind, "digest": digest, "size": layer.stat().st_size}
    return manifest_document(configuration, [blob]), configuration


def manifest_document(configuration: bytes, layers: list[dict[str, Any]]) -> bytes:
    """An OCI manifest of a configuration and layer descriptors."""
    return document(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": digest_of(configuration), "size": len(configuration)},
            "layers": layers,
        }
    )


def config_document(config: ImageConfig) -> dict[str, Any]:
    """The `config` object of an OCI configuration, without what is unset."""
    fields: dict[str, Any] = {
        "User": config.user,
        "Env": list(config.env),
        "Entrypoint": list(config.entrypoint),
        "Cmd": list(config.cmd),
        "WorkingDir": config.working_dir,
        "StopSignal": config.stop_signal,
        "Volumes": {volume: {} for volume in config.volumes},
        "Labels": dict(config.labels),
    }
    return {name: value for name, value in fields.items() if value}


def document(value: dict[str, Any]) -> bytes:
    """JSON with one spelling, so that equal content has an equal digest."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
