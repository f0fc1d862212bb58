"""What attackers bring: hostile layers, names that are exchanged in a loop, and the directories they must not reach."""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
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


def exchange(first: Path, second: Path) -> None:
    """Exchange two names, once (renameat2(2), RENAME_EXCHANGE)."""
    if ctypes.PyDLL(None).syscall(_RENAMEAT2, -100, os.fsencode(first), -100, os.fsencode(second), 2) != 0:
        raise OSError(f"{first} and {second} were not exchanged")


_FAN_CLOEXEC, _FAN_CLASS_CONTENT, _FAN_MARK_ADD, _FAN_ALLOW = 0x1, 0x4, 0x1, 1
_FAN_OPEN_PERM, _FAN_EVENT_ON_CHILD = 0x1_0000, 0x0800_0000
#: of an event: its length, version, length of this head, mask, a descriptor of the file, the pid of who opens it
_FAN_EVENT = struct.Struct("=IBxHQii")


@contextmanager
def at_each_open(directory: Path, act: Callable[[str], None]) -> Iterator[None]:
    """Who opens something in the directory stands still there, while `act` is called with the name (fanotify(7)).

    So a race is no matter of luck. `act` must open nothing in the directory. Skips where the kernel cannot.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    notices = libc.fanotify_init(_FAN_CLASS_CONTENT | _FAN_CLOEXEC, os.O_RDONLY | os.O_CLOEXEC)
    if notices < 0:
        pytest.skip(f"fanotify is needed to hold an open: {os.strerror(ctypes.get_errno())}")
    mask = ctypes.c_uint64(_FAN_OPEN_PERM | _FAN_EVENT_ON_CHILD)
    assert libc.fanotify_mark(notices, _FAN_MARK_ADD, mask, -100, os.fsencode(directory)) == 0
    over = os.eventfd(0, os.EFD_CLOEXEC)

    def answer() -> None:
        while over not in select.select([notices, over], [], [])[0]:
            for _, _, _, _, opened, _ in _FAN_EVENT.iter_unpack(os.read(notices, 100 * _FAN_EVENT.size)):
                try:
                    act(os.path.basename(os.readlink(f"/proc/self/fd/{opened}")))
                finally:
                    os.write(notices, struct.pack("=iI", opened, _FAN_ALLOW))
                    os.close(opened)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        os.eventfd_write(over, 1)
        thread.join()
        os.close(notices)  # who still waits goes on
        os.close(over)


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM (proc(5), statm)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
