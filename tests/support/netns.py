"""Network namespaces for tests. A namespace belongs to a thread, so tests need no process of their own for one.

Threads and programs started inside inherit it; it ends with the last of them and of its descriptors.
"""

from __future__ import annotations

import ctypes
import functools
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def in_new_netns(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: the function runs in a thread with an empty network namespace of its own."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        def body() -> T:
            _check(_libc.unshare(_CLONE_NEWNET))
            return function(*args, **kwargs)

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(body).result()

    return run


class Netns:
    """A further namespace, as a pod has it."""

    def __init__(self) -> None:
        with ThreadPoolExecutor(1) as thread:
            self.fd, self.netlink = thread.submit(self._make).result()

    def __enter__(self) -> Netns:
        return self

    def __exit__(self, *_: object) -> None:
        self.netlink.close()
        os.close(self.fd)

    @property
    def path(self) -> str:
        """Valid in this process and, while it lives, by number in others."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def run(self, function: Callable[[], T]) -> T:
        """The function's result, from a thread inside."""

        def body() -> T:
            _check(_libc.setns(self.fd, _CLONE_NEWNET))
            return function()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(body).result()

    @staticmethod
    def _make() -> tuple[int, socket.socket]:
        _check(_libc.unshare(_CLONE_NEWNET))
        netns = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        return netns, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
