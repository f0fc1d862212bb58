"""Images: references, what the store keeps of one, and the credentials of a pull (api.proto Image, AuthConfig)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The part of an OCI image configuration that a container inherits (image-spec config.md)."""

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Image:
    """An image in the store. `id` is "sha256:..." of its configuration, equal in every CRI answer."""

    id: str
    #: "docker.io/library/busybox:1.36", fully qualified
    repo_tags: tuple[str, ...]
    #: "docker.io/library/busybox@sha256:..."
    repo_digests: tuple[str, ...]
    #: compressed layers + config, bytes
    size_bytes: int
    config: ImageConfig
    #: chain ids of the layers, bottom first
    chain_ids: tuple[str, ...]
    pinned: bool = False
    created_at_ns: int = 0


@dataclass(frozen=True, slots=True)
class Credentials:
    """CRI `AuthConfig`: the first that is set of registry_token, identity_token, auth, username and password."""

    username: str = ""
    password: str = field(default="", repr=False)
    auth: str = field(default="", repr=False)
    server_address: str = ""
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class FilesystemUsage:
    """CRI `FilesystemUsage`."""

    mountpoint: str
    used_bytes: int
    inodes_used: int
    timestamp_ns: int
