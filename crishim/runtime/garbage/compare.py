"""The comparison of who lives with what is there. Pure: values in, findings out.

A thing belongs to us by its place (our cgroup, our prefix, our directories) or, in the cgroup of a pod that the kubelet
made, by the id of a container that our own records know; anything else there is somebody else's. A thing is nobody's
when its id does not live and no operation concerns it. One look proves nothing, since pods come and go meanwhile: what
two looks have found is a finding (`collection.py`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from crishim.model.container import ContainerState
from crishim.model.leftover import Finding, LeftoverKind
from crishim.network.door import NetworkObject
from crishim.runtime.garbage.owners import Owners
from crishim.runtime.garbage.present import FoundProcess, Present

_ID = re.compile(r"[0-9a-f]{64}")
#: what a pull received is kept this long for its retry
BLOB_LIFE_NS = 24 * 3600 * 1_000_000_000
#: what each network has for every pod that is attached
_ANCHORS = {"bridge": "address", "cni": "attachment"}
#: what is not freed by the way when the reservation of its sandbox is taken back
_BY_ITSELF = (LeftoverKind.PROCESS, LeftoverKind.MOUNT, LeftoverKind.SANDBOX)
_MONITOR = "crishim-monitor"


def compare(
    owners: Owners, there: Present, *, now_ns: int, filters_used: Collection[str] | None = None
) -> list[Finding]:
    """Everything that is wrong, in the order in which it is freed.

    now_ns: CLOCK_REALTIME. filters_used: digests of the filters that specs refer to, None when it is not known.
    """
    found = [
        *_processes(owners, there),
        *_reserved(owners),
        *_cgroups(owners, there),
        *_network(owners, there),
        *_mounts(owners, there),
        *_pins(owners, there),
        *_directories(owners, there),
        *_roots(owners, there),
        *_filters(there, filters_used),
        *_images(there, now_ns),
        *_missing(owners, there),
    ]
    # what is left of a reserved sandbox goes with it, but for its processes and mounts, which go before
    kept = (each for each in found if each.owner not in owners.reserved or each.kind in _BY_ITSELF)
    order = list(LeftoverKind)
    return sorted(kept, key=lambda each: (order.index(each.kind), each.missing, each.name))


def blind_kinds(there: Present, filters_used: Collection[str] | None) -> set[LeftoverKind]:
    """Kinds of which nothing is known, since a part of the node could not be looked at."""
    parts: dict[LeftoverKind, tuple[object, ...]] = {
        LeftoverKind.PROCESS: (there.processes,),
        LeftoverKind.MOUNT: (there.mounts,),
        LeftoverKind.CGROUP: (there.cgroups,),
        LeftoverKind.NETWORK: (there.network,),
        LeftoverKind.NETNS: (there.pins, there.mounts),
        LeftoverKind.SOCKET: (there.sandboxes,),
        LeftoverKind.CONTAINER_FILES: (there.sandboxes,),
        LeftoverKind.SANDBOX_DIRECTORY: (there.sandboxes,),
        LeftoverKind.ROOTFS: (there.roots, there.images),
        LeftoverKind.FILTER: (there.filters, filters_used),
        LeftoverKind.LAYER: (there.layers, there.images),
        LeftoverKind.BLOB: (there.blobs, there.images),
        LeftoverKind.SPOOL: (there.spools, there.images),
    }
    return {kind for kind, needed in parts.items() if any(part is None for part in needed)}


def known_containers(owners: Owners, there: Present) -> set[str]:
    """Ids of containers that live or lived by our records: the store, roots, files in the state directory."""
    known = set(owners.members)
    known.update(there.roots or ())
    if there.images is not None:
        known |= there.images.prepared
    for directory in there.sandboxes or ():
        known |= directory.containers
    return known


# -- what is there and should not be


def _processes(owners: Owners, there: Present) -> Iterator[Finding]:
    for process in there.processes or ():
        if process.sandbox_id and owners.is_alive(process.sandbox_id):
            continue  # a monitor that is being made, ended or adopted
        yield Finding(
            LeftoverKind.PROCESS,
            f"{process.name} {process.pid}",
            process.sandbox_id,
            "it is in the cgroup of monitors and belongs to no sandbox",
            pid=process.pid,
            started_ticks=process.started_ticks,
            cgroups=tuple(_containers_of(process, owners)),
        )


def _containers_of(process: FoundProcess, owners: Owners) -> Iterator[str]:
    """The cgroups of the containers that a monitor holds: those of its children that are named after one."""
    for path in process.child_cgroups if process.name == _MONITOR else ():
        id = _ID.search(path.rpartition("/")[2])
        if id is not None and not owners.is_alive(id[0]):
            yield path


def _reserved(owners: Owners) -> Iterator[Finding]:
    for sandbox_id in owners.reserved:
        yield Finding(
            LeftoverKind.SANDBOX, sandbox_id, sandbox_id, "its run or its removal was cut; only its reservation is left"
        )


def _cgroups(owners: Owners, there: Present) -> Iterator[Finding]:
    own = owners.instance.pods + "/"
    alive = {member.cgroup: id for id, member in owners.members.items()}
    pods = {pod.cgroup for pod in owners.pods.values()}
    known = known_containers(owners, there)
    for path in sorted(there.cgroups or ()):
        name = _id_of(path.rpartition("/")[2])
        if path in alive:
            owner = alive[path]
            if owners.members[owner].state is ContainerState.EXITED and not owners.is_busy(owner):
                yield Finding(LeftoverKind.CGROUP, path, owner, "its container has exited")
        elif path.startswith(own):
            place, _, leaf = path[len(own) :].partition("/")
            pod, container = _id_of(place), _id_of(leaf)
            pod_lives = own + place in pods or owners.is_alive(pod)
            if not container and not pod_lives:
                yield Finding(LeftoverKind.CGROUP, path, pod, "its sandbox does not exist")
            elif container and pod_lives and not owners.is_alive(container) and pod not in owners.busy:
                yield Finding(LeftoverKind.CGROUP, path, container, "its container does not exist")
        elif name in known and not owners.is_alive(name):
            yield Finding(LeftoverKind.CGROUP, path, name, "its container does not exist")


def _id_of(name: str) -> str:
    """The id in the name of a cgroup, which is the name of a unit with the systemd driver; else the name."""
    found = _ID.search(name)
    return name if found is None else found[0]


def _network(owners: Owners, there: Present) -> Iterator[Finding]:
    for each in there.network or ():
        if each.sandbox_id and owners.is_alive(each.sandbox_id):
            continue
        problem = "its sandbox does not exist" if each.sandbox_id else "no record says whose it is"
        yield Finding(LeftoverKind.NETWORK, f"{each.kind} {each.name}", each.sandbox_id, problem)


def _mounts(owners: Owners, there: Present) -> Iterator[Finding]:
    """Below our directories the host has no mounts; those of pins are looked at with the pins."""
    for target in dict.fromkeys(there.mounts or ()):
        if target.startswith("/run/netns/"):
            continue
        owner = next((part for part in target.split("/") if _ID.fullmatch(part)), "")
        if not (owner and owners.is_alive(owner)):
            yield Finding(LeftoverKind.MOUNT, target, owner, "a mount in a directory of ours")


def _pins(owners: Owners, there: Present) -> Iterator[Finding]:
    start = owners.instance.netns_prefix + "-"
    for name in sorted(there.pins or ()):
        sandbox_id = name.removeprefix(start)
        if name.startswith(start) and _ID.fullmatch(sandbox_id) and not owners.is_alive(sandbox_id):
            yield Finding(LeftoverKind.NETNS, f"/run/netns/{name}", sandbox_id, "its sandbox does not exist")


def _directories(owners: Owners, there: Present) -> Iterator[Finding]:
    place = f"{owners.instance.state_dir}/sandboxes"
    for directory in there.sandboxes or ():
        path = f"{place}/{directory.id}"
        if not owners.is_alive(directory.id):
            yield Finding(LeftoverKind.SANDBOX_DIRECTORY, path, directory.id, "its sandbox does not exist")
            continue
        pod = owners.pods.get(directory.id)
        if pod is None or directory.id in owners.busy:
            continue
        if directory.has_socket and not pod.has_monitor:
            yield Finding(
                LeftoverKind.SOCKET,
                f"{path}/monitor.sock",
                directory.id,
                "no monitor is there",
                sandbox_id=directory.id,
            )
        for container_id in sorted(directory.containers):
            if not owners.is_alive(container_id):
                yield Finding(
                    LeftoverKind.CONTAINER_FILES,
                    f"{path}/*/{container_id}",
                    container_id,
                    "the container does not exist",
                    sandbox_id=directory.id,
                )


def _roots(owners: Owners, there: Present) -> Iterator[Finding]:
    if there.roots is None or there.images is None:
        return
    for name in sorted(there.roots | there.images.prepared):
        if not owners.is_alive(name):
            path = f"{owners.instance.root_dir}/containers/{name}"
            yield Finding(LeftoverKind.ROOTFS, path, name, "its container does not exist")


def _filters(there: Present, used: Collection[str] | None) -> Iterator[Finding]:
    if used is None:
        return
    for name in sorted(there.filters or ()):
        if name not in used and not name.startswith("."):
            yield Finding(LeftoverKind.FILTER, name, "", "no container has it")


def _images(there: Present, now_ns: int) -> Iterator[Finding]:
    use = there.images
    if use is None:
        return
    for name in sorted(there.layers or ()):
        if name in use.unused_layers:
            yield Finding(LeftoverKind.LAYER, name, "", "no image and no container has used it for a day")
        elif name not in use.layers:
            yield Finding(LeftoverKind.LAYER, name, "", "the store has no record of it")
    for directory, name, changed_ns in there.blobs or ():
        if name not in use.blobs and changed_ns < now_ns - BLOB_LIFE_NS:
            yield Finding(LeftoverKind.BLOB, f"{directory}/{name}", "", "no pull has asked for it in a day")
    for path in sorted(there.spools or ()):
        if path.rpartition("/")[2] not in use.spools:
            yield Finding(LeftoverKind.SPOOL, path, "", "nobody reads it")


# -- what should be there and is not


def _missing(owners: Owners, there: Present) -> Iterator[Finding]:
    mounted = {target.rpartition("/")[2] for target in there.mounts or ()}
    anchors = _anchors(owners, there.network)
    for id, pod in owners.pods.items():
        if not pod.ready or id in owners.busy:
            continue
        if not pod.has_monitor:
            yield _lacks(LeftoverKind.PROCESS, f"monitor of {id}", id, "it is ready and has no monitor")
        if pod.netns_path is None:
            continue
        if there.mounts is not None and pod.netns_path.rpartition("/")[2] not in mounted:
            yield _lacks(LeftoverKind.NETNS, pod.netns_path, id, "the pin of its network namespace is gone")
        if anchors is not None and pod.network_mode == owners.instance.network_mode and id not in anchors:
            yield _lacks(LeftoverKind.NETWORK, f"network of {id}", id, "it is ready and not attached to its network")
    for id, member in owners.members.items():
        if owners.is_busy(id):
            continue
        if member.state is ContainerState.RUNNING and not member.has_process:
            yield _lacks(LeftoverKind.PROCESS, f"init of {id}", id, "it is running and its process is not known")
        elif (
            member.state is ContainerState.RUNNING and there.cgroups is not None and member.cgroup not in there.cgroups
        ):
            yield _lacks(LeftoverKind.CGROUP, member.cgroup, id, "it is running and its cgroup is gone")
        if member.state is not ContainerState.EXITED and there.roots is not None and id not in there.roots:
            path = f"{owners.instance.root_dir}/containers/{id}"
            yield _lacks(LeftoverKind.ROOTFS, path, id, "its root file system is gone")


def _anchors(owners: Owners, network: tuple[NetworkObject, ...] | None) -> set[str] | None:
    """Sandboxes that are attached, with their device when the network has any; None when it could not be looked at."""
    if network is None:
        return None
    kind = _ANCHORS.get(owners.instance.network_mode)
    anchors = {each.sandbox_id for each in network if each.kind == kind}
    if owners.instance.network_mode == "bridge":
        anchors &= {each.sandbox_id for each in network if each.kind == "device"}
    return anchors


def _lacks(kind: LeftoverKind, name: str, owner: str, problem: str) -> Finding:
    return Finding(kind, name, owner, problem, missing=True)
