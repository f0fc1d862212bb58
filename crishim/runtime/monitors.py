"""The monitors of pods as processes of their own: which version each runs, since when, and how much memory it takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crishim.model.node import MonitorProcess
from crishim.runtime.helper import Helper
from crishim.runtime.live import Live

_KIB = 1024


class Monitors:
    """The use case of `cri.use_cases.Monitors`."""

    def __init__(self, live: Live, helper: Helper) -> None:
        self._live = live
        self._helper = helper

    async def list(self) -> Sequence[MonitorProcess]:
        """Those that this server is connected to; no monitor is asked, what it told at the beginning is remembered."""
        monitors = sorted(self._live.monitors(), key=lambda monitor: monitor.began_at_ns)
        memory = await self._helper.run(_memory, [monitor.pid for monitor in monitors])
        return [
            MonitorProcess(
                sandbox_id=monitor.sandbox_id,
                pid=monitor.pid,
                version=monitor.version,
                wire_version=monitor.wire_version,
                began_at_ns=monitor.began_at_ns,
                memory_bytes=own_bytes,
            )
            for monitor, own_bytes in zip(monitors, memory)
        ]


def _memory(pids: Sequence[int]) -> list[int | None]:
    return [_own_bytes(pid) for pid in pids]


def _own_bytes(pid: int) -> int | None:
    """Private pages: a fork shares the rest with its zygote. proc_pid_smaps(5)."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    lines = [line.split() for line in text.splitlines()]
    return sum(int(line[1]) for line in lines if line[0] in ("Private_Clean:", "Private_Dirty:")) * _KIB
