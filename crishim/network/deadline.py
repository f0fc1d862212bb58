"""One deadline for both networks: TimedOut, with a sentence that says what did not happen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from crishim.errors import TimedOut


@asynccontextmanager
async def deadline(seconds: float, what: str) -> AsyncIterator[None]:
    """Cancels the body after `seconds`. TimedOut says `what`, for instance "the network was not removed"."""
    try:
        async with asyncio.timeout(seconds) as timeout:
            yield
    except TimeoutError as error:
        if not timeout.expired():
            raise
        raise TimedOut(f"{what} within {seconds:g} s") from error
