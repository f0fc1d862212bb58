"""A server from start to end: lock, zygote, wiring, signals.

The order matters: state and root directory are locked first, and the zygote is started before grpc is imported and
before there is a thread. `wiring.py`, which loads everything else, is therefore imported late.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crishim.app.cgroups import Cgroups
from crishim.config import Config
from crishim.errors import Unavailable, Unsupported
from crishim.executor.client import Executor

if TYPE_CHECKING:
    from crishim.app.wiring import Server

#: what children of the zygote can do besides being monitors and execs
ROLES = {
    "poststop": "crishim.executor.poststop:run_role",
    "unpack": "crishim.images.roles:unpack",
    "adopt_parents": "crishim.images.parents:adopt_parents",
    "count_layers": "crishim.images.counting:count_layers",
    "copy_volumes": "crishim.images.volumes:copy_volumes",
    "find_paths": "crishim.images.roles:find_paths",
    "read_users": "crishim.images.roles:read_users",
    "remove_pin": "crishim.executor.pins:remove_pin",
    "detach_mounts": "crishim.executor.pins:detach_mounts",
    "inventory": "crishim.executor.inventory:inventory",
    "filter_users": "crishim.executor.inventory:filter_users",
    "hold": "crishim.executor.standin:hold",
    "relabel": "crishim.executor.relabel:relabel",
    "sources": "crishim.executor.sources:look_at_sources",
    "user_namespaces": "crishim.executor.userns_probe:try_user_namespaces",
}

logger = logging.getLogger(__name__)


def serve(reread: Callable[[], Config]) -> None:
    """Serve until SIGTERM or SIGINT; pods go on. CrishimError with one sentence when it cannot start.

    reread: brings the configuration, now and at each SIGHUP.
    """
    gc.disable()  # until it is ready: nothing of what a start makes is garbage, and looking for it costs a tenth
    config = reread()
    configure_logging(config.server.log_level)
    with_root()
    locks = [lock_directory(config.server.state, "state"), lock_directory(config.server.root, "root")]
    try:
        cgroups = Cgroups.of(config)
        executor = Executor.launch(cgroup=cgroups.monitors, roles=ROLES, place=cgroups.place())
        if "CAP_SYS_RESOURCE" not in executor.node.capabilities:
            logger.warning(
                "CAP_SYS_RESOURCE is missing: hard limits cannot be raised and oom_score_adj cannot be lowered for"
                " containers; both stay as near as the kernel allows"
            )
        asyncio.run(_serve(config, cgroups, reread, executor))
    finally:
        for lock in locks:
            os.close(lock)


async def _serve(config: Config, cgroups: Cgroups, reread: Callable[[], Config], executor: Executor) -> None:
    from crishim.app.wiring import Server

    server = Server(config, cgroups, executor)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    asked_to_reload = asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, asked_to_reload.set)
    try:
        await server.start()
        loop.add_signal_handler(signal.SIGHUP, server.reload_later, reread)
        if asked_to_reload.is_set():
            server.reload_later(reread)
        gc.freeze()
        gc.enable()
        _say_ready(config, server)
        await stopping.wait()
        logger.info("stopping; pods go on")
        notify("STOPPING=1")
    finally:
        await server.stop()


def _say_ready(config: Config, server: Server) -> None:
    print(f"crishim is ready on unix://{config.server.listen}", file=sys.stderr, flush=True)
    if server.metrics_address:
        print(f"crishim has metrics on http://{server.metrics_address}/metrics", file=sys.stderr, flush=True)
    notify("READY=1")


def with_root() -> None:
    """Unsupported for a user who is not root: namespaces and cgroups of pods need it."""
    if os.geteuid() != 0:
        raise Unsupported("crishim needs root: it makes namespaces, cgroups and mounts for pods")


def lock_directory(directory: Path, what: str) -> int:
    """Descriptor that holds the lock of the state or root directory (`what`).

    Unavailable when another server has it, or when it cannot be a directory. The lock ends with the process, however
    it ends (flock(2)).
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise Unavailable(f"server.{what} (--{what}): {directory} cannot be used: {reason}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Unavailable(f"another crishim server uses the {what} directory {directory}") from None
    return fd


class _OneLine(logging.Formatter):
    """One line for each message: names of pods and texts of images are part of it, and could forge lines or terminals.

    A traceback has several lines, none of which holds anything else than printable characters.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return "\n".join(_printable(line) for line in super().formatException(ei).split("\n"))


def _printable(text: str) -> str:
    """The text with "\\n", "\\x1b" and the like for characters that do more than to be seen."""
    return text if text.isprintable() else "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def configure_logging(level: str) -> None:
    """Lines on standard error; a service manager adds the time."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def notify(state: str) -> None:
    """Tell the service manager, when there is one. Source: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.sendto(state.encode(), address)
