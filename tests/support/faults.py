"""A server for tests that hurt it, and a look at what it is made of: its processes, their descriptors and memory."""

from __future__ import annotations

import json
import os
import platform
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from crishim.cri.client import messages as m
from tests.support.server import PATIENCE, Server, start_with_demo_image, wait_until

#: for what a busy machine may take its time over
PATIENCE_S = 60.0 * PATIENCE


@contextmanager
def server_with_image(directory: Path, *, config: str = "") -> Iterator[Server]:
    """A started server that knows the demo's image. At a good end its pods are removed and nothing may be left."""
    server = Server(directory, config=config)
    try:
        start_with_demo_image(server)
        yield server
        remove_all(server)
        wait_until(lambda: not server.left_behind(), "an empty node", PATIENCE_S)
    finally:
        server.close()


def remove_all(server: Server) -> None:
    """Remove every pod."""
    for pod in server.client.runtime("ListPodSandbox", m.ListPodSandboxRequest()).items:
        server.remove_pod(pod.id)


def why(server: Server, container: str) -> dict[str, Any]:
    """The story of one container."""
    (told,) = json.loads(server.client.why(container))["containers"]
    assert isinstance(told, dict)
    return told


def counter(server: Server, series: str) -> float:
    """Value of a series on the page of metrics, 0 when it is not there."""
    found = re.search(rf"^{re.escape(series)} ([0-9.e+]+)$", server.metrics(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def pids_of(server: Server, container: str) -> set[int]:
    """Every process of the container, seen from the machine; execs are in cgroups below it."""
    found = [path for root in server.container_cgroups(container) for path in [root, *root.rglob("*/")]]
    return {int(pid) for path in found if (pid_list := _text(path / "cgroup.procs")) for pid in pid_list.split()}


def zygote_of(server: Server) -> int | None:
    """Pid of the server's zygote; None while a new one starts."""
    assert server.process is not None
    for path in Path(f"/proc/{server.process.pid}/task").glob("*/children"):
        for pid in (_text(path) or "").split():
            if _text(Path(f"/proc/{pid}/comm")) == "crishim-zygote\n":
                return int(pid)
    return None


def monitor_of(server: Server, sandbox: str) -> int:
    """Pid of the sandbox's monitor: the process that listens on its socket's directory."""
    directory = os.fspath(server.state / "sandboxes" / sandbox)
    for pid in server.monitors():
        with suppress(FileNotFoundError):  # another pod's, which ends just now
            if any(os.path.realpath(fd) == directory for fd in Path(f"/proc/{pid}/fd").iterdir()):
                return pid
    raise AssertionError(f"sandbox {sandbox} has no monitor")


def descriptors(pid: int) -> int:
    """How many a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_bytes(pid: int) -> int:
    """Memory of a process that is not shared with a file."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def write_crasher(path: Path) -> None:
    """A program of this machine whose first instruction is at an address where nothing is: SIGSEGV."""
    machine = {"x86_64": 62, "aarch64": 183}[platform.machine()]
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0xDEAD000, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, 120, 120, 0x1000)
    path.write_bytes(ident + header + segment)
    path.chmod(0o755)


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
