"""From what the program said to values that two runtimes can be compared by: numbers of the moment become words."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")

#: differ from run to run, or tell of the kernel and the program alone
_MOMENTARY = (
    r"status\.(FDSize|Vm|Rss|Hugetlb|Pid|Tgid|Ngid|PPid|NStgid|NSpid|NSpgid|NSsid|Name|State|x86|.*ctxt_switches)",
    r"sysctl\.kernel/(ns_last_pid|pid_max|modprobe|core_pattern)\.0$",
    r"sysctl\.fs/file-max\.0$",
    r"descriptor\.\d+\.target$",
    r"mountinfo\.\d+$",
    r"self\.cgroup\.",
    r"cgroup\.(\w+/)?cgroup\.procs\.",
    r"cgroup\.devices/devices\.list",
    r"end$",
)
_momentary = re.compile("|".join(f"(?:{pattern})" for pattern in _MOMENTARY))


def outside(pid: int, init: int) -> dict[str, str]:
    """What the host sees of a process of a container whose first process is `init`."""
    proc = Path(f"/proc/{pid}")
    seen = {f"outside.namespace.{kind}": _namespace(kind, pid, init) for kind in NAMESPACES}
    for number, line in enumerate(sorted((proc / "cgroup").read_text().splitlines(), key=lambda line: line[2:])):
        _, controllers, path = line.split(":", 2)
        seen[f"outside.cgroup.{controllers or number}"] = path
    seen["outside.oom_score_adj"] = (proc / "oom_score_adj").read_text().strip()
    seen["outside.exe"] = os.readlink(proc / "exe")
    for name, path in (("memory", proc / "mem"), ("null", Path("/dev/null"))):
        owner = path.stat()
        seen[f"outside.owner.{name}"] = f"{owner.st_uid}:{owner.st_gid}"
    return seen


def _namespace(kind: str, pid: int, init: int) -> str:
    theirs = os.readlink(f"/proc/{pid}/ns/{kind}")
    if theirs == os.readlink(f"/proc/self/ns/{kind}"):
        return "the host's"
    return "the container's" if theirs == os.readlink(f"/proc/{init}/ns/{kind}") else "its own"


def normal(said: dict[str, str], words: dict[str, str]) -> dict[str, str]:
    """Comparable values; `words` are texts of this run (paths, ids) and what stands for them."""
    kept = {key: value for key, value in said.items() if not _momentary.match(key)}
    kept.update(_mounts(said))
    kept.update(_devices(said))
    kept.update(_descriptors(said))
    kept.update(_memberships(said))
    if "status.SigQ" in kept:
        kept["status.SigQ"] = kept["status.SigQ"].partition("/")[2]
    for key, value in kept.items():
        for text, word in words.items():
            value = value.replace(text, word)
        kept[key] = value
    return kept


def _mounts(said: dict[str, str]) -> Iterator[tuple[str, str]]:
    """One value for each property of a mount; a further mount at the same place is "PLACE#2"."""
    lines = _numbered(said, "mountinfo")
    targets = {line.split(" ")[0]: line.split(" ")[4] for line in lines}
    seen: Counter[str] = Counter()
    for line in lines:
        left, _, right = line.partition(" - ")
        _, parent, _, root, target, options, *propagation = left.split(" ")
        kind, source, superblock = right.split(" ")
        seen[target] += 1
        name = target if seen[target] == 1 else f"{target}#{seen[target]}"
        yield f"mount.parent.{name}", targets.get(parent, "out of sight")
        yield f"mount.type.{name}", kind
        yield f"mount.source.{name}", source
        yield f"mount.root.{name}", root
        yield f"mount.options.{name}", options
        yield f"mount.superblock.{name}", superblock
        yield f"mount.propagation.{name}", " ".join(word.partition(":")[0] for word in propagation) or "private"


def _devices(said: dict[str, str]) -> Iterator[tuple[str, str]]:
    """The list of cgroup v1: its order means nothing."""
    for line in _numbered(said, "cgroup.devices/devices.list"):
        device, access = line.rsplit(" ", 1)
        yield f"cgroup.device.{device}", access


def _numbered(said: dict[str, str], key: str) -> list[str]:
    """The lines of a file."""
    return list(takewhile(bool, (said.get(f"{key}.{number}", "") for number in range(len(said)))))


def _descriptors(said: dict[str, str]) -> Iterator[tuple[str, str]]:
    for key, value in said.items():
        if re.fullmatch(r"descriptor\.\d+\.target", key):
            yield key, re.sub(r"^(\w+):\[\d+\]$", r"\1", value)


def _memberships(said: dict[str, str]) -> Iterator[tuple[str, str]]:
    for key, value in said.items():
        if key.startswith("self.cgroup."):
            _, controllers, path = value.split(":", 2)
            yield f"self.cgroup.{controllers}", path
