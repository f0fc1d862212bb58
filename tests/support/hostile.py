"""What attackers bring: hostile layers, names that are exchanged in a loop, and the directories they must not reach."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from crishim.model.process import ContainerSpec

#: C programs that tests put into an image
SOURCES = Path(__file__).parent

_RENAMEAT2 = {"x86_64": 316, "aarch64": 276}[os.uname().machine]
_RENAME_EXCHANGE = 2
_libc = ctypes.CDLL(None, use_errno=True)


def with_layer(spec: ContainerSpec, layer: Path) -> ContainerSpec:
    """The same container with a hostile layer on top of its image."""
    return replace(spec, rootfs=replace(spec.rootfs, lowers=(str(layer), *spec.rootfs.lowers)))


def compiled(source: str, target: Path, *flags: str) -> None:
    """A static program of `SOURCES` for an image; skips the test where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a C compiler is needed to put a program into the image")
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([compiler, "-static", *flags, "-o", target, SOURCES / source], check=True)


def tree(place: Path) -> dict[str, tuple[int, int, int, str]]:
    """Mode, owner, inode and content of all that is below a directory of the host."""
    found = {}
    for path in sorted(place.rglob("*")):
        status = path.lstat()
        content = path.read_text() if path.is_file() and not path.is_symlink() else ""
        found[str(path)] = (status.st_mode, status.st_uid, status.st_ino, content)
    return found


@contextmanager
def swapping(first: Path, second: Path) -> Iterator[None]:
    """Exchange two names as fast as the kernel can, as a process in a container that shares the volume would."""
    stop = threading.Event()
    names = os.fsencode(first), os.fsencode(second)

    def swap() -> None:
        while not stop.is_set():
            assert _libc.syscall(_RENAMEAT2, -100, names[0], -100, names[1], _RENAME_EXCHANGE) == 0

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM (proc(5), statm)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
