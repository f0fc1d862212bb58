"""What a device of the Container Device Interface changes in a container (CDI specification, containerEdits)."""

from __future__ import annotations

from dataclasses import dataclass

from crishim.model.hook import Hooks
from crishim.model.process import IntelRdt


@dataclass(frozen=True, slots=True)
class CdiNode:
    """A device node: what of it the document leaves open is that of `host_path`. kind is "c" or "b"."""

    path: str
    host_path: str
    kind: str | None = None
    major: int | None = None
    minor: int | None = None
    file_mode: int | None = None
    permissions: str = "rwm"
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class CdiMount:
    """A bind mount: options are those of mount(8) and OCI."""

    host_path: str
    container_path: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerEdits:
    """The changes of one device, or of a whole document, in the document's order."""

    env: tuple[str, ...] = ()
    nodes: tuple[CdiNode, ...] = ()
    mounts: tuple[CdiMount, ...] = ()
    hooks: Hooks = Hooks()
    additional_groups: tuple[int, ...] = ()
    #: (name on the host, name inside)
    net_devices: tuple[tuple[str, str], ...] = ()
    intel_rdt: IntelRdt | None = None

    def __add__(self, other: ContainerEdits) -> ContainerEdits:
        return ContainerEdits(
            self.env + other.env,
            self.nodes + other.nodes,
            self.mounts + other.mounts,
            self.hooks + other.hooks,
            self.additional_groups + other.additional_groups,
            self.net_devices + other.net_devices,
            other.intel_rdt or self.intel_rdt,
        )


@dataclass(frozen=True, slots=True)
class CdiDocument:
    """One file: `kind` is "vendor.com/class"; `edits` come with every device of it, once."""

    kind: str
    edits: ContainerEdits
    #: by unqualified name
    devices: dict[str, ContainerEdits]
