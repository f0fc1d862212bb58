"""The images of a node: pulled or loaded, unpacked once per chain id, listed from memory.

On the disk, all below ROOT and closed to other users: `images/images.db` (what is known), `images/partial` and
`images/blobs` (`blobs.py`), `images/spool` (archives being read), `layers/<n>` (`layers.py`), `containers/<id>`
(`rootfs.py`). Nothing hostile is parsed here but JSON and archive headers: layers are unpacked by a confined child.
"""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from crishim.errors import CrishimError, InvalidSpec, NotFound
from crishim.images.archive import read_archive
from crishim.images.blobs import BlobStore
from crishim.images.disk import own_files
from crishim.images.layers import LayerLimits, LayerStore, Unpacker
from crishim.images.manifests import (
    MAX_CONFIG,
    Configuration,
    Descriptor,
    Index,
    Manifest,
    Platform,
    chain_ids,
    digest_of,
    host_platform,
    parse_configuration,
    parse_manifest,
    select_manifest,
)
from crishim.images.references import Reference, parse_image_id, parse_reference
from crishim.images.registry import RegistryClient, RegistryConfig
from crishim.images.repository import Repository
from crishim.images.rootfs import RootFsStore
from crishim.images.table import ImageTable
from crishim.images.trees import remove_tree
from crishim.model.image import Credentials, FilesystemUsage, Image

_PARALLEL_LAYERS = 3
_PULL_THREADS = 32
_MIN_ID_PREFIX = 12

Fetch = Callable[[], Awaitable[Path]]
Images = list[Image]  # named here: inside the class `list` is the method


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far one layer of a pull is. state: "downloading", "unpacked" (then received_bytes is size_bytes)."""

    digest: str
    received_bytes: int
    size_bytes: int
    state: str


@dataclass(frozen=True, slots=True)
class StoreUse:
    """What the store has rows for and works on; other files below its root are nobody's."""

    #: ids of containers whose root is prepared
    prepared: frozenset[str] = frozenset()
    #: names below ROOT/layers, and those of them that nobody has used for a day
    layers: frozenset[str] = frozenset()
    unused_layers: frozenset[str] = frozenset()
    #: names below ROOT/images/partial and ROOT/images/blobs
    blobs: frozenset[str] = frozenset()
    #: names below ROOT/images/spool
    spools: frozenset[str] = frozenset()


