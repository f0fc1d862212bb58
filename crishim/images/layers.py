"""Layers on the disk: unpacked once per chain id by a confined child, counted, shared, freed when nobody uses them.

A directory is filled under a temporary name, its diff id compared, written to the disk, renamed, and then committed;
a crash in between leaves a directory without a row, which the next opening removes.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Protocol
from weakref import WeakValueDictionary

from crishim import errors
from crishim.errors import CrishimError, InvalidSpec, NotFound
from crishim.images.disk import own_files
from crishim.images.table import ImageTable, Layer
from crishim.images.trees import remove_tree
from crishim.linux.sync import syncfs
from crishim.model.image import FilesystemUsage

#: an unused layer of a pull that was interrupted is kept for its retry so long
UNUSED_LIFE_NS = 24 * 3600 * 1_000_000_000
_MAX_UNPACKERS = 2


class Unpacker(Protocol):
    """Runs the roles `roles.unpack` and `parents.adopt_parents` in confined processes of their own."""

    async def unpack(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """The role's reply. Unavailable when the process died; it is killed when the call is cancelled."""
        ...

    async def adopt_parents(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """The same."""
        ...


@dataclass(frozen=True, slots=True)
class LayerLimits:
    """Bounds of one layer."""

    #: uncompressed
    max_bytes: int = 64 << 30
    max_entries: int = 2_000_000


class LayerStore:
    """ROOT/layers and the rows of its directories."""

    def __init__(self, root: Path, table: ImageTable, unpacker: Unpacker, limits: LayerLimits) -> None:
        self._directory = root / "layers"
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._table = table
        self._unpacker = unpacker
        #: bounds of a layer that is unpacked from now on
        self.limits = limits
        #: held while leases and rows are compared, so that a layer is not freed between look and lease
        self._lock = threading.Lock()
        #: how many running pulls count on a chain id
        self._leases: Counter[str] = Counter()
        #: directories that could not be removed yet
        self._stale: set[Path] = set()
        #: names of directories that are being filled or committed
        self._in_progress: set[str] = set()
        #: one unpacking per chain id; a second waits and finds it done
        self._unpacking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._slots = asyncio.Semaphore(_MAX_UNPACKERS)
        #: told of every layer that is there now
        self._arrival = asyncio.Condition()
        self._layers = {layer.chain_id: layer for layer in table.layers()}
        self._clean()
        self._next = max((layer.directory for layer in self._layers.values()), default=0) + 1

    def paths(self, chain_ids: Sequence[str]) -> tuple[str, ...]:
        """Directories of an image's layers, topmost first, down to one that hides all below it. NotFound for a gap."""
        paths = []
        for chain_id in reversed(chain_ids):
            layer = self._layer(chain_id)
            paths.append(str(self._directory / str(layer.directory)))
            if layer.opaque:
                break
        return tuple(paths)

    def root_path(self, chain_ids: Sequence[str]) -> str | None:
        """Directory of the topmost layer that states mode and owner of "/", None when no layer does."""
        for chain_id in reversed(chain_ids):
            layer = self._layer(chain_id)
            if layer.root_given:
                return str(self._directory / str(layer.directory))
        return None

    def usage(self) -> FilesystemUsage:
        """Running totals of the unpacked layers; nothing is walked."""
        layers = list(self._layers.values())
        used, inodes = sum(layer.bytes for layer in layers), sum(layer.inodes for layer in layers)
        return FilesystemUsage(str(self._directory), used, inodes, time.time_ns())

    @asynccontextmanager
    async def leased(self, chain_ids: Sequence[str]) -> Any:
        """While it is open, none of the layers is freed."""
        await asyncio.to_thread(self._lease, chain_ids)
        try:
            yield
        finally:
            # never long: what the lock is held for is one commit
            with self._lock:
                self._leases.subtract(chain_ids)
                self._leases += Counter()  # drops what is zero

    async def ensure(
        self, chain_id: str, diff_id: str, below: Sequence[str], fetch: Callable[[], Awaitable[Path]]
    ) -> None:
        """Have the layer unpacked; `fetch` brings the path of its blob. InvalidSpec for a wrong diff id.

        below: chain ids of the layers below, the lowest first; a layer that says nothing of a directory on the way to
        its files waits for them. The caller holds a lease of all, and ensures them in the same group of tasks.
        """
        lock = self._unpacking.setdefault(chain_id, asyncio.Lock())
        async with lock:
            if chain_id not in self._layers:
                await self._unpack(chain_id, diff_id, below, await fetch())
        async with self._arrival:
            self._arrival.notify_all()

    def free_unused(self, older_than_ns: int = 0) -> None:
        """Remove the layers that no image, no container and no running pull uses. Blocking."""
        with self._lock:
            keep = frozenset(self._leases)
            unused = self._table.drop_unused_layers(keep, time.time_ns() - older_than_ns)
            for layer in unused:
                self._layers.pop(layer.chain_id, None)
            self._stale |= {self._directory / str(layer.directory) for layer in unused}
            stale, self._stale = self._stale, set()
        for path in stale:
            try:
                remove_tree(path)
            except OSError:
                self._stale.add(path)  # tried again with the next image that goes, and when the store is opened

    def names(self) -> frozenset[str]:
        """Of the directories that have a row or are being made."""
        return frozenset(str(layer.directory) for layer in list(self._layers.values())) | self._in_progress

    def unused_names(self) -> frozenset[str]:
        """Of the directories that nobody has used for a day. Blocking."""
        with self._lock:
            unused = self._table.unused_layers(time.time_ns() - UNUSED_LIFE_NS)
            return frozenset(str(layer.directory) for layer in unused if layer.chain_id not in self._leases)

    def free(self, name: str) -> None:
        """Remove a directory that nobody has used for a day or that no row knows; nothing for another. Blocking.

        OSError when it cannot be removed.
        """
        self.free_unused(older_than_ns=UNUSED_LIFE_NS)
        path = self._directory / name
        with self._lock:
            if name in self.names():
                return
            self._stale.discard(path)
        remove_tree(path)

    async def _unpack(self, chain_id: str, diff_id: str, below: Sequence[str], blob: Path) -> None:
        number = self._next
        self._next += 1
        made = self._directory / f"new-{number}"
        self._in_progress |= {made.name, str(number)}
        try:
            try:
                reply = await self._fill(made, below, blob, diff_id)
            except BaseException:
                self._stale.add(made)
                await asyncio.to_thread(_remove_quietly, made)
                raise
            layer = Layer(chain_id, number, reply["bytes"], reply["inodes"], reply["root_opaque"], reply["root_given"])
            await _finished(asyncio.get_running_loop().run_in_executor(None, self._commit, made, layer))
        finally:
            self._in_progress -= {made.name, str(number)}

    async def _fill(self, made: Path, below: Sequence[str], blob: Path, diff_id: str) -> dict[str, Any]:
        """Make the directory and have the blob unpacked into it; the role's reply."""
        with ExitStack() as stack:
            with own_files(made):
                made.mkdir(mode=0o755)
                blob_fd = _opened(stack, blob, 0)
                directory_fd = _opened(stack, made, os.O_DIRECTORY)
                os.fchmod(directory_fd, 0o755)
                names = stack.enter_context(TemporaryFile(dir=self._directory))
            async with self._slots:
                reply = await self._unpacker.unpack(self._request(), [blob_fd, directory_fd, names.fileno()])
            _check_reply(reply)
            if reply["diff_id"] != diff_id:
                raise InvalidSpec(
                    f"a layer unpacks to {reply['diff_id']}, but the image's configuration says {diff_id}"
                )
            if reply["implied"] and below and not reply["root_opaque"]:
                await self._adopt_parents(below, [directory_fd, names.fileno()])
            return reply

    async def _adopt_parents(self, below: Sequence[str], fds: list[int]) -> None:
        async with self._arrival:  # without a slot: the layers below may wait for one
            await self._arrival.wait_for(lambda: all(chain_id in self._layers for chain_id in below))
        lowers = [os.fsencode(path) for path in self.paths(below)]
        async with self._slots:
            _check_reply(await self._unpacker.adopt_parents({"lowers": lowers}, fds))

    def _request(self) -> dict[str, Any]:
        wheels = sorted({str(Path(path).parent) for name in ("isal", "zstandard") if (path := _package(name))})
        return {
            "max_bytes": self.limits.max_bytes,
            "max_entries": self.limits.max_entries,
            "module_paths": wheels,
        }

    def _commit(self, made: Path, layer: Layer) -> None:
        """Write the directory to the disk, name it and record it; it is removed when that fails."""
        place = self._directory / str(layer.directory)
        try:
            with own_files(place):
                _sync(made, syncfs)
                made.rename(place)
                _sync(self._directory, os.fsync)
            with self._lock:
                self._table.put_layer(layer)
                self._layers[layer.chain_id] = layer
        except BaseException:
            with self._lock:
                self._stale |= {made, place}
            for path in (made, place):
                _remove_quietly(path)
            raise

    def _layer(self, chain_id: str) -> Layer:
        layer = self._layers.get(chain_id)
        if layer is None:
            raise NotFound(f"layer {chain_id} is not in the store")
        return layer

    def _lease(self, chain_ids: Sequence[str]) -> None:
        with self._lock:
            self._leases.update(chain_ids)

    def _clean(self) -> None:
        """After a crash: rows without a directory, directories without a row, old layers of pulls never finished."""
        for layer in list(self._layers.values()):
            if not (self._directory / str(layer.directory)).is_dir():
                self._table.drop_layer(layer.chain_id)
                del self._layers[layer.chain_id]
        known = {str(layer.directory) for layer in self._layers.values()}
        self._stale = {path for path in self._directory.iterdir() if path.name not in known}
        self.free_unused(older_than_ns=UNUSED_LIFE_NS)


async def _finished(step: asyncio.Future[None]) -> None:
    """Wait for a step that is done whole or not at all; a cancellation counts when it has ended."""
    cancelled: asyncio.CancelledError | None = None
    while not step.done():
        try:
            await asyncio.wait([step])
        except asyncio.CancelledError as error:
            cancelled = error
    failure = step.exception()
    if cancelled is not None:
        raise cancelled
    if failure is not None:
        raise failure


def _sync(directory: Path, write: Callable[[int], None]) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        write(descriptor)
    finally:
        os.close(descriptor)


def _opened(stack: ExitStack, path: Path, flags: int) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    stack.callback(os.close, descriptor)
    return descriptor


def _check_reply(reply: dict[str, Any]) -> None:
    if "error" in reply:
        kind = getattr(errors, str(reply["kind"]), CrishimError)
        raise kind(str(reply["error"]))


def _package(name: str) -> str | None:
    """Directory of an installed package, without importing it."""
    for path in sys.path:
        candidate = Path(path) / name
        if (candidate / "__init__.py").is_file():
            return str(candidate)
    return None


def _remove_quietly(path: Path) -> None:
    try:
        remove_tree(path)
    except OSError:
        pass  # stays listed as stale
