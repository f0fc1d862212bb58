"""One server: its rooms are made, started and stopped.

`use_cases.py` connects what answers calls; here is what it works with, and the order of start and end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

import crishim
from crishim.app.cgroups import Cgroups
from crishim.app.doors import open_metrics, open_streaming
from crishim.app.following import Followers
from crishim.app.image_store import open_image_store
from crishim.app.metrics import Metrics
from crishim.app.netns_directory import share_netns_directory
from crishim.app.newer import read_specs
from crishim.app.reload import Reload
from crishim.app.settings import settings_of
from crishim.app.use_cases import Rooms, UseCases
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
from crishim.network.bridge import BridgeNetwork
from crishim.network.cni.network import CniNetwork
from crishim.network.door import Network
from crishim.runtime.apparmor import AppArmorProfiles
from crishim.runtime.events import Events
from crishim.runtime.helper import Helper
from crishim.runtime.live import Live
from crishim.runtime.operations import Operations
from crishim.runtime.places import Places
from crishim.runtime.relabel import label_layers
from crishim.runtime.selinux import SELinux
from crishim.runtime.settings import Settings
from crishim.runtime.units import Units
from crishim.runtime.user_namespaces import why_no_user_namespaces
from crishim.spec.capabilities import DEFAULT
from crishim.spec.seccomp import runtime_default
from crishim.store.boot import current_boot_id
from crishim.store.durable import DurableStore
from crishim.store.store import Store
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
        self._specs = read_specs(self._found, self._store, self._places)  # before anything is written
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._apparmor = AppArmorProfiles(config.server.apparmor_profile, root / "apparmor")
        self._apparmor.prepare()
        if self._apparmor.problem:
            logger.warning("containers that name no AppArmor profile are unconfined: %s", self._apparmor.problem)
        self._selinux = SELinux(config.server.selinux)
        self._selinux.prepare()
        if self._selinux.problem:
            logger.warning("containers get no SELinux contexts: %s", self._selinux.problem)
        self._cgroups = cgroups
        self._settings = self._translate(config)
        self._units = Units(cgroups.systemd, executor)
        self._durable = DurableStore(root)
        self._network = _network(config)
        self._images = open_image_store(root, config.images, executor)
        self._helper = Helper()
        self._operations = Operations()
        self._live = Live()
        self._listing = Listing()
        self._events = Events(self._store)
        self._node_metrics = NodeMetrics(
            crishim.__version__, self._operations.in_flight, lambda: self._use_cases.garbage.counts()
        )
        self._metrics = Metrics(self._node_metrics, ContainerMetrics(self._store))
        self._use_cases = self._make_use_cases()
        self._reload = Reload(
            config,
            self._settings,
            self._translate,
            self._images,
            self._network,
            self._use_cases.garbage.configure,
        )
        self._reloading = asyncio.Lock()
        self._grpc: GrpcServer | None = None
        self._metrics_server: MetricsServer | None = None
        self._streaming: StreamingServer | None = None

    def _translate(self, config: Config) -> Settings:
        return settings_of(config, self._cgroups, self._executor, self._apparmor, self._selinux)

    async def start(self) -> None:
        """Listen at once, answer when recovery is done."""
        await self._listen()
        self._executor.on_zygote_lost = lambda: logger.error("the zygote died, and its execs with it; a new one starts")
        await self._executor.open()
        await self._label_layers()
        self._settings.no_user_namespaces = await why_no_user_namespaces(
            self._executor, self._settings.root_dir, self._settings.state_dir
        )
        if self._config.network.mode == "cni":
            share_netns_directory()
        await self._network.open()
        await self._use_cases.recovery.run(self._found, self._specs)
        followers = Followers(self._listing, self._events, self._use_cases.collector, self._use_cases.layers)
        followers.follow(self._store)
        followers.follow_images(self._images, self._use_cases.images)
        await self._helper.run(runtime_default, DEFAULT, self._settings.node.kernel, self._settings.node.machine)
        await self._serve_metrics()
        self._streaming = await open_streaming(
            self._config.streaming, self._use_cases.sessions, self._config.server.root
        )
        self._operations.spawn(self._use_cases.garbage.run(), "checks for leftovers")
        self._starting = None

    async def _label_layers(self) -> None:
        if not self._selinux.layers:
            return
        try:
            await label_layers(self._executor, str(self._config.server.root / "layers"), self._selinux.layers)
        except CrishimError as error:
            logger.error("containers may be unable to run their programs: %s", error)

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
        if self._metrics_server is not None:
            await self._metrics_server.stop()  # first: a page that is asked for begins to read usage
        if self._grpc is not None:
            await self._grpc.stop(_CALLS_S)
        if self._streaming is not None:
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

    # -- parts of the start

    def _make_use_cases(self) -> UseCases:
        return UseCases(
            Rooms(
                settings=self._settings,
                gc_interval_s=self._config.gc.interval_s,
                boot_id=self._boot_id,
                store=self._store,
                durable=self._durable,
                images=self._images,
                network=self._network,
                executor=self._executor,
                apparmor=self._apparmor,
                selinux=self._selinux,
                units=self._units,
                places=self._places,
                live=self._live,
                operations=self._operations,
                helper=self._helper,
                metrics=self._metrics,
            )
        )

    async def _listen(self) -> None:
        """Every call is answered from now on: with why it must wait, until the server has started."""
        cases = self._use_cases
        self._grpc = GrpcServer(
            self._config.server.listen,
            services(
                sandboxes=cases.sandboxes,
                containers=cases.containers,
                execs=cases.execs,
                stats=cases.collector,
                events=self._events,
                images=cases.images,
                stories=cases.stories,
                garbage=cases.garbage,
                monitors=cases.monitors,
                node=cases.node,
                listing=self._listing,
                guard=Guard(self._node_metrics.rpc_ended, lambda: self._starting),
                version=crishim.__version__,
                streaming=cases.sessions,
            ),
        )
        try:
            await self._grpc.start()
        except OSError as error:
            raise Unavailable(f"cannot listen on {self._config.server.listen}: {error}") from error

    async def _serve_metrics(self) -> None:
        address = self._config.server.metrics
        if address is None:
            return
        loop = asyncio.get_running_loop()

        def render() -> bytes:
            loop.call_soon_threadsafe(self._use_cases.collector.ask)
            return self._metrics.render()

        self._metrics_server = await open_metrics(address, render, lambda: self._starting)
        host = f"[{address.host}]" if ":" in address.host else address.host
        self.metrics_address = f"{host}:{self._metrics_server.port}"


def _network(config: Config) -> Network:
    root = config.server.root
    if config.network.mode == "bridge":
        subnets = [str(subnet) for subnet in config.network.bridge.subnets]
        return BridgeNetwork(config.instance, subnets, root / "network.db")
    cni = config.network.cni
    return CniNetwork(cni.conf_dir, cni.bin_dirs, root / "cni")
