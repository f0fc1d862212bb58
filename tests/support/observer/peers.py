"""The same container and exec under a runtime with OCI's command line: runc and crun."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e import tools
from tests.support.observer import normal, oci
from tests.support.observer.containers import Observed
from tests.support.observer.program import read_observation


@dataclass(frozen=True)
class Peer:
    """A runtime on this machine."""

    name: str
    version: str
    program: Path


def find_peers() -> list[Peer]:
    """runc as it was built for tests, and crun from PATH; what is not there is left out."""
    programs = {"runc": tools.find("runc"), "crun": shutil.which("crun")}
    return [Peer(name, _version(str(path)), Path(path)) for name, path in programs.items() if path]


def _version(program: str) -> str:
    said = subprocess.run([program, "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout
    found = re.search(r"version (\S+)", said)
    assert found, said
    return found[1]


def observe(peer: Peer, observed: Observed, directory: Path) -> dict[str, dict[str, str]]:
    """What the program says as "init" and as "exec", and what the host sees of it.

    directory: an empty one for bundle and state. The caller is a subreaper: a detached process becomes its child.
    """
    spec = observed.spec
    (directory / "config.json").write_text(json.dumps(oci.config(spec, observed.seccomp, observed.host_id)))
    (directory / "process.json").write_text(json.dumps(oci.process(spec.process)))
    call = [peer.program, "--root", directory / "state"]
    commands = {
        "init": [*call, "run", "--bundle", directory, spec.id],
        "exec": [*call, "exec", "--process", directory / "process.json", spec.id],
    }
    seen, pids = {}, []
    try:
        for role, command in commands.items():
            with _started(command, directory, spec.process.terminal) as (pid, fd):
                pids.append(pid)
                seen[role] = read_observation(fd) | normal.outside(pid, pids[0])
    finally:
        for pid in reversed(pids):  # the end of an init waits for those of its namespace to be reaped
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        subprocess.run([*call, "delete", "--force", spec.id], check=True)
    return seen


@contextmanager
def _started(command: list[str | Path], directory: Path, terminal: bool) -> Iterator[tuple[int, int]]:
    """(pid, descriptor on which it speaks) of a process that the runtime has started and left."""
    pid_file = directory / "pid"
    # the identity of the container is the last word of `run`, but the first of what `exec` does not know as an option
    command = [*command[:-1], "--detach", "--pid-file", pid_file, command[-1]]
    if terminal:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            place = directory / "console"
            place.unlink(missing_ok=True)
            listener.bind(str(place))
            listener.listen(1)
            subprocess.run(
                [*command[:-1], "--console-socket", place, command[-1]], check=True, stdin=subprocess.DEVNULL
            )
            connection, _ = listener.accept()
            with connection:
                _, descriptors, _, _ = socket.recv_fds(connection, 4096, 1)
        fd = descriptors[0]
    else:
        fd, writing = os.pipe()
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=writing, stderr=writing)
        os.close(writing)
        if ended.returncode:
            said = os.read(fd, 4096)
            os.close(fd)
            raise RuntimeError(f"{command} ended with {ended.returncode}: {said!r}")
    try:
        yield int(pid_file.read_text()), fd
    finally:
        os.close(fd)