class ImageStore:
    """One per server; its coroutines belong to one event loop. `rootfs` makes the roots of containers."""

    def __init__(
        self,
        root: Path,
        unpacker: Unpacker,
        registry: RegistryConfig | None = None,
        *,
        platform: Platform | None = None,
        limits: LayerLimits | None = None,
        pinned: frozenset[str] = frozenset(),
    ) -> None:
        """Open the store, removing what a crash left. pinned: complete references that image GC shall spare."""
        self._platform = platform or host_platform()
        self._client = RegistryClient(registry or RegistryConfig())
        self._pinned = pinned
        directory = root / "images"
        self._spool = directory / "spool"
        with own_files(root):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.mkdir(mode=0o700, exist_ok=True)
            remove_tree(self._spool)
            self._spool.mkdir(mode=0o700)
        #: names of its directories that archives are being read into
        self._spooling: set[str] = set()
        self._table = ImageTable(directory / "images.db")
        #: where registries are waited for: a slow one must not take the loop's own threads from everybody else
        self._threads = ThreadPoolExecutor(_PULL_THREADS, "image-pull")
        self._blobs = BlobStore(directory, self._threads)
        self._layers = LayerStore(root, self._table, unpacker, limits or LayerLimits())
        self.rootfs = RootFsStore(root, self._table, self._layers)
        #: held while rows are written and the index below is made from them
        self._lock = threading.Lock()
        self._images: dict[str, Image] = {}
        self._names: dict[str, str] = {}
        #: running pulls by what they were asked for; the same call again joins
        self._pulls: dict[tuple[str, Credentials | None], asyncio.Future[Image]] = {}
        self._reload()

    def close(self) -> None:
        """Close database and connections; pulls have ended or are cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()
        self._table.close()

    def configure(self, registry: RegistryConfig, platform: Platform, limits: LayerLimits) -> None:
        """Registries, platform and bounds of pulls that are begun from now on."""
        self._client.configure(registry)
        self._platform = platform
        self._layers.limits = limits

    # -- looking, from memory ------------------------------------------------------------------------------------------

    def resolve(self, name: str) -> Image:
        """The image called `name`: a reference by tag or digest, an id with or without "sha256:", or 12 digits of it.

        InvalidSpec when it cannot be a name of an image, NotFound when the store has none of that name.
        """
        image_id = parse_image_id(name)
        if image_id is None:
            image_id = self._by_reference(name) or self._by_prefix(name)
        image = self._images.get(image_id or "")
        if image is None:
            raise NotFound(f"image {name!r} is not in the store")
        return image

    def list(self, filter: str | None = None) -> Images:
        """All images, or the one that `filter` names, or none."""
        if not filter:
            return sorted(self._images.values(), key=lambda image: image.id)
        try:
            return [self.resolve(filter)]
        except (NotFound, InvalidSpec):
            return []

    def usage(self) -> FilesystemUsage:
        """Bytes and inodes of the unpacked layers, from running totals."""
        return self._layers.usage()

    def layer_paths(self, image: Image) -> tuple[str, ...]:
        """Directories of the image's layers, topmost first, as overlayfs wants them. NotFound when one was freed."""
        return self._layers.paths(image.chain_ids)

    async def use(self) -> StoreUse:
        """What of the store's directories is known to it."""
        prepared, unused = await asyncio.to_thread(lambda: (self.rootfs.prepared(), self._layers.unused_names()))
        return StoreUse(
            prepared=frozenset(prepared),
            layers=self._layers.names(),
            unused_layers=unused,
            blobs=self._blobs.in_use(),
            spools=frozenset(self._spooling),
        )

    async def free_layer(self, name: str) -> None:
        """Remove a directory of a layer that is nobody's; a layer in use stays. OSError when it cannot be removed."""
        await asyncio.to_thread(self._layers.free, name)

    async def free_blob(self, name: str) -> None:
        """Remove what nobody has asked for in a day. OSError when it cannot be removed."""
        await asyncio.to_thread(self._blobs.free, name)

    async def free_spool(self, name: str) -> None:
        """Remove a directory that no archive is read into. OSError when it cannot be removed."""
        if name not in self._spooling:
            await asyncio.to_thread(remove_tree, self._spool / name)

    # -- changing ------------------------------------------------------------------------------------------------------

    async def pull(
        self,
        reference: str,
        credentials: Credentials | None = None,
        progress: Callable[[PullProgress], None] | None = None,
    ) -> Image:
        """Ask the registry, fetch what is missing, unpack it; a second call for the same joins the first.

        progress is called on the event loop. Cancelling the last caller stops the pull; what was received stays.
        InvalidSpec, NotFound, RegistryDenied, RegistryUnavailable, Exhausted (disk).
        """
        wanted = parse_reference(reference)
        key = (str(wanted), credentials)
        while (running := self._pulls.get(key)) is not None:
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not running.cancelled() or (task and task.cancelling()):
                    raise
                # the caller who led gave up, and we did not: lead ourselves
        promise: asyncio.Future[Image] = asyncio.get_running_loop().create_future()
        self._pulls[key] = promise
        try:
            image = await self._pull(wanted, credentials, progress)
        except asyncio.CancelledError:
            promise.cancel()
            raise
        except BaseException as error:
            promise.set_exception(error)
            promise.exception()  # seen: nobody has to join
            raise
        else:
            promise.set_result(image)
            return image
        finally:
            del self._pulls[key]

    async def load(self, archive: Path) -> Images:
        """Add the images of an OCI layout or docker archive (tar, also compressed). InvalidSpec, Exhausted, OSError."""
        async with self._spooled() as spool:
            found = await asyncio.to_thread(read_archive, archive, spool, self._platform)
            images = []
            for archived in found:
                configuration = parse_configuration(archived.configuration, self._platform)
                size = len(archived.configuration) + sum(layer.stat().st_size for layer in archived.layers)
                names = [*archived.names]
                if archived.manifest:
                    digest = digest_of(archived.manifest)
                    names += [parse_reference(name).with_digest(digest) for name in archived.names]
                documents = (archived.manifest, archived.configuration)
                fetches = [_given(layer) for layer in archived.layers]
                images.append(await self._install(configuration, documents, names, size, fetches))
            return images

    async def remove(self, name: str) -> None:
        """Remove the image with all its tags and digests, whatever names it; nothing when it is not there.

        Layers that containers still use stay until `rootfs.release`.
        """
        try:
            image = self.resolve(name)
        except NotFound:
            return
        await asyncio.to_thread(self._remove, image.id)

    # -- inside --------------------------------------------------------------------------------------------------------

    async def _pull(
        self, wanted: Reference, credentials: Credentials | None, progress: Callable[[PullProgress], None] | None
    ) -> Image:
        stop = threading.Event()
        repository = Repository(self._client, wanted, credentials, stop)
        try:
            top = await self._waiting(repository.manifest, wanted.digest or wanted.tag or "latest")
            body, manifest = await self._choose(repository, top)
            config_body = await self._waiting(repository.blob, manifest.config, MAX_CONFIG)
            configuration = parse_configuration(config_body, self._platform)
            digest = wanted.digest or digest_of(top)
            names = [wanted.with_digest(digest), *([wanted.tagged] if wanted.tagged else [])]
            size = len(config_body) + sum(layer.size for layer in manifest.layers)
            report = _reporter(progress)
            fetches = [self._fetching(repository, layer, report) for layer in manifest.layers]
            with self._blobs.used(layer.digest for layer in manifest.layers):
                return await self._install(configuration, (body, config_body), names, size, fetches)
        finally:
            stop.set()  # threads of a cancelled pull end at their next piece

    async def _waiting(self, ask: Callable[..., bytes], *arguments: object) -> bytes:
        """An answer of the registry, waited for in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, ask, *arguments)

    async def _choose(self, repository: Repository, top: bytes) -> tuple[bytes, Manifest]:
        body, document = top, parse_manifest(top)
        if isinstance(document, Index):
            entry = select_manifest(document, self._platform)
            body = await self._waiting(repository.manifest, entry.digest)
            document = parse_manifest(body)
        if isinstance(document, Index):
            raise InvalidSpec("the image has an index inside an index")
        return body, document

    def _fetching(self, repository: Repository, layer: Descriptor, report: Callable[[PullProgress], None]) -> Fetch:
        def received(count: int) -> None:
            report(PullProgress(layer.digest, count, layer.size, "downloading"))

        async def fetch() -> Path:
            return await self._blobs.fetch(repository, layer, received)

        return fetch

    async def _install(
        self,
        configuration: Configuration,
        documents: tuple[bytes, bytes],
        names: Sequence[str],
        size_bytes: int,
        fetches: Sequence[Fetch],
    ) -> Image:
        """Unpack the layers that are missing, bottom first, then commit the image under its names."""
        if len(fetches) != len(configuration.diff_ids):
            raise InvalidSpec(
                f"the image has {len(fetches)} layers, but its configuration names {len(configuration.diff_ids)}"
            )
        chain = chain_ids(configuration.diff_ids)
        async with self._layers.leased(chain):
            await self._ensure_layers(chain, configuration.diff_ids, fetches)
            image = Image(
                id=digest_of(documents[1]),
                repo_tags=(),
                repo_digests=(),
                size_bytes=size_bytes,
                config=configuration.config,
                chain_ids=chain,
                created_at_ns=configuration.created_at_ns or time.time_ns(),
            )
            return await asyncio.to_thread(self._put, image, list(names), documents)

    async def _ensure_layers(self, chain: Sequence[str], diff_ids: Sequence[str], fetches: Sequence[Fetch]) -> None:
        slots = asyncio.Semaphore(_PARALLEL_LAYERS)

        async def ensure(chain_id: str, diff_id: str, fetch: Fetch) -> None:
            async with slots:
                await self._layers.ensure(chain_id, diff_id, fetch)

        try:
            async with asyncio.TaskGroup() as group:
                for chain_id, diff_id, fetch in zip(chain, diff_ids, fetches, strict=True):
                    group.create_task(ensure(chain_id, diff_id, fetch))
        except BaseExceptionGroup as failed:
            raise _first_cause(failed) from None

    def _put(self, image: Image, names: Sequence[str], documents: tuple[bytes, bytes]) -> Image:
        with self._lock:
            self._table.put_image(image, list(names), *documents)
            self._read_table()
            return self._images[image.id]

    def _remove(self, image_id: str) -> None:
        with self._lock:
            self._table.drop_image(image_id)
            self._read_table()
        self._layers.free_unused()

    def _reload(self) -> None:
        with self._lock:
            self._read_table()

    def _read_table(self) -> None:
        images = [self._with_pin(image) for image in self._table.images()]
        self._images = {image.id: image for image in images}
        self._names = {name: image.id for image in images for name in (*image.repo_tags, *image.repo_digests)}

    def _with_pin(self, image: Image) -> Image:
        return dataclasses.replace(image, pinned=not self._pinned.isdisjoint(image.repo_tags + image.repo_digests))

    def _by_reference(self, name: str) -> str | None:
        try:
            wanted = parse_reference(name)
        except InvalidSpec:
            if self._by_prefix(name):
                return None
            raise
        return self._names.get(wanted.with_digest(wanted.digest) if wanted.digest else str(wanted))

    def _by_prefix(self, name: str) -> str | None:
        digits = name.removeprefix("sha256:")
        if len(digits) < _MIN_ID_PREFIX or not set(digits) <= set("0123456789abcdef"):
            return None
        found = [image_id for image_id in self._images if image_id.startswith(f"sha256:{digits}")]
        return found[0] if len(found) == 1 else None

    @asynccontextmanager
    async def _spooled(self) -> AsyncIterator[Path]:
        """A directory of our own for the members of an archive."""
        with own_files(self._spool):
            spool = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=self._spool))
        self._spooling.add(spool.name)
        try:
            yield spool
        finally:
            await asyncio.to_thread(remove_tree, spool)
            self._spooling.discard(spool.name)


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


def _first_cause(failed: BaseException) -> BaseException:
    """The failure that a caller can act on: one of ours when there is one."""
    leaves = [failed]
    for failure in leaves:
        if isinstance(failure, BaseExceptionGroup):
            leaves += failure.exceptions
    single = [failure for failure in leaves if not isinstance(failure, BaseExceptionGroup)]
    return next((failure for failure in single if isinstance(failure, CrishimError)), single[0])
