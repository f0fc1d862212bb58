"""What a node's console tells of its tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.node.results import SEND, Result, parse

REPORT = """<testsuites><testsuite>
<testcase classname="tests.node.on_node.test_a" name="test_good[x]" time="1.5"/>
<testcase classname="tests.node.on_node.test_a" name="test_bad" time="2"><failure message="no">why</failure></testcase>
<testcase classname="tests.integration.test_b" name="test_set_up" time="0"><error message="broken"/></testcase>
<testcase classname="tests.integration.test_b" name="test_left_out" time="0"><skipped message="lacks"/></testcase>
</testsuite></testsuites>"""


def test_the_results_come_through_the_console(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    line = subprocess.run(
        ["sh", "-c", SEND.format(report=tmp_path / "report.xml")], check=True, capture_output=True, text=True
    ).stdout
    first, second = "tests/node/on_node/test_a.py", "tests/integration/test_b.py"
    assert parse(f"booting\r\n{line}node: ended with 1\n") == [
        Result(first, "test_good[x]", "passed", 1.5),
        Result(first, "test_bad", "failed", 2.0, "no\nwhy"),
        Result(second, "test_set_up", "error", 0.0, "broken\n"),
        Result(second, "test_left_out", "skipped", 0.0, "lacks\n"),
    ]


def test_a_node_that_says_nothing_is_shown() -> None:
    with pytest.raises(ValueError, match="kernel panic"):
        parse("booting\nkernel panic\n")
