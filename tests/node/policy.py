"""SELinux on a node that was booted with it: a small policy compiled and loaded, which confines containers alone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SELINUXFS = Path("/sys/fs/selinux")
SOURCE = Path(__file__).parent / "on_node/containers.cil"
#: on the command line of the kernel: this module instead of AppArmor
BOOT = ("security=selinux", "selinux=1")
_CATEGORIES = 1024
#: which the containers of a user namespace have from the host
_DEVICES = ("full", "null", "random", "tty", "urandom", "zero")


def source() -> str:
    """The policy with its sensitivity and categories."""
    names = [f"c{number}" for number in range(_CATEGORIES)]
    declared = "\n".join(f"(category {name})" for name in names)
    levels = f"(sensitivity s0)\n(sensitivityorder (s0))\n{declared}\n(categoryorder ({' '.join(names)}))\n"
    return f"{levels}(sensitivitycategory s0 (range c0 {names[-1]}))\n{SOURCE.read_text()}"


def load(directory: Path) -> None:
    """Compile it, load it, and have it enforced until the node is powered off. Needs secilc(8)."""
    text, binary = directory / "policy.cil", directory / "policy.bin"
    text.write_text(source())
    subprocess.run(["secilc", "-o", str(binary), "-f", "/dev/null", str(text)], check=True, timeout=600)
    if not (SELINUXFS / "load").exists():
        subprocess.run(["mount", "-t", "selinuxfs", "selinuxfs", str(SELINUXFS)], check=True)
    with open(SELINUXFS / "load", "wb", buffering=0) as file:
        file.write(binary.read_bytes())
    for name in _DEVICES:
        os.setxattr(f"/dev/{name}", "security.selinux", b"system_u:object_r:null_t:s0")
    (SELINUXFS / "enforce").write_text("1")
