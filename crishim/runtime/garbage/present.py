"""What is on the node, as the role `inventory` and the rooms of images and network list it. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from os import fsdecode
from typing import Any

from crishim.images.store import StoreUse
from crishim.network.door import NetworkObject


@dataclass(frozen=True, slots=True)
class FoundProcess:
    """A process in the cgroup of our monitors that we do not know."""

    pid: int
    started_ticks: int
    name: str
    #: of the sandbox directory that it holds open, "" without one
    sandbox_id: str
    #: that its children are in
    child_cgroups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SandboxDirectory:
    """A directory below STATE/sandboxes."""

    id: str
    has_socket: bool
    #: ids of the containers that have files in it
    containers: frozenset[str]


@dataclass(frozen=True, slots=True)
class Present:
    """Everything of one server that is there. None is a part that could not be looked at: nothing follows from it."""

    #: of pods' and containers' cgroups, below the root of each tree
    cgroups: frozenset[str] | None = None
    processes: tuple[FoundProcess, ...] | None = None
    #: names in /run/netns, of ours and of other servers whose prefix begins as ours does
    pins: frozenset[str] | None = None
    #: mount points, one for each mount, in the order in which they can be detached
    mounts: tuple[str, ...] | None = None
    sandboxes: tuple[SandboxDirectory, ...] | None = None
    filters: frozenset[str] | None = None
    #: names below ROOT/containers and ROOT/layers
    roots: frozenset[str] | None = None
    layers: frozenset[str] | None = None
    #: (directory, name, last change in ns) below ROOT/images
    blobs: tuple[tuple[str, str, int], ...] | None = None
    #: paths relative to ROOT
    spools: frozenset[str] | None = None
    network: tuple[NetworkObject, ...] | None = None
    #: what the image store has rows for and works on
    images: StoreUse | None = None
    problems: tuple[str, ...] = ()


def present(
    answer: dict[str, object],
    network: tuple[NetworkObject, ...] | None,
    images: StoreUse | None,
    problems: tuple[str, ...],
) -> Present:
    """From the role's answer; names that are not UTF-8 become text that os.fsencode takes back."""
    parts: dict[str, Any] = answer
    said = tuple(str(each) for each in parts["problems"])
    return Present(
        cgroups=_name_set(parts["cgroups"]),
        processes=_tuple(parts["processes"], _process),
        pins=_name_set(parts["pins"]),
        mounts=_tuple(parts["mounts"], fsdecode),
        sandboxes=_tuple(parts["sandboxes"], _directory),
        filters=_name_set(parts["filters"]),
        roots=_name_set(parts["roots"]),
        layers=_name_set(parts["layers"]),
        blobs=_tuple(parts["blobs"], lambda each: (fsdecode(each[0]), fsdecode(each[1]), int(each[2]))),
        spools=_name_set(parts["spools"]),
        network=network,
        images=images,
        problems=said + problems,
    )


def _name_set(names: list[bytes] | None) -> frozenset[str] | None:
    return None if names is None else frozenset(map(fsdecode, names))


def _tuple(entries: list[Any] | None, convert: Any) -> tuple[Any, ...] | None:
    return None if entries is None else tuple(map(convert, entries))


def _process(entry: list[Any]) -> FoundProcess:
    pid, started, name, sandbox_id, cgroups = entry
    return FoundProcess(pid, started, fsdecode(name), fsdecode(sandbox_id), tuple(map(fsdecode, cgroups)))


def _directory(entry: list[Any]) -> SandboxDirectory:
    return SandboxDirectory(fsdecode(entry[0]), bool(entry[1]), frozenset(map(fsdecode, entry[2])))
