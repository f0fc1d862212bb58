"""The image store of a configuration; layers are unpacked by a confined child of the zygote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crishim.config import ImagesConfig
from crishim.executor.client import Executor
from crishim.images.layers import LayerLimits
from crishim.images.manifests import Platform
from crishim.images.registry import RegistryConfig
from crishim.images.store import ImageStore

_UNPACK_S = 3600.0


class _Unpacker:
    """Layers are unpacked by a confined child of the zygote."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def unpack(self, request: Mapping[str, Any], fds: list[int]) -> dict[str, Any]:
        """The reply of the role."""
        return await self._executor.run_role("unpack", request, fds, _UNPACK_S)

    async def adopt_parents(self, request: Mapping[str, Any], fds: list[int]) -> dict[str, Any]:
        """The reply of the role."""
        return await self._executor.run_role("adopt_parents", request, fds, _UNPACK_S)


def open_image_store(root: Path, images: ImagesConfig, executor: Executor) -> ImageStore:
    """The store below `root`, which no other process has open."""
    return ImageStore(
        root,
        _Unpacker(executor),
        registry_config(images),
        platform=platform_of(images),
        limits=layer_limits(images),
    )


def registry_config(images: ImagesConfig) -> RegistryConfig:
    """How registries are reached."""
    return RegistryConfig(
        mirrors=images.mirrors,
        insecure=frozenset(images.insecure),
        ca_files={host: str(path) for host, path in images.ca_files.items()},
    )


def platform_of(images: ImagesConfig) -> Platform:
    """Which image of an index is taken."""
    system, architecture, *variant = images.platform.split("/")
    return Platform(system, architecture, variant[0] if variant else "")


def layer_limits(images: ImagesConfig) -> LayerLimits:
    """Bounds of one layer."""
    return LayerLimits(max_bytes=images.max_layer_bytes, max_entries=images.max_layer_entries)
