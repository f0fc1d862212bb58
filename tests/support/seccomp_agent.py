"""A seccomp listener: it takes the descriptors that runtimes send, and answers the calls of their processes.

Sources: seccomp_unotify(2), linux/seccomp.h; OCI runtime spec, "The Container Process State".
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import Queue
from socket import AF_UNIX, SHUT_RDWR, SOCK_STREAM, recv_fds, socket
from typing import Any

from crishim.linux.syscall import MACHINE
from crishim.spec.seccomp_profile import numbers

_RECV, _SEND, _ID_VALID = 0xC0502100, 0xC0182101, 0x40082102
_CONTINUE_FLAG = 1
_NAMES = {number: name for name, number in numbers(MACHINE).items()}

#: an answer: let the kernel make the call
CONTINUE = "continue"


@dataclass(frozen=True)
class Call:
    """A call that waits. `pid` is the caller's, as the agent sees it."""

    fd: int
    id: int
    pid: int
    name: str
    args: tuple[int, ...]

    def is_waiting(self) -> bool:
        """Whether the caller still waits for this answer."""
        buffer = ctypes.c_uint64(self.id)
        try:
            fcntl.ioctl(self.fd, _ID_VALID, buffer)
        except OSError:  # ENOENT; EBADF when all who had the filter are dead, and the agent let go of it
            return False
        return True


#: gives CONTINUE, a value that the call gives, a negative errno, or None to leave it without answer
Answer = Callable[[Call], "str | int | None"]


class Agent:
    """Listens until `close`. `path` may be "@name" of an abstract socket."""

    def __init__(self, path: str, answer: Answer, backlog: int = 16) -> None:
        self.answer = answer
        self.calls: Queue[Call] = Queue()
        self.states: Queue[dict[str, Any]] = Queue()
        self._listener = socket(AF_UNIX, SOCK_STREAM)
        self._listener.bind("\0" + path[1:] if path.startswith("@") else path)
        self._listener.listen(backlog)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """Leave every caller without a listener, as the death of an agent does."""
        os.eventfd_write(self._stop, 1)
        self._listener.shutdown(SHUT_RDWR)
        while self._threads:  # the first one adds the others
            self._threads.pop(0).join()
        self._listener.close()
        os.close(self._stop)

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        poll = select.poll()
        for fd in (self._stop, self._listener.fileno()):
            poll.register(fd, select.POLLIN)
        while not any(fd == self._stop for fd, _ in poll.poll()):
            connection, _ = self._listener.accept()
            with connection:
                data, fds, _, _ = recv_fds(connection, 1 << 20, 4)
                while more := connection.recv(1 << 20):
                    data += more
            self.states.put(json.loads(data) | {"received": len(fds)})
            thread = threading.Thread(target=self._serve, args=(fds[0],))
            self._threads.append(thread)
            thread.start()

    def _serve(self, fd: int) -> None:
        poll = select.poll()
        for each in (self._stop, fd):
            poll.register(each, select.POLLIN)
        try:
            while True:
                ready = dict(poll.poll())
                if self._stop in ready or not ready[fd] & select.POLLIN:
                    return
                self._answer(fd)
        finally:
            os.close(fd)

    def _answer(self, fd: int) -> None:
        buffer = ctypes.create_string_buffer(80)
        try:
            fcntl.ioctl(fd, _RECV, buffer)
        except FileNotFoundError:  # the caller died
            return
        id_, pid, _, number, _, _, *args = struct.unpack("=QIIiIQ6Q", buffer.raw)
        call = Call(fd, id_, pid, _NAMES.get(number, str(number)), tuple(args))
        self.calls.put(call)
        answer = self.answer(call)
        if answer is None:
            return
        value = answer if isinstance(answer, int) else 0
        flags = _CONTINUE_FLAG if answer == CONTINUE else 0
        try:
            fcntl.ioctl(fd, _SEND, struct.pack("=QqiI", id_, max(value, 0), min(value, 0), flags))
        except FileNotFoundError:  # the caller died, or a signal took it away
            pass
