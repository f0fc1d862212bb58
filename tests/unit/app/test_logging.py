"""The server's own log: what pods and images are called cannot forge a line of it, nor reach a terminal."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator

import pytest

from crishim.app.serve import configure_logging


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    for handler in before[0]:
        root.removeHandler(handler)  # or they would be closed
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    configure_logging("info")
    yield written
    root.handlers[:], root.level = before


def test_t56_a_message_is_one_line_whatever_it_holds(lines: io.StringIO) -> None:
    name = "x\n2026-11-25 INFO crishim: all is well\r\x1b[2J\x1b]0;title\x07\u202e\x9b31m\udcff\u2028é"
    logging.getLogger("crishim").info("StartContainer: %s", name)
    (line,) = lines.getvalue().splitlines()
    assert line.endswith(
        r"StartContainer: x\n2026-11-25 INFO crishim: all is well\r\x1b[2J\x1b]0;title\x07\u202e\x9b31m\udcff\u2028é"
    )


def test_t56_a_traceback_keeps_its_lines_and_shows_no_control_character(lines: io.StringIO) -> None:
    try:
        raise ValueError("a\nb\x1b[31m")
    except ValueError:
        logging.getLogger("crishim").exception("it failed")
    text = lines.getvalue()
    assert "ValueError: a\nb\\x1b[31m\n" in text and "\x1b" not in text
    assert len(text.splitlines()) > 4
