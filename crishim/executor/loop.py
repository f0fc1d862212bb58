"""The event loop of zygote and monitor: epoll, callbacks by descriptor, nothing else.

`selectors` is not used: its registrations make cycles of objects per descriptor, and these processes run without a
garbage collector.
"""

from __future__ import annotations

import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Loop:
    """Calls the callback of each descriptor that is readable (or closed by its peer)."""

    __slots__ = ("_callbacks", "_epoll", "_failed", "_idle", "running")

    def __init__(self, idle: Callable[[], None], failed: Callable[[Exception], None] | None = None) -> None:
        """`idle` runs after a second without events that follows some.

        failed: told of an exception of a callback, whose descriptor is then left alone, since it would only raise
        again; without it the exception ends the loop.
        """
        self._failed = failed
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._idle = idle
        self.running = True

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback` whenever `fd` is readable; the descriptor stays its owner's."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, select.EPOLLIN)

    def watch_writable(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback` whenever `fd`, which is only written to, takes data."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, select.EPOLLOUT)

    def choose(self, fd: int, *, reads: bool, writes: bool) -> None:
        """Call the callback of a watched `fd` when it is readable, when it takes data, either, or neither.

        Neither of them leaves it alone, so its peer waits; the end of one that leaves then is told once.
        """
        events = (select.EPOLLIN if reads else 0) | (select.EPOLLOUT if writes else 0)
        # epoll_ctl(2): EPOLLHUP comes unasked, and would come for ever
        self._epoll.modify(fd, events or select.EPOLLET)

    def forget(self, fd: int) -> None:
        """Stop watching `fd`; to be called before it is closed."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def run(self) -> None:
        """Serve until `running` is False."""
        rested = True
        while self.running:
            events = self._epoll.poll(None if rested else 1.0)
            if not events:
                self._idle()
                rested = True
                continue
            rested = False
            for fd, _ in events:
                callback = self._callbacks.get(fd)  # an earlier callback of this round may have dropped it
                if callback is None:
                    continue
                try:
                    callback()
                except Exception as error:
                    if self._failed is None:
                        raise
                    self.forget(fd)
                    self._failed(error)

    def close(self) -> None:
        """Close the epoll descriptor; what was watched is its owners'."""
        self._epoll.close()
