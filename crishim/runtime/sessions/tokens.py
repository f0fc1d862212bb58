"""Tokens of streaming sessions: each stands for one validated request, once, for a minute; they die with the server."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from crishim.errors import Exhausted
from crishim.model.session import SessionRequest

LIFE_S = 60.0
MAX_TOKENS = 1000
_TOKEN_BYTES = 18


class Tokens:
    """Outstanding tokens, oldest first."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._requests: dict[str, tuple[float, SessionRequest]] = {}

    def mint(self, request: SessionRequest) -> str:
        """A token for this request; Exhausted when MAX_TOKENS wait to be used."""
        self._drop_expired()
        if len(self._requests) >= MAX_TOKENS:
            raise Exhausted(f"{MAX_TOKENS} streaming sessions were asked for and not begun; try again in a minute")
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        self._requests[token] = (self._clock() + LIFE_S, request)
        return token

    def take(self, token: str) -> SessionRequest | None:
        """The request of a token, which is used up by this; None when it is unknown, used or too old."""
        self._drop_expired()
        _, request = self._requests.pop(token, (0.0, None))
        return request

    def _drop_expired(self) -> None:
        now = self._clock()
        for token, (expires, _) in list(self._requests.items()):
            if expires > now:
                return
            del self._requests[token]
