"""runc and crun from their command lines: a bundle, `run true`, `exec true`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.measure import Sample, children_cpu_s, repeat
from tests.e2e import tools
from tests.support.observer import profiles

#: what `runc spec` hides and write-protects
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/proc/scsi",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def runtimes() -> dict[str, Path]:
    """The peers on this machine: runc as built from its module, else from PATH, and crun from PATH."""
    found = {"runc": tools.find("runc") or shutil.which("runc"), "crun": shutil.which("crun")}
    return {f"{name} {_version(path)}": Path(path) for name, path in found.items() if path}


def _version(path: str | Path) -> str:
    first = subprocess.run([path, "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout.split("\n")[0]
    return first.split()[-1]


class Peer:
    """One runtime with a bundle of its own; its containers live in one cgroup directory of the benchmark."""

    def __init__(self, program: Path, directory: Path, rootfs: Path, *, seccomp: bool) -> None:
        self._program = program
        self._state = directory / "state"
        self._bundle = directory / "bundle"
        self._rootfs = rootfs
        self._seccomp = seccomp
        self._bundle.mkdir(parents=True)

    def run_true(self, count: int) -> Sample:
        """create, start, wait and delete of a container whose process is `true`."""
        self._configure(["/bin/true"])
        numbers = iter(range(count + 1))
        return repeat(lambda: self._call("run", "--bundle", self._bundle, f"run{next(numbers)}"), count, children_cpu_s)

    def exec_true(self, count: int) -> Sample:
        """A further process `true` in a running container."""
        with self._running("sleeper"):
            return repeat(lambda: self._call("exec", "sleeper", "/bin/true"), count, children_cpu_s)

    @contextmanager
    def _running(self, name: str) -> Iterator[None]:
        self._configure(["/bin/sleep", "1000"])
        self._call("run", "--detach", "--bundle", self._bundle, name)
        try:
            yield
        finally:
            self._call("delete", "--force", name)

    def _call(self, *words: str | Path) -> None:
        command = [self._program, "--root", self._state, *words]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def _configure(self, args: list[str]) -> None:
        config = self._bundle / "config.json"
        config.unlink(missing_ok=True)
        self._call_in_bundle("spec")
        spec: dict[str, Any] = json.loads(config.read_text())
        spec["process"] |= {"terminal": False, "args": args}
        spec["root"] = {"path": str(self._rootfs), "readonly": True}
        # not a cgroup of this process's: crun would join what it finds there
        spec["linux"] |= {"cgroupsPath": f"/crishim-bench-{os.getpid()}/container"}
        spec["linux"] |= {"maskedPaths": list(MASKED_PATHS), "readonlyPaths": list(READONLY_PATHS)}
        spec["linux"].pop("seccomp", None)
        if self._seccomp:
            spec["linux"]["seccomp"] = profiles.runtime_default(frozenset(), os.uname().machine)
        config.write_text(json.dumps(spec))

    def _call_in_bundle(self, word: str) -> None:
        subprocess.run([self._program, word], check=True, cwd=self._bundle, stdout=subprocess.DEVNULL)
