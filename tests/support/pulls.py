"""Pulls for tests: two layers, a store's way to take them, and a registry seen through a front that changes answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import urllib3

from crishim.images.store import ImageStore
from crishim.model.image import Credentials, Image
from tests.support.front import Answer, Request
from tests.support.registry import Registry, layer_tar

BASE = layer_tar([("etc", None), ("etc/base", b"base")])
TOP = layer_tar([("etc", None), ("etc/top", b"top"), ("etc/.wh.base", b"")])
#: a client that does not wait long
FAST: dict[str, Any] = {"backoff_s": 0.001, "connect_timeout_s": 5.0, "read_timeout_s": 5.0}


def pull(store: ImageStore, reference: str, credentials: Credentials | None = None) -> Image:
    """The image, pulled."""
    return asyncio.run(store.pull(reference, credentials))


def names_in(store: ImageStore, image: Image) -> set[str]:
    """Paths in its layers."""
    return {str(path.relative_to(top)) for top in map(Path, store.layer_paths(image)) for path in top.rglob("*")}


def forward(registry: Registry, request: Request) -> Answer:
    """The registry's own answer to a GET of a manifest or blob, Range included."""
    headers = {name: value for name, value in request.headers.items() if name in ("Accept", "Range")}
    got = urllib3.request("GET", f"http://{registry.host}{request.path}", headers=headers, decode_content=False)
    kept = {name: got.headers[name] for name in ("Content-Type", "Content-Range") if name in got.headers}
    return Answer(got.status, got.data, kept)
