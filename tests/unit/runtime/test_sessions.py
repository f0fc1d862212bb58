"""Requests for streaming sessions that cannot be, whatever runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from crishim.errors import InvalidSpec, NotFound
from crishim.runtime.live import Live
from crishim.runtime.sessions.use_cases import Sessions
from crishim.store.store import Store

NOBODY: Any = cast(Any, None)


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    return Sessions(Store(tmp_path, "boot"), Live(), NOBODY, NOBODY, NOBODY, NOBODY)


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ((False, False, False, False), "stdin, stdout, stderr: at least one of them must be asked for"),
        ((True, False, False, False), "stdin, stdout, stderr: at least one of them must be asked for"),
        ((True, True, True, True), "stderr: a terminal has only one output"),
    ],
)
def test_streams_that_cannot_be_are_refused(
    sessions: Sessions, wanted: tuple[bool, bool, bool, bool], sentence: str
) -> None:
    streams = dict(zip(("tty", "stdin", "stdout", "stderr"), wanted, strict=True))
    with pytest.raises(InvalidSpec, match=sentence):
        asyncio.run(sessions.exec("c", ("sh",), **streams))
    with pytest.raises(InvalidSpec, match=sentence):
        asyncio.run(sessions.attach("c", **streams))


@pytest.mark.parametrize("command", [(), ("",)])
def test_a_session_without_a_command_is_refused(sessions: Sessions, command: tuple[str, ...]) -> None:
    with pytest.raises(InvalidSpec, match="cmd is empty"):
        asyncio.run(sessions.exec("c", command, tty=False, stdin=False, stdout=True, stderr=False))


def test_a_session_that_could_be_needs_its_container(sessions: Sessions) -> None:
    with pytest.raises(NotFound):
        asyncio.run(sessions.exec("c", ("sh",), tty=True, stdin=True, stdout=True, stderr=False))
