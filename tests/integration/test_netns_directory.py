"""`/run/netns` as a shared mount, in mount namespaces of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces need root")

SHARE = """
import logging, sys
from pathlib import Path
from crishim.app.netns_directory import share_netns_directory
logging.basicConfig(format="%(message)s")
share_netns_directory(Path(sys.argv[1]))
"""


def _in_mount_namespace(directory: Path, script: str, propagation: str = "private") -> str:
    """Output of a shell script there; `share` shares the directory, `show` counts its mounts and the shared ones."""
    functions = f"""set -eu
share() {{ {sys.executable} -c "$SHARE" {directory} 2>&1; }}
show() {{ awk '$5 == "{directory}" {{ n++; if (/ shared:/) s++ }} END {{ print n+0, s+0 }}' /proc/self/mountinfo; }}
"""
    command = ["unshare", "--mount", "--propagation", propagation, "sh", "-c", functions + script]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "SHARE": SHARE}, timeout=60)
    assert result.returncode == 0, result
    return result.stdout


def test_where_the_root_is_private_it_becomes_one_shared_mount_and_stays_one(tmp_path: Path) -> None:
    assert _in_mount_namespace(tmp_path / "netns", "share; show; share; show") == "1 1\n1 1\n"


def test_what_is_mounted_in_it_later_is_seen_where_it_was_mounted_before(tmp_path: Path) -> None:
    directory, daemon = tmp_path / "netns", tmp_path / "daemon"
    daemon.mkdir()
    script = f"""share
mount --bind {directory} {daemon}
mount --make-slave {daemon}
touch {directory}/pod
mount --bind /proc/self/ns/net {directory}/pod
stat -f -c %T {daemon}/pod
umount {directory}/pod
stat -f -c %T {daemon}/pod"""
    first, last = _in_mount_namespace(directory, script).split()
    assert first == "nsfs" and last != "nsfs"


def test_a_directory_that_is_shared_already_is_left_alone(tmp_path: Path) -> None:
    assert _in_mount_namespace(tmp_path / "netns", "mount --make-rshared /; share; show") == "0 0\n"


def test_a_private_mount_of_its_own_becomes_shared(tmp_path: Path) -> None:
    directory = tmp_path / "netns"
    directory.mkdir()
    script = f"mount --bind {directory} {directory}; mount --make-private {directory}; show; share; show"
    assert _in_mount_namespace(directory, script) == "1 0\n1 1\n"


def test_namespaces_that_are_pinned_in_it_stay_where_they_can_be_removed(tmp_path: Path) -> None:
    directory = tmp_path / "netns"
    directory.mkdir()
    script = f"""touch {directory}/pod
mount --bind /proc/self/ns/net {directory}/pod
share
show
umount {directory}/pod
grep -c {directory}/pod /proc/self/mountinfo || true
share
show"""
    said = _in_mount_namespace(directory, script).splitlines()
    assert said[1:] == ["0 0", "0", "1 1"] and "namespaces are pinned in it" in said[0]
