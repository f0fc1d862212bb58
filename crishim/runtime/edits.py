"""What the node's administrator adds to containers: CDI devices that they name, hooks of hook directories. Blocking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from crishim.executor.client import check_hooks
from crishim.model.container import ContainerConfig
from crishim.model.process import ContainerSpec
from crishim.model.sandbox import Sandbox
from crishim.runtime.cdi import CdiDevices, annotated_devices, host_node
from crishim.runtime.hook_dirs import HookDirectories
from crishim.runtime.settings import Settings
from crishim.spec.cdi import edited


class Edits:
    """The additions of one node, by its settings, whose directories may change."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._devices = CdiDevices(settings.cdi_dirs)
        self._hooks = HookDirectories(settings.hook_dirs)

    def concern(self, config: ContainerConfig, sandbox: Sandbox) -> bool:
        """Whether there can be something to add to a container: most have nothing, and pay nothing."""
        return bool(self._settings.hook_dirs or self._names(config, sandbox))

    def added_to(self, spec: ContainerSpec, config: ContainerConfig, sandbox: Sandbox) -> ContainerSpec:
        """The container with its additions; when hooks are among them, with the annotations that they are told.

        InvalidSpec names a CDI device that cannot be had.
        """
        names = self._names(config, sandbox)
        if names:
            if self._devices.directories != self._settings.cdi_dirs:
                self._devices = CdiDevices(self._settings.cdi_dirs)
            spec = edited(spec, self._devices.edits_of(names), host_node)
        annotations = annotations_of(config, sandbox)
        if self._settings.hook_dirs:
            if self._hooks.directories != self._settings.hook_dirs:
                self._hooks = HookDirectories(self._settings.hook_dirs)
            hooks = self._hooks.hooks_of(annotations, spec.process.args[0], bool(config.mounts))
            spec = replace(spec, hooks=spec.hooks + hooks)
        if not spec.hooks:
            return spec
        check_hooks(spec.hooks)
        return replace(spec, annotations=annotations)

    def _names(self, config: ContainerConfig, sandbox: Sandbox) -> tuple[str, ...]:
        """Annotations come from whoever may create pods: they count when the runtime handler allows their names."""
        allowed = {key: value for key, value in config.annotations.items() if sandbox.handler.allows(key)}
        return tuple(dict.fromkeys((*config.cdi_devices, *annotated_devices(allowed))))


def annotations_of(config: ContainerConfig, sandbox: Sandbox) -> Mapping[str, str]:
    """What hooks are told: annotations of pod and container, and who they are by the names that containerd uses."""
    return {
        **sandbox.config.annotations,
        **config.annotations,
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.container-name": config.name,
        "io.kubernetes.cri.sandbox-id": sandbox.id,
        "io.kubernetes.cri.sandbox-name": sandbox.config.name,
        "io.kubernetes.cri.sandbox-namespace": sandbox.config.namespace,
        "io.kubernetes.cri.sandbox-uid": sandbox.config.uid,
    }
