"""Boots a node with this tree on a second disk, runs a command there, powers it off."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.e2e import tools
from tests.e2e.critest import images
from tests.node import image, results

TREE = Path(__file__).resolve().parents[2]
LOCK = TREE / "requirements-dev.lock"
_TOOLS = ".tools"
_SAID = "node: ended with "
_REPORT = "/tmp/report.xml"
#: emulation stretches what a test waits for too
PYTEST = "CRISHIM_TEST_PATIENCE=10 python3 -m pytest -p no:cacheprovider -o timeout=900 -v"


def run(
    node: Path,
    command: str,
    timeout_s: int,
    *,
    with_tools: Sequence[str] = (),
    console: list[str] | None = None,
    reboots: bool = False,
    kernel: Sequence[str] = (),
) -> int:
    """Status of a shell command on the node; 1 when the node ended without telling it.

    with_tools: names of built programs of tests.e2e to take along. The node's console is printed, and appended to
    `console` line by line. reboots: the command runs at each boot, and may reset the node; otherwise that ends it.
    kernel: further words of the kernel's command line.
    """
    with tempfile.TemporaryDirectory(prefix="crishim-node-") as directory:
        code = Path(directory) / "code"
        _copy_tree(code)
        _copy_tools(with_tools, code / _TOOLS)
        (code / image.START).write_text(_start_script(command))
        image.make_disk(code, Path(directory) / "disk", "512M")
        return _boot(node, Path(directory) / "disk", timeout_s, console, kernel, reboots=reboots)


def run_tests(
    node: Path, tests: Sequence[str], timeout_s: int, kernel: Sequence[str] = ()
) -> dict[str, list[results.Result]]:
    """Results by file of tests that ran on the node; ValueError with the end of its console when there are none."""
    console: list[str] = []
    send = results.SEND.format(report=_REPORT)
    command = f"{PYTEST} --junitxml={_REPORT} {shlex.join(tests)}; {send}"
    run(node, command, timeout_s, console=console, kernel=kernel)
    found: dict[str, list[results.Result]] = {}
    for result in results.parse("".join(console)):
        found.setdefault(result.file, []).append(result)
    return found


def _copy_tree(target: Path) -> None:
    """What git knows of this tree and what is new in it, as it is now."""
    listing = ["git", "-C", str(TREE), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (TREE / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(TREE / name, target / name)


def _copy_tools(names: Sequence[str], target: Path) -> None:
    """Programs as the tools cache has them, and the package that critest's images are made of: there is no network."""
    for path in tools.build(names):
        copy = target / path.relative_to(tools.cache_directory())
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    if "critest" in names:
        images.busybox()
        shutil.copytree(tools.cache_directory() / "busybox", target / "busybox", symlinks=True)


def _start_script(command: str) -> str:
    return f"""\
cd {image.CODE}
export CRISHIM_TOOLS={image.CODE}/{_TOOLS}
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
dmesg --console-off
ip link set lo up
modprobe -a overlay veth bridge nf_tables
bash -c {shlex.quote(command)}; echo "{_SAID}$?"
"""


def _boot(
    node: Path, code: Path, timeout_s: int, console: list[str] | None, kernel: Sequence[str], *, reboots: bool
) -> int:
    command = ["nice", "-n", "2", "qemu-system-x86_64", "-display", "none", "-monitor", "none", "-serial", "stdio"]
    command += ["-nic", "none", "-snapshot", *(() if reboots else ("-no-reboot",))]
    command += ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-smp", "2", "-m", "3072"]
    command += ["-kernel", str(node / "kernel"), "-initrd", str(node / "initrd")]
    words = ("root=/dev/vda", "rw", "console=ttyS0", "quiet", "panic=-1", "mitigations=off", "audit=0", *kernel)
    command += ["-append", " ".join(words)]
    for disk in (node / "disk", code):
        command += ["-drive", f"file={disk},if=virtio,format=raw"]
    command = ["timeout", "--foreground", str(timeout_s), *command]
    status = 1
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as qemu:
        assert qemu.stdout is not None
        for line in qemu.stdout:
            print(line, end="", flush=True)
            if console is not None:
                console.append(line)
            if _SAID in line:
                status = int(line.rpartition(_SAID)[2])
    return status
