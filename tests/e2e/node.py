"""A node of its own on this machine: namespaces, cgroups and directories that vanish when it is closed.

Nothing host-wide changes: mounts, addresses, rules and processes live in new namespaces, whose first process is
`agent.py`; only cgroup directories outlive those, and `close` removes them. Beyond its scope: what runs in the node.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM, Signals
from typing import Any, TypeVar

from crishim.linux.process import CLONE_NEWNET, setns
from tests.support.server import PATIENCE

T = TypeVar("T")

CGROUP_ROOT = Path("/sys/fs/cgroup")
POLL_S = 0.05
AGENT = Path(__file__).with_name("agent.py")


def wait_until(condition: Callable[[], T | None], *, deadline_s: float, what: str | Callable[[], str]) -> T:
    """The first true answer of the condition. Raises TimeoutError, which says what was waited for.

    `what` is a function when it describes a state: that at the end is of interest. On a slow machine, whose
    CRISHIM_TEST_PATIENCE says so, all takes that much longer.
    """
    deadline_s *= PATIENCE
    end = time.monotonic() + deadline_s
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > end:
            raise TimeoutError(f"not within {deadline_s:.0f} s: {what if isinstance(what, str) else what()}")
        time.sleep(POLL_S)


@dataclass(frozen=True)
class Reply:
    """An HTTP answer; status 0 means that there was none and the body says why."""

    status: int
    body: str

    def json(self) -> Any:
        return json.loads(self.body)


class Node:
    """Namespaces with an agent inside. Use as a context manager."""

    def __init__(self, address: str = "192.168.201.2", hostname: str = "node1") -> None:
        self.address = address
        self.hostname = hostname
        # short, since a socket path has at most 107 bytes; the name makes leftovers recognisable
        self.directory = Path(tempfile.mkdtemp(prefix="crishim-node-", dir="/tmp"))
        self.directory.chmod(0o755)
        self.cgroup = f"/{self.directory.name}"
        self._agent: subprocess.Popen[str] | None = None
        self.init_pid = 0
        #: what the machine had before, and its copies in the node's mount namespace
        self._inherited = _mount_targets("self")

    def __enter__(self) -> Node:
        try:
            self._make_cgroups()
            self._start_agent()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, *argv: str | Path, log: str, env: Mapping[str, str] | None = None) -> int:
        """Pid, as the node sees it, of a program started in the node's cgroup of daemons; its output goes to a log."""
        directories = [str(path / "daemons") for path in self.cgroup_directories()]
        command = [str(word) for word in argv]
        answer = self._ask(do="start", argv=command, log=str(self.log(log)), env=dict(env or {}), cgroups=directories)
        return int(answer["pid"])

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def signal(self, pid: int, number: Signals) -> None:
        self._ask(do="signal", pid=pid, number=int(number))

    def exit_code(self, pid: int) -> int | None:
        """Exit code of a program that `start` started; None while it runs."""
        code: int | None = self._ask(do="exit_of", pid=pid)["code"]
        return code

    def stop(self, pid: int, number: Signals = SIGTERM, *, deadline_s: float = 20.0) -> int:
        """Signals a started program and waits for its exit code."""
        self.signal(pid, number)
        wait_until(lambda: self.exit_code(pid) is not None, deadline_s=deadline_s, what=f"exit of process {pid}")
        return self.exit_code(pid) or 0

    def pids(self) -> set[int]:
        return set(self._ask(do="pids")["pids"])

    def http(self, method: str, url: str, *, timeout_s: float = 30.0) -> Reply:
        """One request from inside the node; certificates are not checked, they are the node's own."""
        answer = self._ask(do="http", method=method, url=url, timeout_s=timeout_s)
        return Reply(answer["status"], answer["body"])

    def run(self, *argv: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command in the node and returns its output; a failure tells what the command said."""
        enter = ["nsenter", "-t", str(self.init_pid), "-m", "-n", "-p", "-u", "-i", "--wd=/", "--"]
        command = [*enter, *(str(word) for word in argv)]
        ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120 * PATIENCE)
        if check and ended.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr or ended.stdout}")
        return ended

    def inside(self, *argv: str | Path) -> list[str]:
        """A command line for a client in the node's network that the caller runs, signals and waits for itself.

        It stays in the machine's other namespaces: to enter that of pids nsenter would fork and stand in between, and
        in that of mounts alone it would not find itself in /proc.
        """
        return ["nsenter", "-t", str(self.init_pid), "-n", "--", *(str(word) for word in argv)]

    def dial(self, port: int, host: str = "127.0.0.1") -> socket.socket:
        """A connection made inside the node's network; the caller owns it. Raises OSError when there is none."""
        path = f"/proc/{self.init_pid}/ns/net"

        def connect() -> socket.socket:
            with open(path) as namespace:
                setns(namespace.fileno(), CLONE_NEWNET)
            return socket.create_connection((host, port), timeout=60)

        with ThreadPoolExecutor(1) as thread:  # a namespace belongs to a thread, and this one ends at once
            return thread.submit(connect).result()

    def cgroup_directories(self) -> list[Path]:
        """This node's directory in every hierarchy of the machine."""
        return [mount / self.directory.name for mount in _hierarchies()]

    def cgroup_root(self) -> str:
        """What a kubelet's cgroups are below."""
        return self.cgroup

    def runtime_config(self) -> str:
        """What our server's configuration says of cgroups."""
        return f'[cgroups]\ndriver = "cgroupfs"\nparent = "{self.cgroup}/crishim"\n'

    def kubepods(self) -> list[Path]:
        """Directories of a kubelet's pods, whether they are there or not."""
        return [path / "kubepods" for path in self.cgroup_directories()]

    def pod_pattern(self, uid: str) -> str:
        """What the directory of a pod's cgroup is called, below one of `kubepods`; "*" is every pod."""
        return f"pod{uid}"

    def mounts(self) -> set[str]:
        """Targets of the mounts in the node's mount namespace that the machine did not have before the node."""
        return _mount_targets(str(self.init_pid)) - self._inherited

    def close(self) -> None:
        """Ends every process of the node, removes its cgroups and its directory."""
        if self._agent is not None:
            self._agent.kill()
            self._agent.wait()
            for stream in (self._agent.stdin, self._agent.stdout):
                if stream is not None:
                    with suppress(BrokenPipeError):
                        stream.close()
        for directory in self.cgroup_directories():
            _remove_cgroup(directory)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _make_cgroups(self) -> None:
        for directory in self.cgroup_directories():
            for path in (directory, directory / "daemons"):
                path.mkdir()
                for name in ("cpuset.cpus", "cpuset.mems"):
                    if (path / name).exists() and (path.parent / name).exists():
                        (path / name).write_text((path.parent / name).read_text())

    def _start_agent(self) -> None:
        scratch = self.directory / "scratch"
        scratch.mkdir()
        unshare = ["unshare", "-m", "-n", "-u", "-i", "-p", "--fork", "--kill-child=SIGKILL"]
        agent = self._run_agent(*unshare, scratch=str(scratch))
        self.init_pid = int(Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text())

    def _run_agent(self, *prefix: str, scratch: str) -> subprocess.Popen[str]:
        """The agent's process, once it is ready; scratch "": in the machine's own namespaces."""
        settings = {"hostname": self.hostname, "address": self.address, "scratch": scratch}
        command = [*prefix, sys.executable, "-I", "-S", str(AGENT), json.dumps(settings)]
        self._agent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._agent.stdout is not None
        if self._agent.stdout.readline().strip() != "ready":
            raise RuntimeError(f"the node's first process ended with {self._agent.wait()}")
        return self._agent

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._agent is not None and self._agent.stdin is not None and self._agent.stdout is not None
        print(json.dumps(request), file=self._agent.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._agent.stdout.readline())
        return answer


def _mount_targets(pid: str) -> set[str]:
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return {line.split(" ")[4] for line in lines}


def hierarchy_with(controller: str) -> Path:
    """Mount point of the hierarchy that has this controller: its own on v1, the one tree on v2."""
    if (CGROUP_ROOT / "cgroup.controllers").exists():
        return CGROUP_ROOT
    return CGROUP_ROOT / controller


def _hierarchies() -> Sequence[Path]:
    if (CGROUP_ROOT / "cgroup.controllers").exists():
        return [CGROUP_ROOT]
    # cpu and cpuacct may be links to one merged mount
    return sorted({path.resolve() for path in CGROUP_ROOT.iterdir() if path.is_dir()})


def _remove_cgroup(directory: Path) -> None:
    """Removes a cgroup and those below it, deepest first; its last processes may still be leaving."""

    def is_gone() -> bool:
        for path, _, _ in os.walk(directory, topdown=False):
            with suppress(OSError):
                os.rmdir(path)
        return not directory.exists()

    wait_until(is_gone, deadline_s=10, what=f"removal of the cgroup {directory}")
