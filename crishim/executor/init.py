"""An init process, as the monitor that is its parent sees it: watched until its end, its output pumped into the log."""

from __future__ import annotations

import fcntl
import os
import time
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, socket, socketpair

from crishim.errors import InvalidSpec
from crishim.executor.attach import Client, Stdin
from crishim.executor.prepare import StepFailed
from crishim.logs.writer import LogWriter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from crishim.executor.loop import Loop
    from crishim.executor.net_devices import NetDevices

_READ_BYTES = 1 << 18
#: a pipe that was found full is given this size, so that a flood costs fewer wake-ups
_FLOOD_PIPE_BYTES = 1 << 18
_DEFAULT_PIPE_BYTES = 1 << 16
#: reads of one pipe before other descriptors have their turn
_TURNS = 4


class InitProcess:
    """A container of this pod. Owns its pidfd, its output pipes (or pty master), its stdin pipe and its log.

    It has a pidfd from the starter's answer to its exit.
    """

    __slots__ = (
        "asking",
        "cancelling",
        "cgroup",
        "exit",
        "hooks",
        "id",
        "log",
        "net_devices",
        "outputs",
        "own_pid_namespace",
        "phases_ns",
        "pid",
        "pidfd",
        "rdt",
        "started_at_ns",
        "starter",
        "starter_pidfd",
        "stdin",
        "terminal",
    )

    def __init__(self, request: dict[str, object]) -> None:
        """From the body of START_CONTAINER."""
        self.id: bytes = request["id"]  # type: ignore[assignment]
        self.cgroup = str(request["cgroup"])
        self.own_pid_namespace = bool(request["own_pid_namespace"])
        #: connection of the server that began the start
        self.starter: socket | None = None
        #: the process that starts it, while it is at work
        self.starter_pidfd = -1
        #: requests to end the start, whatever it waits for: answered when it is over
        self.cancelling: list[tuple[socket, int]] = []
        #: connection and sequence number of the request that waits for the start
        self.asking: tuple[socket, int] | None = None
        #: durations: cgroup, mounts, clone, setup
        self.phases_ns: dict[str, int] = {}
        self.pid = 0
        self.pidfd = -1
        self.started_at_ns = 0
        #: descriptor to read -> stream number of the log (1 stdout, 2 stderr)
        self.outputs: dict[int, int] = {}
        self.terminal = bool(request["terminal"])
        self.stdin = Stdin(once=bool(request["stdin_once"]), terminal=self.terminal)
        log = request["log"]
        self.log = LogWriter(log[0], log[1]) if isinstance(log, list) else None
        #: of `hooks.Hooks`, for what comes after its end; None without hooks
        self.hooks: dict[str, object] | None = request.get("hooks")  # type: ignore[assignment]
        #: of `cgroups.resctrl`, None without a class of service
        self.rdt: dict[str, object] | None = request.get("rdt")  # type: ignore[assignment]
        #: what was moved into its network namespace, until it is given back
        self.net_devices: NetDevices | None = None
        #: the exit record, None while it runs
        self.exit: dict[str, object] | None = None

    def open_log(self) -> None:
        """Open the log, so that it is there when the start succeeds; StepFailed names it."""
        if self.log is None:
            return
        try:
            self.log.open()
        except OSError as error:
            path = (self.log.directory + b"/" + self.log.path).decode("utf-8", "replace")
            raise StepFailed(f'opening the log "{path}": {os.strerror(error.errno or 0).lower()}') from None
        except InvalidSpec as error:
            raise StepFailed(str(error)) from None

    def take(self, body: dict[str, object], fds: list[int]) -> None:
        """What the starter made: the process and our ends of its stdio."""
        self.started_at_ns = time.time_ns()
        self.pid = body["pid"]  # type: ignore[assignment]
        self.pidfd = fds[0]
        self.outputs = dict(zip(fds[1:], body["streams"]))  # type: ignore[call-overload]
        if body["stdin"]:
            self.stdin.fd = fds[-1]

    def watch_output(self, loop: Loop) -> None:
        """Pump the output into the log as it comes."""
        for fd, stream in self.outputs.items():
            loop.watch(fd, self._pump_of(loop, fd, stream))

    def _pump_of(self, loop: Loop, fd: int, stream: int) -> Callable[[], None]:
        def pump() -> None:
            self._pump(loop, fd, stream, _TURNS)

        return pump

    def _pump(self, loop: Loop, fd: int, stream: int, turns: int) -> bool:
        """Read up to `turns` times; whether the stream ended."""
        while turns:
            try:
                data = os.read(fd, _READ_BYTES)
            except BlockingIOError:
                return False
            except OSError:  # EIO: the last process with the terminal open is gone
                data = b""
            if not data:
                self._end(loop, fd, stream)
                return True
            if self.log is not None:
                self.log.feed(stream, data)
            for client in list(self.stdin.clients):
                client.send(stream, data)
            if len(data) == _DEFAULT_PIPE_BYTES and not self.terminal:
                _enlarge(fd)
            turns -= 1
        return False

    def _end(self, loop: Loop, fd: int, stream: int) -> None:
        loop.forget(fd)
        os.close(fd)
        del self.outputs[fd]
        if self.log is not None:
            self.log.end(stream)

    def drain(self, loop: Loop) -> None:
        """Read what is still in the pipes of an ended process, then let go of them.

        A process outside of the container may hold a pipe; what it writes from now on is not the container's.
        """
        for fd, stream in list(self.outputs.items()):
            if not self._pump(loop, fd, stream, 64):
                self._end(loop, fd, stream)
        self.stdin.close(loop)
        for client in list(self.stdin.clients):
            client.end()
        if self.log is not None:
            self.log.close()

    def attach(self, loop: Loop) -> int:
        """The other end of a new client; the caller owns it. StepFailed when the container has ended."""
        if self.exit is not None:
            raise StepFailed("the container has ended")
        ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        Client(loop, self.stdin, ours)
        return theirs.detach()

    def reopen_log(self) -> None:
        """ReopenContainerLog: the log was renamed. StepFailed when the process has none; OSError keeps the old file."""
        if self.log is None or self.exit is not None:
            raise StepFailed("the container has no open log")
        self.log.reopen()

    def log_bytes_lost(self) -> int:
        """Bytes of output that could not be written."""
        return 0 if self.log is None else self.log.bytes_lost

    def close(self, loop: Loop) -> None:
        """Let go of everything."""
        for fd in list(self.outputs):
            loop.forget(fd)
            os.close(fd)
        self.outputs = {}
        for client in list(self.stdin.clients):
            client.close()
        self.stdin.close(loop)
        if self.log is not None:
            self.log.close()
        self.close_pidfd()

    def close_pidfd(self) -> None:
        """The process is reaped, or was never there."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def _enlarge(fd: int) -> None:
    try:
        fcntl.fcntl(fd, 1031, _FLOOD_PIPE_BYTES)  # F_SETPIPE_SZ
    except OSError:
        pass  # EPERM: the user's share of pipe pages is used up
