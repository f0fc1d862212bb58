"""How each kind of thing is freed: by the code that removals use, one way for each kind.

An attempt ends within its deadline. Before it, the caller has made sure once more that the owner does not live.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path

from crishim.errors import Unavailable
from crishim.images.store import ImageStore
from crishim.model.leftover import Finding, LeftoverKind
from crishim.network.door import Network
from crishim.runtime.answers import end_listener, end_monitor, until_gone
from crishim.runtime.helper import Helper
from crishim.runtime.live import Live
from crishim.runtime.places import Places
from crishim.runtime.removal import Removal
from crishim.runtime.settings import Settings
from crishim.runtime.take_back import TakeBack
from crishim.store.durable import DurableStore


class Freeing:
    """Frees one thing at a time; what fails raises CrishimError or OSError with a sentence."""

    def __init__(
        self,
        *,
        settings: Settings,
        durable: DurableStore,
        network: Network,
        images: ImageStore,
        live: Live,
        places: Places,
        removal: Removal,
        take_back: TakeBack,
        helper: Helper,
        live_ids: Callable[[], Iterable[str]],
    ) -> None:
        """live_ids: sandboxes whose network stays."""
        self._settings = settings
        self._durable = durable
        self._network = network
        self._images = images
        self._live = live
        self._places = places
        self._removal = removal
        self._take_back = take_back
        self._helper = helper
        self._live_ids = live_ids
        self._ways: dict[LeftoverKind, Callable[[Finding], Awaitable[object]]] = {
            LeftoverKind.PROCESS: self._end_process,
            LeftoverKind.MOUNT: lambda found: removal.detach_mounts(found.name),
            LeftoverKind.SANDBOX: self._undo_reservation,
            LeftoverKind.CGROUP: lambda found: removal.end_cgroup(found.owner, found.name),
            LeftoverKind.NETWORK: self._detach,
            LeftoverKind.NETNS: lambda found: removal.remove_pin(found.name),
            LeftoverKind.SOCKET: self._remove_socket,
            LeftoverKind.CONTAINER_FILES: self._remove_files,
            LeftoverKind.SANDBOX_DIRECTORY: self._remove_directory,
            LeftoverKind.ROOTFS: lambda found: images.rootfs.release(Path(found.name).name),
            LeftoverKind.FILTER: self._remove_filter,
            LeftoverKind.LAYER: lambda found: images.free_layer(found.name),
            LeftoverKind.BLOB: lambda found: images.free_blob(Path(found.name).name),
            LeftoverKind.SPOOL: self._remove_spool,
        }

    async def free(self, finding: Finding) -> None:
        """It is gone at return, or was already."""
        await self._ways[finding.kind](finding)

    async def _end_process(self, found: Finding) -> None:
        """The containers of a monitor first, which nobody would reap, then itself, through a pidfd."""
        for path in found.cgroups:
            await self._removal.end_cgroup(found.name, path)
        try:
            pidfd = os.pidfd_open(found.pid)
        except ProcessLookupError:
            return
        try:
            if _started_ticks(found.pid) != found.started_ticks:  # the number means another process now
                return
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            async with asyncio.timeout(self._settings.kill_wait_s):
                await until_gone(pidfd)
        except ProcessLookupError:
            return
        except TimeoutError:
            raise Unavailable(f"{found.name} was killed but does not die") from None
        finally:
            os.close(pidfd)

    async def _undo_reservation(self, found: Finding) -> None:
        for reservation in await self._durable.sandbox_reservations():
            if reservation.id == found.owner:
                await self._take_back.undo(reservation)

    async def _detach(self, found: Finding) -> None:
        deadline_s = self._settings.network_deadline_s
        if found.owner:
            await self._network.detach(found.owner, None, deadline_s=deadline_s)
            return
        # the network is made as its records say
        await self._network.reconcile(self._live_ids(), deadline_s=deadline_s)
        for each in await self._network.survey(deadline_s=deadline_s):
            if not each.sandbox_id and found.name == f"{each.kind} {each.name}":
                raise Unavailable(f"{found.name} is still there after the network was made anew")

    async def _remove_socket(self, found: Finding) -> None:
        await end_listener(self._places.sandbox(found.sandbox_id))
        with suppress(FileNotFoundError):
            os.unlink(found.name)

    async def _remove_files(self, found: Finding) -> None:
        self._places.remove_container(found.sandbox_id, found.owner)

    async def _remove_directory(self, found: Finding) -> None:
        monitor = self._live.find_monitor(found.owner)
        if monitor is not None:
            await end_monitor(monitor)
            self._live.drop_monitor(found.owner)
        else:
            await end_listener(self._places.sandbox(found.owner))
        await self._helper.run(self._places.remove_sandbox, found.owner)

    async def _remove_filter(self, found: Finding) -> None:
        self._places.remove_filter(found.name)

    async def _remove_spool(self, found: Finding) -> None:
        path = Path(found.name)
        if path.parent == Path("images/spool"):
            await self._images.free_spool(path.name)
        else:
            with suppress(FileNotFoundError):
                await self._helper.run(os.unlink, Path(self._settings.root_dir) / path)


def _started_ticks(pid: int) -> int:
    """When the process was started, in clock ticks since boot (proc_pid_stat(5)); 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    return int(text[text.rindex(b")") + 2 :].split()[19])
