from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.leftovers import Machine, new_since
from tests.support.skips import unexpected_skips


def test_a_process_that_outlives_its_test_is_found() -> None:
    before = Machine.observe()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as process:
        found = new_since(before, deadline_s=0.0)
        process.communicate()
    assert [line for line in found if line.startswith(f"process {process.pid} ")]


def test_a_directory_with_our_name_is_found_and_gone_after_it_is_removed() -> None:
    before = Machine.observe()
    with tempfile.TemporaryDirectory(prefix="crishim-leftover-", dir="/tmp") as directory:
        assert f"entry /tmp/{Path(directory).name}" in new_since(before, deadline_s=0.0)
    assert f"entry /tmp/{Path(directory).name}" not in new_since(before, deadline_s=0.0)


def test_a_skip_that_nothing_expects_is_named() -> None:
    skipped = [
        ("tests/integration/test_a.py::test_limits", "Skipped: needs CAP_SYS_RESOURCE"),
        ("tests/integration/test_a.py::test_mounts", "Skipped: cannot mount here"),
        ("tests/unit/test_b.py::test_c", "Skipped: needs CAP_SYS_RESOURCE"),
    ]
    assert unexpected_skips(skipped) == [
        "tests/integration/test_a.py::test_mounts: Skipped: cannot mount here",
        "tests/unit/test_b.py::test_c: Skipped: needs CAP_SYS_RESOURCE",
    ]
