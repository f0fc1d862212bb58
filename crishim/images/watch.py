"""A watch over the connections to registries: one that brings too little, or that nobody wants any more, is cut.

A thread that reads from a registry waits in the kernel, and the timeout of a socket is begun anew by each byte. So a
server that sends a byte a minute, of a header or of a trailer that has no end, would keep the thread for ever, also
when its pull was given up long ago; and with enough of such pulls nobody pulls anything any more.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

_LOOK_EVERY_S = 0.5
_thread = threading.local()


class Watched:
    """One attempt of one thread. `cut` says that its connection was closed by us."""

    def __init__(self, stop: threading.Event) -> None:
        self.cut = False
        self._stop = stop
        self._socket: socket.socket | None = None
        self._since_s = time.monotonic()
        self._received = 0

    def connected(self, sock: socket.socket | None) -> None:
        """A request was sent over this socket, and its answer is waited for."""
        self._socket = sock

    def received(self, count: int) -> None:
        """So much of a body has come."""
        self._received += count

    def look(self, window_s: float, window_bytes: int) -> None:
        """Cut it when it is not wanted, or has brought less than `window_bytes` in the last `window_s`."""
        now = time.monotonic()
        if now - self._since_s >= window_s and self._received >= window_bytes:
            self._since_s, self._received = now, 0
        if self._stop.is_set() or now - self._since_s >= window_s:
            self.cut = True
            if self._socket is not None:
                with suppress(OSError):  # it ended by itself
                    # that of TLS would say good-bye first, and touch what the reading thread is working with
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class Watch:
    """Looks after all attempts of a client; its thread lives while there are any."""

    def __init__(self, window_s: float, window_bytes: int) -> None:
        """An attempt whose bodies bring less than `window_bytes` in `window_s` is cut; heads count for nothing."""
        self._window_s = window_s
        self._window_bytes = window_bytes
        self._lock = threading.Lock()
        self._attempts: set[Watched] = set()
        self._looks = False

    @contextmanager
    def over(self, stop: threading.Event) -> Iterator[Watched]:
        """While it is open, requests of this thread are watched; they end soon after `stop` is set."""
        watched = Watched(stop)
        with self._lock:
            self._attempts.add(watched)
            if not self._looks:
                self._looks = True
                threading.Thread(target=self._run, name="registry-watch", daemon=True).start()
        _thread.watched = watched
        try:
            yield watched
        finally:
            _thread.watched = None
            with self._lock:  # from here on its socket is somebody else's
                self._attempts.discard(watched)

    def _run(self) -> None:
        while True:
            time.sleep(_LOOK_EVERY_S)
            with self._lock:
                if not self._attempts:
                    self._looks = False
                    return
                for watched in self._attempts:
                    watched.look(self._window_s, self._window_bytes)


def received(count: int) -> None:
    """So much of a body has come to this thread."""
    watched = getattr(_thread, "watched", None)
    if watched is not None:
        watched.received(count)


class _Connection(HTTPConnection):
    def getresponse(self) -> Any:
        _connected(self.sock)
        return super().getresponse()


class _SecureConnection(HTTPSConnection):
    def getresponse(self) -> Any:
        _connected(self.sock)
        return super().getresponse()


def _connected(sock: socket.socket | None) -> None:
    watched = getattr(_thread, "watched", None)
    if watched is not None:
        watched.connected(sock)


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


def watchable(pools: urllib3.PoolManager) -> urllib3.PoolManager:
    """The same, with connections that a watch can cut."""
    pools.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
    return pools
