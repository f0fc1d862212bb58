"""Tokens: once, for a minute, and not too many."""

from __future__ import annotations

import pytest

from crishim.errors import Exhausted
from crishim.model.session import PortForwardRequest
from crishim.runtime.sessions.tokens import LIFE_S, MAX_TOKENS, Tokens

REQUEST = PortForwardRequest("sandbox")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_token_is_good_once() -> None:
    tokens = Tokens()
    token = tokens.mint(REQUEST)
    assert tokens.take(token) is REQUEST
    assert tokens.take(token) is None


def test_a_forged_token_is_none() -> None:
    tokens = Tokens()
    tokens.mint(REQUEST)
    assert tokens.take("AAAA") is None


def test_a_token_expires() -> None:
    clock = Clock()
    tokens = Tokens(clock=clock)
    token = tokens.mint(REQUEST)
    clock.now = LIFE_S
    assert tokens.take(token) is None


def test_too_many_tokens_are_refused_until_old_ones_expire() -> None:
    clock = Clock()
    tokens = Tokens(clock=clock)
    for _ in range(MAX_TOKENS):
        tokens.mint(REQUEST)
    with pytest.raises(Exhausted):
        tokens.mint(REQUEST)
    clock.now = LIFE_S
    assert tokens.take(tokens.mint(REQUEST)) is REQUEST
