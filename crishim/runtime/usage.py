"""Reads what containers and pods use, from their cgroups and from /proc. Blocking; never raises for what is gone.

Numbers of /proc belong to a process id, which may have been given anew: they count only while the pidfd that the
server holds says that the process is still the one that was meant.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from crishim.cgroups import details, stats
from crishim.cgroups.effects import pids
from crishim.cgroups.hierarchy import Hierarchy
from crishim.model.container import Container
from crishim.model.sandbox import NamespaceMode, Sandbox
from crishim.model.stats import NetworkSample
from crishim.runtime.live import LiveContainer
from crishim.runtime.samples import network_sample

#: descriptors and processes that are looked at for one container; a container with more is shown with these
_MAX_DESCRIPTORS = 4096
_MAX_PROCESSES = 256
_NOFILE = re.compile(r"^Max open files\s+(\d+)", re.MULTILINE)
#: a listing of /proc/net/dev that is longer than this is not one
_MAX_NET_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Files:
    """What the processes of a container hold open."""

    processes: int
    descriptors: int
    sockets: int
    #: soft RLIMIT_NOFILE of the init, None when unlimited or not known
    nofile_soft: int | None


@dataclass(frozen=True, slots=True)
class ContainerReading:
    """What was read of one container; details and files only when metrics are asked for."""

    container_id: str
    raw: stats.Stats
    details: details.Details | None = None
    files: Files | None = None


@dataclass(frozen=True, slots=True)
class SandboxReading:
    """What was read of one pod."""

    sandbox_id: str
    raw: stats.Stats
    network: NetworkSample | None
    process_count: int | None


def read_container(h: Hierarchy, container: Container, *, detailed: bool) -> ContainerReading:
    """One container, by its cgroup."""
    raw = stats.read(h, container.cgroup_path)
    if not detailed:
        return ContainerReading(container.id, raw)
    more = details.read(h, container.cgroup_path)
    return ContainerReading(container.id, raw, more, _files(_pids(h, container.cgroup_path), container.pid))


def read_sandbox(
    h: Hierarchy, sandbox: Sandbox, members: Iterable[Container], find: Callable[[str], LiveContainer | None]
) -> SandboxReading:
    """One pod: its own cgroup, and the interfaces of its network namespace as an init of it sees them."""
    raw = stats.read(h, sandbox.cgroup_path)
    network = None
    if sandbox.config.security.namespaces.network is not NamespaceMode.NODE:
        candidates = (find(each.id) for each in members)
        network = next(filter(None, (_network(each) for each in candidates if each is not None)), None)
    return SandboxReading(sandbox.id, raw, network, len(_pids(h, sandbox.cgroup_path)))


def _pids(h: Hierarchy, path: str) -> list[int]:
    with suppress(OSError):
        return pids(h, path)
    return []


def _network(container: LiveContainer) -> NetworkSample | None:
    text = _read(f"/proc/{container.pid}/net/dev", _MAX_NET_BYTES)
    at = time.time_ns()
    try:
        signal.pidfd_send_signal(container.pidfd, 0)
    except OSError:
        return None  # it ended, and the number may be another's by now
    return network_sample(text, at) if text else None


def _files(found: list[int], init: int) -> Files:
    descriptors = sockets = 0
    for pid in found[:_MAX_PROCESSES]:
        with suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                descriptors += 1
                with suppress(OSError):
                    sockets += os.readlink(entry.path).startswith("socket:")
                if descriptors >= _MAX_DESCRIPTORS:
                    break
        if descriptors >= _MAX_DESCRIPTORS:
            break
    limit = _NOFILE.search(_read(f"/proc/{init}/limits", 16384)) if init in found else None
    return Files(len(found), descriptors, sockets, int(limit[1]) if limit else None)


def _read(path: str, limit_bytes: int) -> str:
    with suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read(limit_bytes)
    return ""
