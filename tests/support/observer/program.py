"""The observing program: built once, copied into a fresh root, and read until it has said everything."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
from pathlib import Path

MARKER = "observed"
"""File in "/" without which the program refuses to run."""

_SOURCES = Path(__file__).parent
_END = b"\nend\t1"
_DEADLINE_S = 60.0


def build(directory: Path) -> Path:
    """The static program, compiled into `directory`. CalledProcessError when a compiler or a static libc is missing."""
    program = directory / "observe"
    sources = sorted(_SOURCES.glob("*.c"))
    subprocess.run(["gcc", "-static", "-O1", "-Wall", "-Wextra", "-Werror", "-s", "-o", program, *sources], check=True)
    return program


def make_root(root: Path, program: Path, owner: int = 0) -> None:
    """A small root with the program in it, in the place of whatever was there; `owner` is the uid and gid of all."""
    shutil.rmtree(root, ignore_errors=True)
    for name in ("bin", "etc", "tmp", "masked-directory", "readonly-directory", "private"):
        (root / name).mkdir(parents=True)
        (root / name).chmod(0o755)
    root.chmod(0o755)
    (root / "tmp").chmod(0o1777)
    (root / "private").chmod(0o700)
    shutil.copy2(program, root / "bin/observe")
    files = {
        MARKER: "",
        "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nobserver:x:1000:1000::/home/observer:/bin/sh\n",
        "etc/group": "root:x:0:\nobserver:x:1000:\n",
        "masked-file": "secret\n",
        "masked-directory/inside": "secret\n",
        "readonly-file": "text\n",
        "readonly-directory/inside": "text\n",
    }
    for name, text in files.items():
        (root / name).write_text(text)
        (root / name).chmod(0o644)
    for path in (root, *root.rglob("*")):
        os.chown(path, owner, owner)


def read_observation(fd: int) -> dict[str, str]:
    """What the program says on `fd`, a pipe or a terminal's master, until it is at its end.

    RuntimeError with what came when there is no end: the program, or the runtime that starts it, has failed.
    """
    said = b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + _DEADLINE_S
    while _END not in said:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise RuntimeError(f"no end after {said[-2000:]!r}")
        try:
            data = os.read(fd, 1 << 16)
        except OSError:  # a terminal that nobody has open any more
            data = b""
        if not data:
            raise RuntimeError(f"end of file after {said[-2000:]!r}")
        said += data
    lines = said.decode().replace("\r\n", "\n").splitlines()
    return dict(line.split("\t", 1) for line in lines if "\t" in line)
