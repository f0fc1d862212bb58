"""What attackers bring: hostile layers, names that are exchanged in a loop, and the directories they must not reach."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from crishim.model.process import ContainerSpec

#: C programs that tests put into an image
SOURCES = Path(__file__).parent

_RENAMEAT2 = {"x86_64": 316, "aarch64": 276}[os.uname().machine]


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


_SWAPPER = """
import ctypes, os, sys
call = ctypes.PyDLL(None).syscall
number, first, second = int(sys.argv[1]), *map(os.fsencode, sys.argv[2:])
print(call(number, -100, first, -100, second, 2), flush=True)
while call(number, -100, first, -100, second, 2) == 0:
    pass
"""


@contextmanager
def swapping(first: Path, second: Path) -> Iterator[None]:
    """Exchange two names as fast as the kernel can, as a process in a container that shares the volume would.

    In a process of its own (renameat2(2), RENAME_EXCHANGE), so that nothing here slows it down.
    """
    command = [sys.executable, "-I", "-S", "-c", _SWAPPER, str(_RENAMEAT2), first, second]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as swapper:
        assert swapper.stdout is not None
        try:
            assert swapper.stdout.readline() == b"0\n"
            yield
            assert swapper.poll() is None, "the exchange ended by itself"
        finally:
            swapper.kill()


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM (proc(5), statm)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
