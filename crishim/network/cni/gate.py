"""Lets many attach at once, or one collect garbage: GC names what is valid, so nothing may be added meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """A lock that many hold together or one alone; who wants it alone is not overtaken for ever."""

    def __init__(self) -> None:
        #: held while passing in, and for the whole time by who has the gate alone
        self._entrance = asyncio.Lock()
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        async with self._entrance:
            self._inside += 1
            self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if self._inside == 0:
                self._empty.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        async with self._entrance:
            await self._empty.wait()
            yield
