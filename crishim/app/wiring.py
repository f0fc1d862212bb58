"""The rooms of one server, made in the order in which they need each other, started and stopped."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress

import crishim
from crishim.app.cgroups import Cgroups
from crishim.app.image_store import open_image_store
from crishim.app.metrics import Metrics
from crishim.app.newer import refuse_newer
from crishim.app.reload import Reload
from crishim.app.settings import settings_of
from crishim.cgroups import effects
from crishim.config import Config
from crishim.cri.interceptors import Guard
from crishim.cri.listing import Listing
from crishim.cri.runtime_service import services
from crishim.cri.server import Server as GrpcServer
from crishim.errors import CrishimError, Unavailable
from crishim.executor.client import Executor
from crishim.metrics.containers import ContainerMetrics
from crishim.metrics.node import NodeMetrics
from crishim.metrics.server import MetricsServer
from crishim.model.container import Container
from crishim.model.image import Image
from crishim.model.sandbox import Sandbox
from crishim.network.bridge import BridgeNetwork
from crishim.network.cni.network import CniNetwork
from crishim.network.door import Network
from crishim.runtime.apparmor import AppArmorProfiles
from crishim.runtime.collector import Collector
from crishim.runtime.containers import Containers
from crishim.runtime.events import Events
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
from crishim.runtime.sessions import Sessions
from crishim.runtime.settings import Settings
from crishim.runtime.stopping import Stopping
from crishim.runtime.story import Stories
from crishim.runtime.take_back import TakeBack
from crishim.runtime.translation import Translation
from crishim.runtime.units import Units
from crishim.runtime.unwatched import Unwatched
from crishim.runtime.user_namespaces import why_no_user_namespaces
from crishim.runtime.users import ImageUsers
from crishim.spec.capabilities import DEFAULT
from crishim.spec.seccomp import runtime_default
from crishim.store.boot import current_boot_id
from crishim.store.durable import DurableStore
from crishim.store.store import Kind, Store
from crishim.streaming.server import StreamingServer

logger = logging.getLogger(__name__)

#: calls that are under way when the server is told to stop have this long
_CALLS_S = 3.0
_OPERATIONS_S = 5.0


class Server:
    """One server. `start` returns when it answers every call, `stop` leaves the pods running."""

    def __init__(self, config: Config, cgroups: Cgroups, executor: Executor) -> None:
        """Makes the rooms; Unavailable and Unsupported say in a sentence why it cannot be."""
        self._config = config
        self._executor = executor
        self._starting: str | None = "the server is starting: it looks for the pods that run"
        self.metrics_address = ""
        state, root = config.server.state, config.server.root
        self._boot_id = current_boot_id()
        self._store = Store(state, self._boot_id)
        self._places = Places(state)
        self._found = self._store.load()
        refuse_newer(self._found, self._store, self._places)  # before anything is written
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._apparmor = AppArmorProfiles(config.server.apparmor_profile, root / "apparmor")
        self._apparmor.prepare()
        if self._apparmor.problem:
            logger.warning("containers that name no AppArmor profile are unconfined: %s", self._apparmor.problem)
        self._cgroups = cgroups
        self._settings = self._translate(config)
        if self._settings.node.selinux:
            logger.warning("SELinux is enabled, but selinux_options and selinux_relabel are not applied")
        self._units = Units(cgroups.systemd, executor)
        self._durable = DurableStore(root)
        self._network = _network(config)
        self._images = open_image_store(root, config.images, executor)
        self._reload = Reload(
            config,
            self._settings,
            self._translate,
            self._images,
            self._network,
            lambda interval_s: self._garbage.configure(interval_s),
        )
        self._reloading = asyncio.Lock()
        self._helper = Helper()
        self._operations = Operations()
        self._live = Live()
        self._listing = Listing()
        self._events = Events(self._store)

    def _translate(self, config: Config) -> Settings:
        return settings_of(config, self._cgroups, self._executor, self._apparmor)

    async def start(self) -> None:
        """Listen at once, answer when recovery is done."""
        self._observe()
        self._make_use_cases()
        guard = Guard(self._node_metrics.rpc_ended, lambda: self._starting)
        self._grpc = GrpcServer(
            self._config.server.listen,
            services(
                sandboxes=self._sandboxes,
                containers=self._containers,
                execs=self._execs,
                stats=self._collector,
                events=self._events,
                images=self._image_cases,
                stories=self._stories,
                garbage=self._garbage,
                monitors=Monitors(self._live, self._helper),
                node=self._node,
                listing=self._listing,
                guard=guard,
                version=crishim.__version__,
                streaming=self._sessions,
            ),
        )
        try:
            await self._grpc.start()
        except OSError as error:
            raise Unavailable(f"cannot listen on {self._config.server.listen}: {error}") from error
        self._executor.on_zygote_lost = lambda: logger.error("the zygote died, and its execs with it; a new one starts")
        await self._executor.open()
        self._settings.no_user_namespaces = await why_no_user_namespaces(
            self._executor, self._settings.root_dir, self._settings.state_dir
        )
        await self._network.open()
        await self._recovery.run(self._found)
        self._fill_listing()
        await self._helper.run(runtime_default, DEFAULT, self._settings.node.kernel, self._settings.node.machine)
        await self._serve_metrics()
        await self._serve_streams()
        self._operations.spawn(self._garbage.run(), "checks for leftovers")
        self._starting = None

    def reload_later(self, reread: Callable[[], Config]) -> None:
        """Take over the configuration that `reread` (blocking) brings; a wrong one changes nothing, and is logged."""
        with suppress(Unavailable):  # the server is stopping
            self._operations.spawn(self._take_over(reread), "configuration")

    async def _take_over(self, reread: Callable[[], Config]) -> None:
        async with self._reloading:  # in the order of the signals
            try:
                self._reload.apply(await self._helper.run(reread))
            except CrishimError as error:
                logger.error("the configuration stays as it was: %s", error)

    async def stop(self) -> None:
        """End the server; what it started goes on."""
        self._starting = "the server is stopping"
        self._events.close()
        if hasattr(self, "_metrics_server"):
            await self._metrics_server.stop()  # first: a page that is asked for begins to read usage
        if hasattr(self, "_grpc"):
            await self._grpc.stop(_CALLS_S)
        if hasattr(self, "_streaming"):
            await self._streaming.stop()
        await self._operations.close(_OPERATIONS_S)
        idle = not self._live.monitors()
        self._live.close()
        await self._executor.close()
        if idle:
            await self._remove_cgroup_root()
        if isinstance(self._network, BridgeNetwork) and not self._store.list_sandboxes():
            await self._network.teardown()  # nobody uses it, and the next start makes it anew
        await self._network.close()
        self._images.close()
        await self._durable.close()
        self._units.close()
        self._helper.close()

    async def _remove_cgroup_root(self) -> None:
        """No pod is left. A slice around ours that nobody else is in goes as well; one with processes stays."""
        root = self._settings.cgroup_root
        try:
            while await self._units.stop(root) and root.count("/") > 1 and not self._config.cgroups.parent:
                root = root.rpartition("/")[0]
        except Unavailable as error:
            logger.warning("the slice %s stays: %s", root, error)
        await self._helper.run(effects.remove, self._executor.hierarchy, self._settings.cgroup_root, tries=4)

    # -- rooms that follow the store

    def _observe(self) -> None:
        self._node_metrics = NodeMetrics(
            crishim.__version__, self._operations.in_flight, lambda: self._garbage.counts()
        )
        self._metrics = Metrics(self._node_metrics, ContainerMetrics(self._store))

    def _fill_listing(self) -> None:
        for sandbox in self._store.list_sandboxes():
            self._listing.upsert_sandbox(sandbox)
        for container in self._store.list_containers():
            self._listing.upsert_container(container)
        self._listing.upsert_images(self._images.list())
        self._store.subscribe(self._changed)
        self._store.subscribe(self._events.changed)  # after the listing, so that a list shows what an event told

    def _changed(self, kind: Kind, old: Sandbox | Container | None, new: Sandbox | Container | None) -> None:
        if isinstance(new, Sandbox):
            self._listing.upsert_sandbox(new)
        elif isinstance(new, Container):
            self._listing.upsert_container(new)
        elif old is not None and kind is Kind.SANDBOX:
            self._listing.remove_sandbox(old.id)
            self._collector.forget(old.id)
        elif old is not None:
            self._listing.remove_container(old.id)
            self._collector.forget(old.id)
            self._layers.forget(old.id)

    def _image_removed(self, image_id: str) -> None:
        self._listing.remove_image(image_id)

    def _image_added(self, image: Image) -> None:
        """A tag may have moved from another image, so all entries are made anew."""
        self._listing.upsert_images(self._images.list())

    async def _serve_metrics(self) -> None:
        address = self._config.server.metrics
        if address is None:
            return
        loop = asyncio.get_running_loop()

        def render() -> bytes:
            loop.call_soon_threadsafe(self._collector.ask)
            return self._metrics.render()

        self._metrics_server = MetricsServer(render, lambda: self._starting)
        try:
            await self._metrics_server.start(address.host, address.port)
        except OSError as error:
            raise Unavailable(f"server.metrics: cannot listen on {address.host}:{address.port}: {error}") from error
        host = f"[{address.host}]" if ":" in address.host else address.host
        self.metrics_address = f"{host}:{self._metrics_server.port}"

    async def _serve_streams(self) -> None:
        streaming = self._config.streaming
        if streaming.listen is None:
            return
        tls = None
        if streaming.cert_file is not None and streaming.key_file is not None:
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            try:
                tls.load_cert_chain(streaming.cert_file, streaming.key_file)
            except OSError as error:  # ssl.SSLError is one
                raise Unavailable(f"streaming: {streaming.cert_file} and {streaming.key_file}: {error}") from error
        self._streaming = StreamingServer(self._sessions, tls=tls, spool_dir=self._config.server.root)
        host, port = streaming.listen.host, streaming.listen.port
        try:
            await self._streaming.start(host, port)
        except OSError as error:
            raise Unavailable(f"streaming.listen: cannot listen on {host}:{port}: {error}") from error

    # -- use cases

    def _make_use_cases(self) -> None:
        settings, store, live, places = self._settings, self._store, self._live, self._places
        operations, helper, executor = self._operations, self._helper, self._executor
        hierarchy, rootfs, locks = executor.hierarchy, self._images.rootfs, Locks()
        exits = Exits(store, live, places, hierarchy, operations, helper, self._metrics)
        stopping = Stopping(store, live, exits, hierarchy, operations, helper, locks, settings)
        removal = Removal(
            store, live, places, executor, rootfs, operations, helper, stopping, self._units, settings.kill_wait_s
        )
        exits.on_unwatched_end = removal.run_poststop
        unwatched = Unwatched(store, live, exits, hierarchy, helper)
        self._make_garbage(removal, unwatched)
        self._sandboxes = Sandboxes(
            settings=settings,
            store=store,
            durable=self._durable,
            boot_id=self._boot_id,
            executor=executor,
            network=self._network,
            operations=operations,
            live=live,
            places=places,
            exits=exits,
            stopping=stopping,
            removal=removal,
            helper=helper,
        )
        translation = Translation(
            settings=settings,
            executor=executor,
            images=self._images,
            users=ImageUsers(executor, self._images),
            profiles=SeccompProfiles(settings),
            apparmor=self._apparmor,
            units=self._units,
            places=places,
            helper=helper,
        )
        self._containers = Containers(
            settings=settings,
            store=store,
            executor=executor,
            images=self._images,
            translation=translation,
            units=self._units,
            operations=operations,
            live=live,
            places=places,
            exits=exits,
            stopping=stopping,
            removal=removal,
            helper=helper,
            observer=self._metrics,
            locks=locks,
        )
        self._execs = Execs(settings, store, live, executor, operations, helper, self._metrics)
        self._sessions = Sessions(store, live, executor, operations, helper, self._metrics)
        mountpoint = self._images.usage().mountpoint
        self._layers = WritableLayers(rootfs, executor, mountpoint)
        self._collector = Collector(store, live, hierarchy, operations, helper, self._layers, mountpoint)
        self._collector.on_sample = self._metrics.sampled
        self._image_cases = Images(self._images, operations, self._metrics)
        self._image_cases.on_added = self._image_added
        self._image_cases.on_removed = self._image_removed
        self._stories = Stories(store, places, operations, helper)
        self._node = Node(settings, self._network, operations, crishim.__version__, self._garbage.leftovers)
        self._recovery = Recovery(
            settings=settings,
            store=store,
            executor=executor,
            operations=operations,
            live=live,
            places=places,
            exits=exits,
            removal=removal,
            unwatched=unwatched,
            garbage=self._garbage,
            helper=helper,
        )

    def _make_garbage(self, removal: Removal, unwatched: Unwatched) -> None:
        settings, config = self._settings, self._config

        def freeing(live_ids: Callable[[], Iterable[str]]) -> Freeing:
            return Freeing(
                settings=settings,
                durable=self._durable,
                network=self._network,
                images=self._images,
                live=self._live,
                places=self._places,
                removal=removal,
                take_back=TakeBack(
                    settings=settings,
                    store=self._store,
                    durable=self._durable,
                    network=self._network,
                    live=self._live,
                    places=self._places,
                    removal=removal,
                    helper=self._helper,
                ),
                helper=self._helper,
                live_ids=live_ids,
            )

        self._garbage = Garbage(
            instance=Instance(
                cgroup_root=settings.cgroup_root,
                cgroup_driver=settings.cgroup_driver,
                network_mode=settings.network_mode,
                netns_prefix=settings.netns_prefix,
                state_dir=settings.state_dir,
                root_dir=settings.root_dir,
            ),
            interval_s=config.gc.interval_s,
            store=self._store,
            durable=self._durable,
            live=self._live,
            operations=self._operations,
            executor=self._executor,
            network=self._network,
            images=self._images,
            places=self._places,
            unwatched=unwatched,
            ledger=Ledger(config.server.state / "leftovers.json"),
            observer=self._metrics,
            freeing=freeing,
        )


def _network(config: Config) -> Network:
    root = config.server.root
    if config.network.mode == "bridge":
        subnets = [str(subnet) for subnet in config.network.bridge.subnets]
        return BridgeNetwork(config.instance, subnets, root / "network.db")
    cni = config.network.cni
    return CniNetwork(cni.conf_dir, cni.bin_dirs, root / "cni")
