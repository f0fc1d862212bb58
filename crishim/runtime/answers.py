"""Monitors that do not answer: they are frozen, or wait for a dead disk. Nobody waits for them without a deadline.

Only the start of a container has none: it may take as long as its mounts, and a stop cancels it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import struct
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from crishim.errors import Unavailable
from crishim.executor import wire
from crishim.runtime.executor import Monitor

logger = logging.getLogger(__name__)

#: a monitor answers within a millisecond; one that is silent this long does not move
ANSWER_S = 10.0
#: how long the end of a killed process is waited for
_DEATH_S = 5.0

T = TypeVar("T")


class MonitorSilent(Unavailable):
    """The monitor is there and did not answer in time; it may still do later what it was asked for."""


async def answered(sandbox_id: str, request: Awaitable[T], within_s: float = ANSWER_S) -> T:
    """The answer to a request to the sandbox's monitor; MonitorSilent when there is none in time."""
    try:
        async with asyncio.timeout(within_s):
            return await request
    except TimeoutError:
        raise MonitorSilent(f"the monitor of sandbox {sandbox_id} does not answer") from None


async def end_monitor(monitor: Monitor, within_s: float = ANSWER_S) -> None:
    """Stop a monitor whose containers have ended; one that does not answer is killed."""
    try:
        await answered(monitor.sandbox_id, monitor.stop(), within_s)
    except MonitorSilent as error:
        logger.error("%s, and is killed", error)
        pidfd = os.dup(monitor.pidfd) if monitor.pidfd >= 0 else -1
        monitor.close()  # first: its end is not a loss
        await _kill(pidfd)


async def end_listener(directory: Path) -> bool:
    """Kill the monitor that listens in a sandbox's directory, one that no server could adopt; False: there is none.

    Its pid is that of the listening socket, looked at again once its pidfd is held (unix(7), SO_PEERCRED).
    """
    pid = _listener(directory)
    if pid is None:
        return False
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        if _listener(directory) == pid:
            logger.error("the monitor of sandbox %s, process %d, cannot be asked, and is killed", directory.name, pid)
            await _kill(pidfd)
        else:
            os.close(pidfd)
    return True


async def until_gone(pidfd: int) -> None:
    """Until the process of a pidfd has ended."""
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(pidfd, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(pidfd)


async def _kill(pidfd: int) -> None:
    """SIGKILL, and wait a little for the end; takes the descriptor."""
    if pidfd < 0:
        return
    try:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        with suppress(TimeoutError):
            async with asyncio.timeout(_DEATH_S):
                await until_gone(pidfd)
    finally:
        os.close(pidfd)


def _listener(directory: Path) -> int | None:
    """Pid of the process behind the monitor's socket, None when nobody listens."""
    with suppress(OSError):
        place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as sock:
                sock.connect(b"/proc/self/fd/%d/%b" % (place, wire.MONITOR_SOCKET))
                pid, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        finally:
            os.close(place)
        return int(pid) if pid > 0 and uid == os.geteuid() else None
    return None
