"""Containers: create, start, reopen the log, change limits. Facts: api.proto CreateContainer and the calls after it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from crishim.cgroups import effects, stats
from crishim.cgroups.plan import plan as cgroup_plan
from crishim.errors import AlreadyExists, InvalidSpec, NotFound, StartFailed, Unavailable, WrongState
from crishim.images.store import ImageStore
from crishim.model.container import Container, ContainerConfig, ContainerState
from crishim.model.image import Image
from crishim.model.process import ContainerSpec
from crishim.model.resources import Resources
from crishim.model.sandbox import NamespaceMode, Sandbox, SandboxConfig, SandboxState
from crishim.runtime.answers import answered
from crishim.runtime.executor import Executor
from crishim.runtime.exits import Exits
from crishim.runtime.helper import Helper
from crishim.runtime.live import Live, LiveContainer
from crishim.runtime.observer import Observer
from crishim.runtime.operations import Locks, Operation, Operations
from crishim.runtime.places import Places
from crishim.runtime.relabel import relabel
from crishim.runtime.removal import Removal
from crishim.runtime.settings import Settings
from crishim.runtime.steps import reached
from crishim.runtime.stopping import Stopping
from crishim.runtime.translation import Translation
from crishim.runtime.undo import Undo
from crishim.runtime.units import Units
from crishim.runtime.verdict import outcome_of, start_failed
from crishim.runtime.volumes import (
    Volumes,
    check_sub_paths,
    make_volumes,
    reference_of,
    volume_images,
    with_digests,
)
from crishim.spec.cgroup import container_cgroup
from crishim.spec.container import check_namespaces, namespaces_of
from crishim.spec.process import arguments, reported_user
from crishim.spec.resources import changed, merged
from crishim.spec.stop_signal import stop_signal
from crishim.spec.volumes import declared_volumes
from crishim.store.records import ContainerReservation
from crishim.store.store import Store


class Containers:
    """The use cases of `cri.use_cases.Containers`."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        executor: Executor,
        images: ImageStore,
        translation: Translation,
        units: Units,
        operations: Operations,
        live: Live,
        places: Places,
        exits: Exits,
        stopping: Stopping,
        removal: Removal,
        helper: Helper,
        observer: Observer,
        locks: Locks,
    ) -> None:
        self._settings = settings
        self._store = store
        self._executor = executor
        self._images = images
        self._translation = translation
        self._units = units
        self._operations = operations
        self._live = live
        self._places = places
        self._exits = exits
        self._stopping = stopping
        self._removal = removal
        self._helper = helper
        self._observer = observer
        self._locks = locks

    # -- create

    async def create(self, sandbox_id: str, config: ContainerConfig, sandbox_config: SandboxConfig) -> str:
        """Id of a CREATED container: everything that can be known to be wrong is told now, and no process exists yet.

        The sandbox's configuration as RunPodSandbox brought it counts, not the copy sent here.
        """
        sandbox = self._store.resolve_sandbox(sandbox_id)
        return await self._operations.run(
            operation_key(sandbox.id, config),
            lambda operation: self._create(sandbox.id, config, operation),
            stage="create_container.reserved",
            request=config,
            still_valid=self.is_created,
        )

    def is_created(self, container_id: str) -> bool:
        """Whether the container exists and was not started."""
        with suppress(NotFound):
            return self._store.get_container(container_id).state is ContainerState.CREATED
        return False

    async def _create(self, sandbox_id: str, config: ContainerConfig, operation: Operation) -> str:
        sandbox = self._ready_sandbox(sandbox_id)
        taken = self._store.find_container((sandbox.id, config.name, config.attempt))
        if taken is not None:
            raise AlreadyExists(
                f"config.metadata: name {config.name!r} with attempt {config.attempt} is container {taken.id}"
            )
        check_namespaces(config, sandbox)
        image = self._images.resolve(config.image)
        arguments(config, image.config)
        volumes = Volumes(volume_images(config, self._images))
        container_id = secrets.token_hex(32)
        operation.concern(container_id)
        self._store.reserve_container(ContainerReservation(container_id, sandbox.id, config))
        reached("create_container.reserved")
        async with Undo() as undo:
            undo.push("the reservation", lambda: self._release(container_id))
            cgroup = container_cgroup(sandbox.cgroup_path, container_id, self._settings.cgroup_driver)
            undo.push("the root file system", lambda: self._removal.discard(sandbox.id, container_id, cgroup))
            operation.enter("create_container.rootfs")
            users = sandbox.config.security.namespaces.own_users
            rootfs = await self._images.rootfs.prepare(container_id, image, users, tuple(volumes.images.values()))
            await check_sub_paths(config, volumes.images, self._images, self._executor)  # their layers are held now
            if image.config.volumes:
                idmap = users is not None
                volumes = await self._with_declared(volumes, container_id, config, image, idmap=idmap)
            reached("create_container.rootfs")
            operation.enter("create_container.spec")
            spec = await self._translation.spec(container_id, config, sandbox, image, rootfs, volumes)
            self._places.write_spec(sandbox.id, spec)
            reached("create_container.spec")
            operation.enter("create_container.relabel")
            await relabel(self._executor, self._settings, spec, config, volumes)
            operation.enter("create_container.status")
            self._ready_sandbox(sandbox.id)  # it may have been stopped meanwhile
            self._store.put_container(_container(spec, with_digests(config, volumes.images), sandbox, image))
            undo.keep()
        reached("create_container.status")
        return container_id

    def _ready_sandbox(self, sandbox_id: str) -> Sandbox:
        sandbox = self._store.get_sandbox(sandbox_id)
        if sandbox.state is not SandboxState.READY:
            raise WrongState(f"sandbox {sandbox_id} is {sandbox.state.name}, not READY")
        return sandbox

    async def _release(self, container_id: str) -> None:
        self._store.release_container(container_id)

    async def _with_declared(
        self, volumes: Volumes, container_id: str, config: ContainerConfig, image: Image, *, idmap: bool
    ) -> Volumes:
        """The volumes with those that the container's own image declares, as the node is configured."""
        match self._settings.image_volumes:
            case "bind":
                mounts = await make_volumes(
                    container_id, config, image, self._images, self._executor, self._helper, idmap=idmap
                )
                return replace(volumes, mounts=mounts)
            case "mkdir":
                return replace(volumes, directories=declared_volumes(image.config.volumes, config.mounts))
            case _:
                return volumes

    # -- start

    async def start(self, container_id: str) -> None:
        """Returns when the user's program was executed; StartFailed tells why not, and so does the status."""
        container = self._store.resolve_container(container_id)
        await self._operations.run(
            ("StartContainer", container.id),
            lambda operation: self._start(container.id, operation),
            stage="start_container.started",
        )

    async def _start(self, container_id: str, operation: Operation) -> None:
        async with self._locks.of(container_id):
            container = self._store.get_container(container_id)
            if container.state is not ContainerState.CREATED:
                raise WrongState(f"container {container_id} is {container.state.name}, not CREATED")
            sandbox = self._ready_sandbox(container.sandbox_id)
            spec = self.spec_of(container)
            monitor = self._live.monitor(sandbox.id)
            try:
                async with self._units.started(spec):
                    started = await monitor.start_container(spec, pid_target=self._pid_target(container, sandbox))
            except (StartFailed, InvalidSpec) as error:
                self._exits.apply(start_failed(container_id, time.time_ns(), str(error)))
                self._observer.process_start_failed("init", outcome_of(str(error)))
                raise
            reached("start_container.started")
            operation.enter("start_container.status")
            self._observer.process_started("init", started.phases)
            self._exits.started(LiveContainer(sandbox.id, spec, started.pid, started.pidfd), started.started_at_ns)
            reached("start_container.status")

    def spec_of(self, container: Container) -> ContainerSpec:
        """The spec as it was made, with the limits in force now."""
        spec = self._places.read_spec(container.sandbox_id, container.id)
        if spec.cgroup.resources == container.resources:
            return spec
        return replace(spec, cgroup=replace(spec.cgroup, resources=container.resources))

    def _pid_target(self, container: Container, sandbox: Sandbox) -> str | None:
        """Whose PID namespace the init joins: "pod", a container's id, or nobody's."""
        options = namespaces_of(container.config, sandbox)
        if options.pid is NamespaceMode.POD:
            return "pod"
        if options.pid is not NamespaceMode.TARGET:
            return None
        target = self._store.resolve_container(options.target_id)
        if target.sandbox_id != sandbox.id or target.state is not ContainerState.RUNNING:
            raise WrongState(
                f"linux.security_context.namespace_options.target_id: container {target.id} does not run in sandbox"
                f" {sandbox.id}"
            )
        return target.id

    # -- stop and remove

    async def stop(self, container_id: str, grace_s: int) -> None:
        """Returns when EXITED is recorded; nothing to do when unknown or exited."""
        with suppress(NotFound):
            await self._stopping.stop(self._store.resolve_container(container_id).id, grace_s)

    async def remove(self, container_id: str) -> None:
        """Kills first; nothing to do when it is unknown."""
        with suppress(NotFound):
            await self._removal.remove(self._store.resolve_container(container_id).id)

    # -- the rest

    async def get(self, container_id: str) -> Container:
        """By id or unique prefix; NotFound when unknown."""
        return self._store.resolve_container(container_id)

    async def reopen_log(self, container_id: str) -> None:
        """The log was renamed: a new file exists at return. WrongState when it does not run."""
        container = self._store.resolve_container(container_id)
        running = self._live.running(container.id)
        try:
            await answered(running.sandbox_id, self._live.monitor(running.sandbox_id).reopen_log(container.id))
        except StartFailed as error:
            raise WrongState(f"the log of container {container.id} cannot be reopened: {error}") from None

    async def update_resources(self, container_id: str, resources: Resources, annotations: Mapping[str, str]) -> None:
        """All or nothing; what is None or empty in `resources` stays as it is."""
        container = self._store.resolve_container(container_id)
        async with self._locks.of(container.id):
            await self._update(self._store.get_container(container.id), resources)

    async def _update(self, container: Container, resources: Resources) -> None:
        limits = merged(container.resources, resources)
        planned = cgroup_plan(container.cgroup_path, changed(limits, resources), None, self._executor.hierarchy)
        undo: list[tuple[bytes, bytes]] = []
        if self._live.find(container.id) is not None:
            await self._helper.run(self._check_usage, container, resources)
            try:
                undo = await self._helper.run(effects.apply, self._executor.hierarchy, planned)
            except OSError as error:
                raise WrongState(f"the limits of container {container.id} cannot be changed: {error}") from error
        try:
            if undo:
                await self._units.update(planned)
            reached("update_container.applied")
            self._store.update_container(container.id, lambda old: replace(old, resources=limits))
        except BaseException:
            await self._take_back(container, resources, undo)
            raise
        reached("update_container.status")

    async def _take_back(self, container: Container, resources: Resources, undo: list[tuple[bytes, bytes]]) -> None:
        """Set the limits that `resources` changed to what they were."""
        await self._helper.run(effects.revert, undo)
        if undo:
            before = changed(container.resources, resources)
            with suppress(Unavailable):  # a manager that is away was not told of the new ones either
                await self._units.update(cgroup_plan(container.cgroup_path, before, None, self._executor.hierarchy))

    def _check_usage(self, container: Container, resources: Resources) -> None:
        """A memory limit below what is in use would kill instead of limit."""
        limit = resources.memory_limit_bytes
        if limit is None or limit < 0:
            return
        used = stats.read(self._executor.hierarchy, container.cgroup_path).usage_bytes
        if used is not None and limit < used:
            raise WrongState(
                f"linux.memory_limit_in_bytes: {limit} is less than the {used} bytes that container {container.id} uses"
            )


def operation_key(sandbox_id: str, config: ContainerConfig) -> tuple[str, str, str, int]:
    """Key of the creation of this identity."""
    return ("CreateContainer", sandbox_id, config.name, config.attempt)


def _container(spec: ContainerSpec, config: ContainerConfig, sandbox: Sandbox, image: Image) -> Container:
    log_path = ""
    if spec.log is not None:
        log_path = str(Path(spec.log.directory) / spec.log.path)
    return Container(
        id=spec.id,
        sandbox_id=sandbox.id,
        config=config,
        state=ContainerState.CREATED,
        created_at_ns=time.time_ns(),
        image_id=image.id,
        image_ref=reference_of(image),
        image_name=image.repo_tags[0] if image.repo_tags else config.user_specified_image or config.image,
        user=reported_user(spec.process.user),
        log_path=log_path,
        stop_signal=stop_signal(config.stop_signal, image.config.stop_signal),
        cgroup_path=spec.cgroup.path,
        # of the score what is in force, which a handler may have raised
        resources=replace(spec.cgroup.resources, oom_score_adj=spec.process.oom_score_adj),
    )
