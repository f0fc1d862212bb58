"""Starts a zygote: the interpreter from a sealed memfd, so that no container can write to what runs inside it.

`python -I -S -E` reads no environment, no site and no user directory. The copy is made once per server and kept sealed
(CVE-2019-5736); a new zygote is spawned by posix_spawn(3), which is safe in a process with threads.
"""

from __future__ import annotations

import fcntl
import os
import sys
from _socket import socket
from collections.abc import Callable

import crishim
from crishim.executor import wire

_F_ADD_SEALS = 1033
#: SEAL, SHRINK, GROW, WRITE
_SEALS = 0xF
_CONTROL_FD = 3
_BOOTSTRAP = "import sys; sys.path.insert(0, {root!r}); from crishim.executor.zygote import main; main({fd})"


def sealed_interpreter() -> int:
    """Descriptor of a sealed copy of this interpreter's program file; the caller keeps it open."""
    base = str(getattr(sys, "_base_executable", sys.executable))
    fd = os.memfd_create("crishim", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(base, "rb") as program:
        left = os.fstat(program.fileno()).st_size
        while left:
            left -= os.sendfile(fd, program.fileno(), None, left)
    os.fchmod(fd, 0o500)
    fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)  # out of the way of _CONTROL_FD
    os.close(fd)
    return high


def spawn_zygote(
    interpreter: int, arguments: dict[str, object], place: Callable[[int], None] | None = None
) -> tuple[int, socket]:
    """(pid, control socket) of a new zygote that was told `arguments`; its first message says that it is ready.

    place: called with its pid while it waits to be told; what it raises ends the zygote.
    """
    ours, theirs = wire.pair()
    root = os.path.dirname(os.path.dirname(os.path.abspath(crishim.__file__)))
    base = str(getattr(sys, "_base_executable", sys.executable))
    argv = [base, "-I", "-S", "-E", "-c", _BOOTSTRAP.format(root=root, fd=_CONTROL_FD)]
    try:
        pid = os.posix_spawn(
            f"/proc/self/fd/{interpreter}",
            argv,
            {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")},
            file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), _CONTROL_FD)],
            setsigdef=range(1, 32),
            setsigmask=[],
        )
    finally:
        theirs.close()
    try:
        if place is not None:
            place(pid)
        wire.send(ours, wire.OK, 0, b"", arguments)
    except BaseException:
        ours.close()  # it reads the end of file, and ends
        os.waitpid(pid, 0)
        raise
    return pid, ours


def arguments(hierarchy: dict[str, object], cgroup: str, roles: dict[str, str]) -> dict[str, object]:
    """The first message to a zygote: trees, its own cgroup, roles ("module:function") and where packages are."""
    packages = [path for path in sys.path if path.endswith("site-packages")]
    return {"hierarchy": hierarchy, "cgroup": cgroup, "roles": dict(roles), "path": packages}
