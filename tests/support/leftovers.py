"""What a test session must not leave on the machine: mounts, netns, links, cgroups, directories, processes.

`Machine.observe()` before, `new_since()` after. Objects that nothing names as ours are left out, since other programs
of the machine may come and go meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MARK = "CRISHIM_TEST_SESSION"
"""Environment variable that every process of this test session inherits."""

_OURS = "crishim"
_HOMES = ("/run", "/run/netns", "/tmp", "/var/lib", "/var/log/pods", "/etc/cni/net.d", "/sys/class/net")
_POLL_S = 0.05


@dataclass(frozen=True)
class Machine:
    """The names of what exists at one moment, one sentence each, so that a difference explains itself."""

    names: frozenset[str]

    @classmethod
    def observe(cls) -> Machine:
        return cls(frozenset((*_mounts(), *_named_entries(), *_cgroups(), *_processes())))


def new_since(before: Machine, *, deadline_s: float) -> list[str]:
    """What exists now and did not before; waits up to the deadline for what is being torn down."""
    end = time.monotonic() + deadline_s
    while True:
        fresh = sorted(Machine.observe().names - before.names)
        if not fresh or time.monotonic() > end:
            return fresh
        time.sleep(_POLL_S)


def _mounts() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        target = line.split(" ")[4]
        if _OURS in line or "/pytest-" in target or target.startswith("/run/netns/"):
            yield f"mount {target}"


def _named_entries() -> Iterator[str]:
    for home in _HOMES:
        try:
            entries = os.listdir(home)
        except FileNotFoundError:
            continue
        yield from (f"entry {home}/{name}" for name in entries if name.startswith(_OURS))


def _cgroups() -> Iterator[str]:
    for directory, names, _ in os.walk("/sys/fs/cgroup"):
        ours = [name for name in names if name.startswith(_OURS)]
        yield from (f"cgroup {directory}/{name}" for name in ours)


def _processes() -> Iterator[str]:
    mark = os.environ.get(MARK)
    wanted = f"{MARK}={mark}".encode()
    for pid in (name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            name = Path(f"/proc/{pid}/comm").read_text()
            marked = mark is not None and wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except (OSError, ProcessLookupError):
            continue
        # the executor's processes are told apart by name: they get an environment of their own
        if command and (marked or name.startswith(_OURS) or f"{_OURS}.executor" in command):
            yield f"process {pid} {command[:100]}"
