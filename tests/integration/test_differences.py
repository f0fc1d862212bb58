"""The same containers under runc, crun and here, looked at from inside: what differs is listed with its reason.

The list is `docs/differences.md`. A difference that it does not have fails, and so does a row that has none left.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from crishim.cgroups.hierarchy import detect
from tests.support.observer import peers
from tests.support.observer.table import OURS, Answers, differences, read_table, unlisted, vanished

PROJECT = Path(__file__).resolve().parents[2]
PAGE = PROJECT / "docs" / "differences.md"
#: a node under emulation needs minutes
DEADLINE_S = 900
VERSIONS = {"runc": "1.5.2", "crun": "1.8.1"}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def answers() -> Answers:
    """What one program saw in every container under every runtime."""
    for program in ("gcc", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    found = {peer.name: peer.version for peer in peers.find_peers()}
    for name, version in VERSIONS.items():
        if found.get(name) != version:
            pytest.skip(f"{name} here is {found.get(name, 'not installed')}, the page is about {version}")
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "tests.support.observer"]
    with tempfile.TemporaryDirectory(prefix="crishim-observer-") as directory:
        os.chmod(directory, 0o711)  # runc's root of a user namespace looks its root directory up by path
        ended = subprocess.run([*command, directory], capture_output=True, text=True, timeout=DEADLINE_S, cwd=PROJECT)
    assert ended.returncode == 0, ended.stderr
    answers: Answers = json.loads(ended.stdout)
    return answers


@pytest.fixture(scope="module")
def machine() -> frozenset[str]:
    """The words by which the page tells machines apart."""
    version = "v2" if detect().mode == "v2" else "v1"
    return frozenset({version, "kcore" if os.path.exists("/proc/kcore") else "no-kcore"})


def test_every_difference_is_listed_with_its_reason(answers: Answers, machine: frozenset[str]) -> None:
    assert [str(each) for each in unlisted(differences(answers), read_table(PAGE.read_text()), machine)] == []


def test_no_listed_difference_is_gone(answers: Answers, machine: frozenset[str]) -> None:
    assert vanished(answers, read_table(PAGE.read_text()), machine) == []


def test_enough_is_looked_at(answers: Answers) -> None:
    counts = {len(said) for roles in answers[OURS].values() for said in roles.values()}
    assert min(counts) > 700
