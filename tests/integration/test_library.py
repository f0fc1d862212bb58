"""The library as its page shows it: the blocks of `docs/library.md`, and the README's, run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

PROJECT = Path(__file__).resolve().parents[2]


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (PROJECT / page).read_text(), re.DOTALL)


def run_blocks(page: str, root: Path) -> subprocess.CompletedProcess[str]:
    program = "\n".join(python_blocks(page)).replace("/srv/root", str(root))
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=PROJECT)


def test_the_page_of_the_library_runs_as_it_stands(root: Path) -> None:
    ended = run_blocks("docs/library.md", root)
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == [
        "7",
        "through a pipe",
        "0",
        "1000",
        "worker",
        "256",
        "ExitStatus(code=0, signal=None, oom_kills=0)",
        "0",
        "paused",
        "paused resumed updated exited",
        "stopped",
        'exec: "nosuch": executable file not found in $PATH',
    ]


def test_the_example_of_the_readme_runs_as_it_stands(root: Path) -> None:
    ended = run_blocks("README.md", root)
    assert (ended.stderr, ended.stdout) == ("", "hello from a container\n0\n")


def cgroups_of_dead_programs() -> set[str]:
    alive = tuple(f"crishim-run-{pid}-" for pid in os.listdir("/proc") if pid.isdigit())
    trees = ["/sys/fs/cgroup", *(tree.path for tree in os.scandir("/sys/fs/cgroup") if tree.is_dir())]
    ours = {name for tree in trees for name in os.listdir(tree) if name.startswith("crishim-run-")}
    return {name for name in ours if not name.startswith(alive)}


def test_a_library_program_leaves_nothing(root: Path) -> None:
    before = cgroups_of_dead_programs()
    assert run_blocks("docs/library.md", root).returncode == 0
    assert cgroups_of_dead_programs() <= before


def test_every_public_name_can_be_imported() -> None:
    program = "import crishim; print([getattr(crishim, name) is not None for name in dir(crishim)])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=PROJECT)
    assert ended.stderr == "" and "False" not in ended.stdout
