"""`python -m tests.node [--command SHELL | PYTEST ARGUMENTS]`: boots the node with this tree, runs, powers it off.

Without arguments it runs what a cgroup v1 or hybrid machine cannot show. The console of the node is our output; the
status is that of the command inside. Emulated, so about ten times slower than the machine; no KVM is asked for, since
a machine that is itself virtual often has a KVM that hangs.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.e2e import tools
from tests.e2e.critest import images
from tests.node import image

TREE = Path(__file__).resolve().parents[2]
#: what depends on the kind of cgroup tree, on init or on the kernel's security modules
TESTS = (
    "tests/integration/test_cgroups.py",
    "tests/integration/executor",
    "tests/integration/test_seccomp.py",
    "tests/integration/test_server_pods.py",
    "tests/node/on_node",
)
_TOOLS = ".tools"
_SAID = "node: ended with "
#: emulation stretches what a test waits for too
_PYTEST = "python3 -m pytest -p no:cacheprovider -o timeout=900 -v"


def main() -> int:
    """Status of the command on the node; 1 when the node ended without telling it."""
    parser = argparse.ArgumentParser(prog="python -m tests.node", description=__doc__)
    parser.add_argument("--command", metavar="SHELL", help="run this instead of pytest")
    parser.add_argument("--timeout", type=int, default=3600, metavar="S", help="seconds until the node is killed")
    parser.add_argument("--tool", metavar="NAME", action="append", default=[], help="take a built program of tests.e2e")
    arguments, tests = parser.parse_known_args()
    node = image.build(TREE / "requirements-dev.lock")
    command = arguments.command or f"{_PYTEST} {shlex.join(tests or TESTS)}"
    with tempfile.TemporaryDirectory(prefix="crishim-node-") as directory:
        code = Path(directory) / "code"
        _copy_tree(code)
        _copy_tools(arguments.tool, code / _TOOLS)
        (code / image.START).write_text(_start_script(command))
        image.make_disk(code, Path(directory) / "disk", "512M")
        return _boot(node, Path(directory) / "disk", arguments.timeout)


def _copy_tree(target: Path) -> None:
    """What git knows of this tree and what is new in it, as it is now."""
    listing = ["git", "-C", str(TREE), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (TREE / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(TREE / name, target / name)


def _copy_tools(names: list[str], target: Path) -> None:
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
ip link set lo up
modprobe -a overlay veth bridge nf_tables
bash -c {shlex.quote(command)}; echo "{_SAID}$?"
"""


def _boot(node: Path, code: Path, timeout_s: int) -> int:
    command = ["nice", "-n", "5", "qemu-system-x86_64", "-display", "none", "-monitor", "none", "-serial", "stdio"]
    command += ["-no-reboot", "-nic", "none", "-snapshot"]
    command += ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-smp", "2", "-m", "3072"]
    command += ["-kernel", str(node / "kernel"), "-initrd", str(node / "initrd")]
    command += ["-append", "root=/dev/vda rw console=ttyS0 quiet panic=-1 mitigations=off audit=0"]
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
            if _SAID in line:
                status = int(line.rpartition(_SAID)[2])
    return status


if __name__ == "__main__":
    sys.exit(main())
