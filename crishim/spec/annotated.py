"""What a pod may ask for by annotations, where its runtime handler allows it: file mode mask and resource limits.

    crishim.io/umask: "0027"
    crishim.io/ulimit.nofile: "1024:4096"      soft and hard, or one number for both; -1 is unlimited

Annotations come from whoever may create pods, so each name has to be among the handler's `allowed_annotations`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from crishim.errors import InvalidSpec
from crishim.model.handler import Handler
from crishim.model.process import Rlimit

UMASK = "crishim.io/umask"
ULIMIT = "crishim.io/ulimit."

_UMASK_VALUE = re.compile(r"0?[0-7]{1,3}")
_NUMBER = r"-1|[0-9]{1,18}"
_ULIMIT_VALUE = re.compile(rf"({_NUMBER})(?::({_NUMBER}))?")
_LIMITS = (
    "as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
    "rttime", "sigpending", "stack",
)  # fmt: skip


def umask_of(annotations: Mapping[str, str], handler: Handler) -> int | None:
    """The mask that the pod asks for, None when it does not or may not."""
    value = annotations.get(UMASK)
    if value is None or not handler.allows(UMASK):
        return None
    if not _UMASK_VALUE.fullmatch(value):
        raise InvalidSpec(f"config.annotations[{UMASK!r}]: {value[:100]!r} is not an octal mask like '0022'")
    return int(value, 8)


def rlimits_of(common: tuple[Rlimit, ...], handler: Handler, annotations: Mapping[str, str]) -> tuple[Rlimit, ...]:
    """Limits of a container's processes: those of every container, of the handler, and what the pod may ask for."""
    found = {limit.kind: limit for limit in (*common, *handler.rlimits)}
    for name, value in annotations.items():
        if name.startswith(ULIMIT) and handler.allows(name):
            limit = _ulimit(name, value)
            found[limit.kind] = limit
    return tuple(found.values())


def _ulimit(name: str, value: str) -> Rlimit:
    where = f"config.annotations[{name!r}]"
    kind = name.removeprefix(ULIMIT)
    if kind not in _LIMITS:
        raise InvalidSpec(f"{where}: {kind[:100]!r} is not one of {', '.join(_LIMITS)}")
    match = _ULIMIT_VALUE.fullmatch(value)
    soft, hard = (int(match[1]), int(match[2] or match[1])) if match else (0, -2)
    if hard != -1 and not 0 <= soft <= hard:
        raise InvalidSpec(f"{where}: {value[:100]!r} is not SOFT:HARD with numbers, or -1 for unlimited")
    return Rlimit(f"RLIMIT_{kind.upper()}", soft, hard)
