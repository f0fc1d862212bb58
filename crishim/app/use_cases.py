"""The use cases of one server, made in the order in which they need each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import crishim
from crishim.app.metrics import Metrics
from crishim.cgroups.hierarchy import Hierarchy
from crishim.executor.client import Executor
from crishim.images.store import ImageStore
from crishim.network.door import Network
from crishim.runtime.apparmor import AppArmorProfiles
from crishim.runtime.collector import Collector
from crishim.runtime.containers import Containers
from crishim.runtime.execs import Execs
from crishim.runtime.exits import Exits
from crishim.runtime.garbage.collection import Garbage
from crishim.runtime.garbage.free import Freeing
from crishim.runtime.garbage.ledger import Ledger
from crishim.runtime.garbage.owners import Instance
from crishim.runtime.helper import Helper
from crishim.runtime.images import Images
from crishim.runtime.layers import WritableLayers
from crishim.runtime.live import Live
from crishim.runtime.monitors import Monitors
from crishim.runtime.node import Node
from crishim.runtime.operations import Locks, Operations
from crishim.runtime.places import Places
from crishim.runtime.profiles import SeccompProfiles
from crishim.runtime.recovery import Recovery
from crishim.runtime.removal import Removal
from crishim.runtime.sandboxes import Sandboxes
from crishim.runtime.selinux import SELinux
from crishim.runtime.sessions.use_cases import Sessions
from crishim.runtime.settings import Settings
from crishim.runtime.stopping import Stopping
from crishim.runtime.story import Stories
from crishim.runtime.take_back import TakeBack
from crishim.runtime.translation import Translation
from crishim.runtime.units import Units
from crishim.runtime.unwatched import Unwatched
from crishim.runtime.users import ImageUsers
from crishim.store.durable import DurableStore
from crishim.store.store import Store


@dataclass(frozen=True)
class Rooms:
    """What the use cases of a server work with."""

    settings: Settings
    gc_interval_s: float
    boot_id: str
    store: Store
    durable: DurableStore
    images: ImageStore
    network: Network
    executor: Executor
    apparmor: AppArmorProfiles
    selinux: SELinux
    units: Units
    places: Places
    live: Live
    operations: Operations
    helper: Helper
    metrics: Metrics

    @property
    def hierarchy(self) -> Hierarchy:
        """Of the node's cgroups."""
        return self.executor.hierarchy


class UseCases:
    """What is asked for through CRI and the control service, and what the server does by itself."""

    def __init__(self, rooms: Rooms) -> None:
        settings, store, live, places = rooms.settings, rooms.store, rooms.live, rooms.places
        operations, helper, executor = rooms.operations, rooms.helper, rooms.executor
        metrics, hierarchy, rootfs, locks = rooms.metrics, rooms.hierarchy, rooms.images.rootfs, Locks()
        mountpoint = rooms.images.usage().mountpoint
        exits = Exits(store, live, places, hierarchy, operations, helper, metrics)
        stopping = Stopping(store, live, exits, hierarchy, operations, helper, locks, settings)
        removal = Removal(
            store, live, places, executor, rootfs, operations, helper, stopping, rooms.units, settings.kill_wait_s
        )
        exits.on_unwatched_end = removal.run_poststop
        unwatched = Unwatched(store, live, exits, hierarchy, helper)
        self.garbage = _garbage(rooms, removal, unwatched)
        self.sandboxes = Sandboxes(
            settings=settings,
            store=store,
            durable=rooms.durable,
            boot_id=rooms.boot_id,
            executor=executor,
            network=rooms.network,
            operations=operations,
            live=live,
            places=places,
            exits=exits,
            stopping=stopping,
            removal=removal,
            selinux=rooms.selinux,
            helper=helper,
        )
        self.containers = Containers(
            settings=settings,
            store=store,
            executor=executor,
            images=rooms.images,
            translation=_translation(rooms),
            units=rooms.units,
            operations=operations,
            live=live,
            places=places,
            exits=exits,
            stopping=stopping,
            removal=removal,
            helper=helper,
            observer=metrics,
            locks=locks,
        )
        self.execs = Execs(settings, store, live, executor, operations, helper, metrics)
        self.sessions = Sessions(store, live, executor, operations, helper, metrics)
        self.layers = WritableLayers(rootfs, executor, mountpoint)
        self.collector = Collector(store, live, hierarchy, operations, helper, self.layers, mountpoint)
        self.collector.on_sample = metrics.sampled
        self.images = Images(rooms.images, operations, metrics)
        self.stories = Stories(store, places, operations, helper)
        self.monitors = Monitors(live, helper)
        self.node = Node(settings, rooms.network, operations, crishim.__version__, self.garbage.leftovers)
        self.recovery = Recovery(
            settings=settings,
            store=store,
            executor=executor,
            operations=operations,
            live=live,
            places=places,
            exits=exits,
            removal=removal,
            unwatched=unwatched,
            garbage=self.garbage,
            helper=helper,
        )


def _translation(rooms: Rooms) -> Translation:
    return Translation(
        settings=rooms.settings,
        executor=rooms.executor,
        images=rooms.images,
        users=ImageUsers(rooms.executor, rooms.images),
        profiles=SeccompProfiles(rooms.settings),
        apparmor=rooms.apparmor,
        selinux=rooms.selinux,
        units=rooms.units,
        places=rooms.places,
        helper=rooms.helper,
    )


def _garbage(rooms: Rooms, removal: Removal, unwatched: Unwatched) -> Garbage:
    settings = rooms.settings
    take_back = TakeBack(
        settings=settings,
        store=rooms.store,
        durable=rooms.durable,
        network=rooms.network,
        live=rooms.live,
        places=rooms.places,
        removal=removal,
        helper=rooms.helper,
    )

    def freeing(live_ids: Callable[[], Iterable[str]]) -> Freeing:
        return Freeing(
            settings=settings,
            durable=rooms.durable,
            network=rooms.network,
            images=rooms.images,
            live=rooms.live,
            places=rooms.places,
            removal=removal,
            take_back=take_back,
            helper=rooms.helper,
            live_ids=live_ids,
        )

    return Garbage(
        instance=Instance(
            cgroup_root=settings.cgroup_root,
            cgroup_driver=settings.cgroup_driver,
            network_mode=settings.network_mode,
            netns_prefix=settings.netns_prefix,
            state_dir=settings.state_dir,
            root_dir=settings.root_dir,
        ),
        interval_s=rooms.gc_interval_s,
        store=rooms.store,
        durable=rooms.durable,
        live=rooms.live,
        operations=rooms.operations,
        executor=rooms.executor,
        network=rooms.network,
        images=rooms.images,
        places=rooms.places,
        unwatched=unwatched,
        ledger=Ledger(Path(settings.state_dir) / "leftovers.json"),
        observer=rooms.metrics,
        freeing=freeing,
    )
