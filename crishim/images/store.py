"""The images of a node: pulled or loaded, unpacked once per chain id, listed from memory.

On the disk, all below ROOT and closed to other users: `images/images.db` (what is known), `images/partial` and
`images/blobs` (`blobs.py`), `images/spool` (archives being read), `layers/<n>` (`layers.py`), `containers/<id>`
(`rootfs.py`). Nothing hostile is parsed here but JSON and archive headers: layers are unpacked by a confined child.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from crishim.errors import CrishimError, InvalidSpec, NotFound
from crishim.images.archive import read_archive
from crishim.images.blobs import BlobStore
from crishim.images.disk import own_files
from crishim.images.incoming import Fetch, Incoming, PullProgress, RegistryImages, from_archive
from crishim.images.index import ImageIndex
from crishim.images.layers import LayerLimits, LayerStore, Unpacker
from crishim.images.manifests import Platform, chain_ids, digest_of, host_platform
from crishim.images.references import parse_reference
from crishim.images.registry import RegistryClient, RegistryConfig
from crishim.images.rootfs import RootFsStore
from crishim.images.table import ImageTable
from crishim.images.trees import remove_tree
from crishim.model.image import Credentials, FilesystemUsage, Image

_PARALLEL_LAYERS = 3
_PULL_THREADS = 32

Images = list[Image]  # named here: inside the class `list` is the method


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
        self._index = ImageIndex(self._table, pinned)
        #: where registries are waited for: a slow one must not take the loop's own threads from everybody else
        self._threads = ThreadPoolExecutor(_PULL_THREADS, "image-pull")
        self._blobs = BlobStore(directory, self._threads)
        self._registry_images = RegistryImages(self._client, self._blobs, self._threads)
        self._layers = LayerStore(root, self._table, unpacker, limits or LayerLimits())
        self.rootfs = RootFsStore(root, self._table, self._layers)
        #: running pulls by what they were asked for; the same call again joins
        self._pulls: dict[tuple[str, Credentials | None], asyncio.Future[Image]] = {}

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
        return self._index.resolve(name)

    def list(self, filter: str | None = None) -> Images:
        """All images, or the one that `filter` names, or none."""
        if not filter:
            return self._index.all()
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
            async with self._registry_images.open(wanted, credentials, self._platform, progress) as incoming:
                image = await self._install(incoming)
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
            return [await self._install(from_archive(archived, self._platform)) for archived in found]

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

    async def _install(self, incoming: Incoming) -> Image:
        """Unpack the layers that are missing, then commit the image under its names."""
        configuration, fetches = incoming.configuration, incoming.fetches
        if len(fetches) != len(configuration.diff_ids):
            raise InvalidSpec(
                f"the image has {len(fetches)} layers, but its configuration names {len(configuration.diff_ids)}"
            )
        chain = chain_ids(configuration.diff_ids)
        async with self._layers.leased(chain):
            await self._ensure_layers(chain, configuration.diff_ids, fetches)
            image = Image(
                id=digest_of(incoming.documents[1]),
                repo_tags=(),
                repo_digests=(),
                size_bytes=incoming.size_bytes,
                config=configuration.config,
                chain_ids=chain,
                created_at_ns=configuration.created_at_ns or time.time_ns(),
            )
            return await asyncio.to_thread(self._index.put, image, list(incoming.names), *incoming.documents)

    async def _ensure_layers(self, chain: Sequence[str], diff_ids: Sequence[str], fetches: Sequence[Fetch]) -> None:
        slots = asyncio.Semaphore(_PARALLEL_LAYERS)

        async def ensure(index: int, fetch: Fetch) -> None:
            async with slots:  # the lowest first: who waits for those below holds no place that they need
                await self._layers.ensure(chain[index], diff_ids[index], chain[:index], fetch)

        try:
            async with asyncio.TaskGroup() as group:
                for index, fetch in enumerate(fetches):
                    group.create_task(ensure(index, fetch))
        except BaseExceptionGroup as failed:
            raise _first_cause(failed) from None

    def _remove(self, image_id: str) -> None:
        self._index.drop(image_id)
        self._layers.free_unused()

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


def _first_cause(failed: BaseException) -> BaseException:
    """The failure that a caller can act on: one of ours when there is one."""
    leaves = [failed]
    for failure in leaves:
        if isinstance(failure, BaseExceptionGroup):
            leaves += failure.exceptions
    single = [failure for failure in leaves if not isinstance(failure, BaseExceptionGroup)]
    return next((failure for failure in single if isinstance(failure, CrishimError)), single[0])
