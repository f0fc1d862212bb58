"""From a container to create to its spec: what the translation must know besides the request is gathered here.

Users and layers of the image, devices and files of the host, profiles of the node; whatever may hang is asked by a
child or a thread.
"""

from __future__ import annotations

import os
from dataclasses import replace

from crishim.cgroups.plan import plan as cgroup_plan
from crishim.errors import InvalidSpec, TimedOut
from crishim.images.store import ImageStore
from crishim.model.container import ContainerConfig, ContainerSecurity
from crishim.model.handler import Handler
from crishim.model.image import Image
from crishim.model.process import ContainerSpec, RootFs, SeccompFilter
from crishim.model.sandbox import PodLabels, Sandbox
from crishim.runtime.apparmor import AppArmorProfiles
from crishim.runtime.devices import host_devices
from crishim.runtime.edits import Edits, annotations_of
from crishim.runtime.executor import Executor
from crishim.runtime.helper import Helper
from crishim.runtime.places import Places
from crishim.runtime.profiles import SeccompProfiles
from crishim.runtime.sandboxes import hostname_of
from crishim.runtime.selinux import SELinux
from crishim.runtime.settings import Settings
from crishim.runtime.units import Units
from crishim.runtime.users import ImageUsers
from crishim.runtime.volumes import Volumes
from crishim.spec.capabilities import capability_sets, default_of
from crishim.spec.container import Surroundings, all_devices, container_spec
from crishim.spec.facts import HostDevice, PodFiles
from crishim.spec.process import check_listener, localhost_profile

#: name of the role that looks at host paths; `app/serve.py` gives it to the zygote
SOURCES_ROLE = "sources"
#: how long the sources of mounts may take to answer
_SOURCES_S = 2.0


class Translation:
    """Makes the specs of containers."""

    def __init__(
        self,
        *,
        settings: Settings,
        executor: Executor,
        images: ImageStore,
        users: ImageUsers,
        profiles: SeccompProfiles,
        apparmor: AppArmorProfiles,
        selinux: SELinux,
        units: Units,
        places: Places,
        helper: Helper,
    ) -> None:
        self._settings = settings
        self._executor = executor
        self._images = images
        self._users = users
        self._profiles = profiles
        self._apparmor = apparmor
        self._selinux = selinux
        self._units = units
        self._places = places
        self._helper = helper
        self._edits = Edits(settings)

    async def spec(
        self,
        container_id: str,
        config: ContainerConfig,
        sandbox: Sandbox,
        image: Image,
        rootfs: RootFs,
        volumes: Volumes,
    ) -> ContainerSpec:
        """What the pod's monitor will be told. InvalidSpec names the field that cannot be, Unsupported what we lack."""
        await self._check_sources(config)
        users = await self._users.of(image)
        whole_dev = all_devices(config, sandbox)
        around = Surroundings(
            image=image.config,
            users=users,
            node=self._settings.node,
            files=PodFiles(*(self._places.has_file(sandbox.id, name) for name in ("resolv.conf", "hostname", "hosts"))),
            hostname=hostname_of(sandbox),
            rootfs=rootfs,
            devices=await self._devices(config, whole_dev),
            localhost_filter=await self._localhost_filter(config.security, sandbox.handler),
            make_missing_sources=self._settings.make_missing_sources,
            rlimits=self._settings.rlimits,
            image_volumes={index: self._images.layer_paths(each) for index, each in volumes.images.items()},
            declared_volumes=volumes.mounts,
            directories=volumes.directories,
            cgroup_driver=self._settings.cgroup_driver,
        )
        spec = container_spec(container_id, config, sandbox, around)
        if config.security.selinux is not None and spec.mount_label is not None:
            self._selinux.require("linux.security_context", PodLabels(spec.process.label or "", spec.mount_label))
        if spec.process.apparmor_profile is not None:
            await self._helper.run(self._apparmor.require, spec.process.apparmor_profile)
        if self._edits.concern(config, sandbox):
            spec = await self._helper.run(self._edits.added_to, spec, config, sandbox)
        if spec.process.seccomp_listener is not None:
            spec = replace(spec, annotations=annotations_of(config, sandbox))
        if spec.hooks:
            spec = await self._helper.run(self._places.make_bundle, sandbox.id, spec)
        cgroup = spec.cgroup
        self._units.check(cgroup_plan(cgroup.path, cgroup.resources, cgroup.devices, self._executor.hierarchy))
        return spec

    async def _devices(self, config: ContainerConfig, whole_dev: bool) -> tuple[HostDevice, ...]:
        if not (whole_dev or config.devices):
            return ()
        return await self._helper.run(host_devices, config, whole_dev, self._settings.device_owner_is_user)

    async def _localhost_filter(self, security: ContainerSecurity, handler: Handler) -> SeccompFilter | None:
        path = localhost_profile(security, handler)
        if path is None:
            return None
        bounding = capability_sets(security, self._settings.node.capabilities, default_of(handler)).bounding
        found = await self._helper.run(self._profiles.compiled, path, bounding)
        check_listener(path, found, handler)
        return found

    async def _check_sources(self, config: ContainerConfig) -> None:
        """A source that leads nowhere is told now; a missing one is made at the start, or refused by configuration.

        One that does not answer is left to the start, which hangs alone and can be cancelled.
        """
        given = [
            (f"config.mounts[{index}].host_path", mount.host_path)
            for index, mount in enumerate(config.mounts)
            if mount.image is None and mount.host_path
        ]
        if not given:
            return
        try:
            found = await self._executor.run_role(
                SOURCES_ROLE, {"paths": [os.fsencode(path) for _, path in given]}, timeout_s=_SOURCES_S
            )
        except TimedOut:
            return
        astray, missing = found["astray"], found["missing"]
        assert isinstance(astray, list) and isinstance(missing, list)
        for index in astray:
            field, path = given[index]
            raise InvalidSpec(f"{field}: {path!r} is a link that leads nowhere")
        if missing and not self._settings.make_missing_sources:
            field, path = given[missing[0]]
            raise InvalidSpec(f"{field}: {path!r} does not exist")
