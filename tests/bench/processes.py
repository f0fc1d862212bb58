"""One run of the executor's figures in a mount namespace with a given number of mounts; prints them as JSON.

Started by `__main__` under `unshare -m`, so that the mounts it makes end with it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from tests.bench import oci, ours
from tests.bench.measure import Sample
from tests.support.image_archive import write_rootfs

Figures = dict[str, dict[str, Sample]]
"""Column (runtime) to figure ("run", "exec") to sample."""


def measure(directory: Path, *, count: int, seccomp: bool) -> Figures:
    """Every runtime in turn; ours first and last would show a drift, so the order is the alphabet's."""
    rootfs = write_rootfs(directory / "rootfs")
    figures: Figures = {}
    for name, program in oci.runtimes().items():
        peer = oci.Peer(program, directory / name.split()[0], rootfs, seccomp=seccomp)
        with _without_unified(directory):
            figures[name] = {"run": peer.run_true(count), "exec": peer.exec_true(count)}
    with ours.Executor(directory / "crishim", rootfs, seccomp=seccomp) as executor:
        figures["crishim"] = {
            "run": executor.run_true(count),
            "run in a new sandbox": executor.run_in_new_sandbox(count),
            "exec": executor.exec_true(count),
        }
    return figures


@contextmanager
def _without_unified(directory: Path) -> Iterator[None]:
    """Hides the v2 tree of a hybrid host: crun refuses to work when that has a controller."""
    unified, aside = Path("/sys/fs/cgroup/unified"), directory / "unified"
    if not unified.is_mount():
        yield
        return
    aside.mkdir(exist_ok=True)
    subprocess.run(["mount", "--move", unified, aside], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "--move", aside, unified], check=True)


@contextmanager
def mounts(directory: Path, count: int) -> Iterator[None]:
    """Raises the number of mounts of this namespace to `count` with small tmpfs mounts."""
    present = len(Path("/proc/self/mountinfo").read_text().splitlines())
    for number in range(count - present):
        target = directory / str(number)
        target.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "bench", target], check=True)
    try:
        yield
    finally:
        for target in directory.iterdir() if directory.exists() else ():
            subprocess.run(["umount", target], check=True)
            target.rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mounts", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seccomp", action="store_true")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="crishim-bench-", dir="/tmp") as name:
            directory = Path(name)
            with mounts(directory / "mounts", options.mounts):
                figures = measure(directory, count=options.count, seccomp=options.seccomp)
    finally:
        _remove_cgroups(f"crishim-bench-{os.getpid()}")
    print(json.dumps({column: {key: asdict(value) for key, value in row.items()} for column, row in figures.items()}))


def _remove_cgroups(name: str) -> None:
    """runc and crun remove the cgroup of a container and leave its parent."""
    for hierarchy in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()):
        with suppress(OSError):
            (hierarchy / name).rmdir()


if __name__ == "__main__":
    main()
