"""SELinux contexts of pods and containers: which one each process and its files get. Pure.

A pod has a pair of categories that no other pod of the node has, so that nobody else's processes read its files, though
all of them are of the same types (MCS). Source: api.proto SELinuxOption; container-selinux, whose types these are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from crishim.errors import Exhausted, InvalidSpec, Unsupported
from crishim.model.container import ContainerConfig
from crishim.model.sandbox import NamespaceMode, NamespaceOptions, PodLabels, Sandbox, SandboxConfig, SELinuxOptions

#: categories of the policies of every distribution: c0 to c1023
CATEGORIES = 1024
#: what containers see of selinuxfs when somebody mounts the host's sysfs in them
SELINUXFS = "/sys/fs/selinux"
_TRIES = 10_000
_CATEGORY = re.compile(r"c([0-9]{1,4})(?:\.c([0-9]{1,4}))?")


@dataclass(frozen=True, slots=True)
class Context:
    """An SELinux context in its parts; level is "" with a policy that has none."""

    user: str
    role: str
    type: str
    level: str = ""

    def __str__(self) -> str:
        return ":".join(part for part in (self.user, self.role, self.type, self.level) if part)


@dataclass(frozen=True, slots=True)
class DefaultLabels:
    """What this node's policy has for containers: processes, their files, and those that it shall not confine."""

    process: Context
    file: Context
    #: None: the policy has no type for them, so they stay in the domain of who started the server
    unconfined: Context | None = None


def parse(text: str) -> Context:
    """The parts of "user:role:type[:level]". InvalidSpec for another text."""
    parts = text.split(":", 3)
    if len(parts) < 3 or not all(parts) or any(char <= " " for char in text):
        raise InvalidSpec(f"{text!r} is not an SELinux context")
    return Context(*parts)


def sensitivity(level: str) -> str:
    """What comes before the categories of a level: "s0" of "s0:c1,c2" and of "s0-s0:c0.c1023"."""
    return level.partition("-")[0].partition(":")[0]


def categories(level: str) -> frozenset[int]:
    """The categories of (the upper end of) a level; none for a text that is no level."""
    _, _, upper = level.rpartition("-")
    found: set[int] = set()
    for part in upper.partition(":")[2].split(","):
        match = _CATEGORY.fullmatch(part)
        if match:
            first = int(match[1])
            found.update(range(first, min(int(match[2] or first), CATEGORIES - 1) + 1))
    return frozenset(found)


def free_level(base: str, taken: Collection[frozenset[int]], random_below: Callable[[int], int]) -> str:
    """A level of two categories that nobody has; `random_below(N)` brings a number of 0..N-1.

    By chance, so that files of a pod that is gone are unlikely to be the next one's. Exhausted when there is none.
    """
    for _ in range(_TRIES):
        low, high = sorted((random_below(CATEGORIES), random_below(CATEGORIES)))
        if low != high and frozenset((low, high)) not in taken:
            return f"{base}:c{low},c{high}"
    raise Exhausted("every pair of SELinux categories of this node belongs to a pod")


def pod_labels(asked: SELinuxOptions | None, defaults: DefaultLabels, level: str) -> PodLabels:
    """The contexts of a pod that has `level` unless it asks for another ("": the policy has no levels)."""
    own = asked or SELinuxOptions()
    process = replace(defaults.process, level=level)
    file = replace(defaults.file, level=level)
    return PodLabels(str(_process(process, own)), str(_file(file, own)))


def container_labels(
    config: ContainerConfig, sandbox: Sandbox, namespaces: NamespaceOptions, defaults: DefaultLabels | None
) -> tuple[str | None, str | None]:
    """(context of the processes of a container, of its files); None: it has that of who started the server.

    Parts that it does not name are its pod's. Who is privileged, or shares processes or IPC with the host, is not to be
    confined by a type unless the request names one. namespaces: those of the container.
    """
    pod = sandbox.selinux
    if pod is None or defaults is None:
        return None, None
    own = config.security.selinux or SELinuxOptions()
    of_pod = sandbox.config.security.selinux or SELinuxOptions()
    file = str(_file(parse(pod.mount), own))
    process = parse(pod.process)
    if not (own.type or of_pod.type) and is_unconfined(config, sandbox.config, namespaces):
        if defaults.unconfined is None:
            return None, file
        process = replace(process, type=defaults.unconfined.type)
        if not of_pod.level:
            process = replace(process, level=defaults.unconfined.level)
    return str(_process(process, own)), file


def is_unconfined(config: ContainerConfig, pod: SandboxConfig, namespaces: NamespaceOptions) -> bool:
    """Whether a container is meant to reach the host's processes."""
    host = NamespaceMode.NODE
    return config.security.privileged or host in (namespaces.pid, pod.security.namespaces.ipc)


def refuse_without_labels(where: str, asked: SELinuxOptions | None, problem: str) -> None:
    """Unsupported for a request that names a context on a node that should give contexts, and cannot."""
    if asked is not None and problem:
        raise Unsupported(f"{where}.selinux_options: this node gives containers no SELinux contexts: {problem}")


def _process(base: Context, own: SELinuxOptions) -> Context:
    return Context(own.user or base.user, own.role or base.role, own.type or base.type, own.level or base.level)


def _file(base: Context, own: SELinuxOptions) -> Context:
    """Files have a role and a type of their own."""
    return replace(base, user=own.user or base.user, level=own.level or base.level)
