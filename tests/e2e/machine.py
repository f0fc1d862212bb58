"""The machine itself as a node, for the systemd cgroup driver: only where it is thrown away, as that of `tests.node`.

systemd's manager knows processes by the machine's pids, and the kubelet's slices are the machine's, so namespaces of
a node's own would lie to both.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL

from tests.e2e.node import CGROUP_ROOT, Node


class Machine(Node):
    """Its processes end with it; cgroups are systemd's to remove."""

    def __init__(self) -> None:
        super().__init__()
        self._started: list[int] = []

    def start(self, *argv: str | Path, log: str, env: Mapping[str, str] | None = None) -> int:
        self._started.append(super().start(*argv, log=log, env=env))
        return self._started[-1]

    def cgroup_directories(self) -> list[Path]:
        return []

    def cgroup_root(self) -> str:
        return "/"

    def runtime_config(self) -> str:
        return '[cgroups]\ndriver = "systemd"\n'

    def kubepods(self) -> list[Path]:
        return [CGROUP_ROOT / "kubepods.slice"]

    def pod_pattern(self, uid: str) -> str:
        return f"*-pod{uid.replace('-', '_')}.slice"

    def close(self) -> None:
        for pid in self._started:
            with suppress(ProcessLookupError):
                os.kill(pid, SIGKILL)
        super().close()
        subprocess.run(["ip", "link", "delete", "node0"], check=False, capture_output=True)

    def _start_agent(self) -> None:
        self.init_pid = self._run_agent(scratch="").pid
