"""Images on their way into the store, from a registry or an archive: what each is made of, and how its layers come."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from crishim.errors import InvalidSpec
from crishim.images.archive import ArchivedImage
from crishim.images.blobs import BlobStore
from crishim.images.manifests import (
    MAX_CONFIG,
    Configuration,
    Descriptor,
    Index,
    Manifest,
    Platform,
    digest_of,
    parse_configuration,
    parse_manifest,
    select_manifest,
)
from crishim.images.references import Reference, parse_reference
from crishim.images.registry import RegistryClient
from crishim.images.repository import Repository
from crishim.model.image import Credentials

Fetch = Callable[[], Awaitable[Path]]


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far one layer of a pull is."""

    digest: str
    received_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Incoming:
    """One image, before anything of it is in the store."""

    configuration: Configuration
    #: manifest and configuration as they came
    documents: tuple[bytes, bytes]
    #: complete references, by tag and by digest
    names: Sequence[str]
    size_bytes: int
    #: bring the layers as files, the lowest first
    fetches: Sequence[Fetch]


class RegistryImages:
    """Images as registries have them."""

    def __init__(self, client: RegistryClient, blobs: BlobStore, threads: Executor) -> None:
        """threads: where answers of registries are waited for."""
        self._client = client
        self._blobs = blobs
        self._threads = threads

    @asynccontextmanager
    async def open(
        self,
        wanted: Reference,
        credentials: Credentials | None,
        platform: Platform,
        progress: Callable[[PullProgress], None] | None,
    ) -> AsyncIterator[Incoming]:
        """What the registry has under a name, to be fetched while the block lasts; what is under way then is stopped.

        progress is called on the event loop. InvalidSpec, NotFound, RegistryDenied, RegistryUnavailable.
        """
        stop = threading.Event()
        repository = Repository(self._client, wanted, credentials, stop)
        try:
            top = await self._waiting(repository.manifest, wanted.digest or wanted.tag or "latest")
            body, manifest = await self._choose(repository, top, platform)
            config_body = await self._waiting(repository.blob, manifest.config, MAX_CONFIG)
            report = _reporter(progress)
            incoming = Incoming(
                configuration=parse_configuration(config_body, platform),
                documents=(body, config_body),
                names=[
                    wanted.with_digest(wanted.digest or digest_of(top)),
                    *([wanted.tagged] if wanted.tagged else []),
                ],
                size_bytes=len(config_body) + sum(layer.size for layer in manifest.layers),
                fetches=[self._fetching(repository, layer, report) for layer in manifest.layers],
            )
            with self._blobs.used(layer.digest for layer in manifest.layers):
                yield incoming
        finally:
            stop.set()  # threads of a cancelled pull end at their next piece

    async def _waiting(self, ask: Callable[..., bytes], *arguments: object) -> bytes:
        """An answer of the registry, waited for in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, ask, *arguments)

    async def _choose(self, repository: Repository, top: bytes, platform: Platform) -> tuple[bytes, Manifest]:
        body, document = top, parse_manifest(top)
        if isinstance(document, Index):
            entry = select_manifest(document, platform)
            body = await self._waiting(repository.manifest, entry.digest)
            document = parse_manifest(body)
        if isinstance(document, Index):
            raise InvalidSpec("the image has an index inside an index")
        return body, document

    def _fetching(self, repository: Repository, layer: Descriptor, report: Callable[[PullProgress], None]) -> Fetch:
        def received(count: int) -> None:
            report(PullProgress(layer.digest, count, layer.size))

        async def fetch() -> Path:
            return await self._blobs.fetch(repository, layer, received)

        return fetch


def from_archive(archived: ArchivedImage, platform: Platform) -> Incoming:
    """An image whose layers are files already. InvalidSpec when it is not for the platform, or its names are wrong."""
    names = [*archived.names]
    if archived.manifest:
        digest = digest_of(archived.manifest)
        names += [parse_reference(name).with_digest(digest) for name in archived.names]
    return Incoming(
        configuration=parse_configuration(archived.configuration, platform),
        documents=(archived.manifest, archived.configuration),
        names=names,
        size_bytes=len(archived.configuration) + sum(layer.stat().st_size for layer in archived.layers),
        fetches=[_given(layer) for layer in archived.layers],
    )


def _given(path: Path) -> Fetch:
    async def fetch() -> Path:
        return path

    return fetch


def _reporter(progress: Callable[[PullProgress], None] | None) -> Callable[[PullProgress], None]:
    """A function for threads that has `progress` called on this event loop."""
    if progress is None:
        return lambda _: None
    loop, call = asyncio.get_running_loop(), progress

    def report(value: PullProgress) -> None:
        loop.call_soon_threadsafe(call, value)

    return report
