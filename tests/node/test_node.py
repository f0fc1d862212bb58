"""Tests that need cgroup v2 alone, systemd or AppArmor, run on a node under QEMU: one boot, a result for each file.

The last tier of `make test`: it takes minutes, so it is left out where QEMU or what an image is built from is missing.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.node import boot, image
from tests.node.results import Result

#: what a machine with other cgroup trees, another init or no AppArmor cannot show, and fits into minutes of emulation
SUBSET = (
    "tests/integration/test_cgroups.py",
    "tests/integration/executor/test_hooks.py",
    "tests/node/on_node/test_apparmor.py",
    "tests/node/on_node/test_garbage_of_systemd.py",
    "tests/node/on_node/test_limits_of_v2.py",
    "tests/node/on_node/test_systemd_driver.py",
)
PROGRAMS = ("qemu-system-x86_64", "debootstrap", "mke2fs")
_NEEDED_BYTES = 4 << 30
_NODE_S = 1200
#: a reset, not a shutdown: what was not written is lost, as when the power fails
_REBOOTED = """
export CRISHIM_TEST_PATIENCE=10
if [ -e /var/lib/rebooted/notes.json ]; then
    python3 -m tests.node.reboot after
else
    python3 -m tests.node.reboot before && sync && echo b > /proc/sysrq-trigger
fi
"""

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def node() -> Path:
    """Directory of the node's image."""
    _require()
    try:
        return image.build(boot.LOCK)
    except subprocess.CalledProcessError as error:
        if error.cmd[0] == "debootstrap":
            pytest.skip("the node image cannot be built: no package mirror answers debootstrap")
        raise


@pytest.fixture(scope="module")
def results(node: Path) -> dict[str, list[Result]]:
    """Results of the node's tests by file."""
    return boot.run_tests(node, SUBSET, timeout_s=_NODE_S)


def _require() -> None:
    if os.geteuid() != 0 or platform.machine() != "x86_64":
        pytest.skip("a node image is built by root on x86_64")
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"a node needs {', '.join(missing)}")
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    if int(memory["MemAvailable"].split()[0]) << 10 < _NEEDED_BYTES:
        pytest.skip("a node under QEMU needs 4 GiB of memory that nobody uses")


@pytest.mark.parametrize("file", SUBSET)
def test_on_the_node(results: dict[str, list[Result]], file: str) -> None:
    of_file = results.get(file, [])
    for each in of_file:
        print(f"{each.outcome:8} {each.seconds:6.1f} s  {each.name}")
    wrong = [
        f"{each.name}: {each.outcome}\n{each.text}" for each in of_file if each.outcome not in ("passed", "skipped")
    ]
    assert not wrong, "\n\n".join(wrong)
    assert any(each.outcome == "passed" for each in of_file), f"none of {file} has run; {len(of_file)} results"


def test_a_reboot_ends_the_pods_and_their_networks(node: Path) -> None:
    assert boot.run(node, _REBOOTED, _NODE_S, reboots=True) == 0
