"""Configuration and manifest of an image that is made here. Reproducible."""

from __future__ import annotations

import json
from typing import Any

from crishim.images.manifests import OCI_CONFIG, OCI_MANIFEST, digest_of
from crishim.model.image import ImageConfig


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
