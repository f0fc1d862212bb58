"""What has to be taken back when an operation fails half-way: in reverse order, every step, whatever each one says."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from types import TracebackType

logger = logging.getLogger(__name__)


class Undo:
    """`async with Undo() as undo`: push the inverse of each effect after it, and `keep` when all went well.

    A failed inverse is noted on the error that started it and hides nothing. Then `stuck` runs in place of `released`.
    """

    def __init__(
        self,
        released: Callable[[], Awaitable[object]] | None = None,
        stuck: Callable[[str], Awaitable[object]] | None = None,
    ) -> None:
        """released: the last inverse, run when all others worked. stuck: told what could not be taken back."""
        self._released = released
        self._stuck = stuck
        self._inverses: list[tuple[str, Callable[[], Awaitable[object]]]] = []

    def push(self, what: str, inverse: Callable[[], Awaitable[object]]) -> None:
        """`what` says in a message which inverse failed ("the network")."""
        self._inverses.append((what, inverse))

    def keep(self) -> None:
        """All effects stay."""
        self._inverses.clear()
        self._released = self._stuck = None

    async def __aenter__(self) -> Undo:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.keep()
            return
        problems: list[str] = []
        for what, inverse in reversed(self._inverses):
            await _try(what, inverse, error, problems)
        if not problems and self._released is not None:
            await _try("the reservation", self._released, error, problems)
        if problems and self._stuck is not None:
            sentence = "; ".join(problems)
            stuck = self._stuck
            await _try("the status", lambda: stuck(sentence), error, [])


async def _try(what: str, inverse: Callable[[], Awaitable[object]], error: BaseException, problems: list[str]) -> None:
    try:
        await inverse()
    except Exception as failure:
        problems.append(f"{what} could not be taken back: {failure}")
        error.add_note(problems[-1])
        logger.warning("%s", problems[-1], exc_info=failure)
