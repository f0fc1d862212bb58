"""What recording and replaying a conversation do alike to a monitor's process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.support.container import wait_until


def children(pid: int) -> list[int]:
    """Its child processes."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def freeze(pid: int) -> None:
    """SIGSTOP, and wait until it stands."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "a frozen monitor")


def thaw(pid: int) -> None:
    """SIGCONT."""
    os.kill(pid, signal.SIGCONT)
