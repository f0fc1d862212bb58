"""The disk of a node: Debian with its own kernel, systemd, AppArmor and what the tests need, as one ext4 image.

Built once into a cache outside the tree, under a name made of everything that goes in; nothing of this tree is on it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SUITE = "bookworm"
PYTHON = "3.11"
"""The Python of that suite, for which wheels are chosen."""
SIZE = "4G"
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "udev", "kmod", "procps", "apparmor", "python3", "ca-certificates"),
    *("iproute2", "nftables", "busybox-static", "containernetworking-plugins", "docker-registry"),
    *("gcc", "libc6-dev", "libseccomp2", "util-linux", "crun", "secilc"),
)
KERNEL = ("linux-image-cloud-amd64", "initramfs-tools", "e2fsprogs", "zstd")
CODE = "/opt/crishim"
"""Where the node mounts the disk with the code."""
SITE = "/opt/site-packages"
#: the file on that disk that the node runs when it is up
START = "node-start"

_UNIT = f"""\
[Unit]
Description=what this node was started for
After=multi-user.target

[Service]
Type=oneshot
ExecStart=/bin/sh -c 'mkdir -p {CODE} && mount /dev/vdb {CODE} && exec sh {CODE}/{START}'
ExecStopPost=/bin/systemctl poweroff
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
TimeoutStartSec=infinity

[Install]
WantedBy=default.target
"""
_FILES = {
    "etc/systemd/system/node-start.service": _UNIT,
    "etc/fstab": "/dev/vda / ext4 defaults 0 1\n",
    "etc/hostname": "node\n",
    "etc/hosts": "127.0.0.1 localhost node\n::1 localhost\n",
    f"usr/local/lib/python{PYTHON}/dist-packages/node.pth": f"{CODE}\n{SITE}\n",
}
_MASKED = ("docker-registry.service", "serial-getty@ttyS0.service", "getty@tty1.service", "apt-daily.timer")


def cache_directory() -> Path:
    """Where images are kept: ${CRISHIM_NODE_IMAGES}, or the user's cache."""
    return Path(os.environ.get("CRISHIM_NODE_IMAGES", "~/.cache/crishim-node")).expanduser()


def build(requirements: Path) -> Path:
    """Directory with `disk`, `kernel` and `initrd`; built when it is not there (two minutes, root, debootstrap).

    requirements: a lock file with hashes. Raises CalledProcessError with the command that failed.
    """
    recipe = repr((SUITE, PYTHON, PACKAGES, KERNEL, sorted(_FILES.items()), _MASKED, requirements.read_text()))
    directory = cache_directory() / f"{SUITE}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    cache_directory().mkdir(parents=True, exist_ok=True)
    with open(cache_directory() / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # who builds the same image at the same time waits for the first
        if not directory.exists():
            _build(directory, requirements)
    return directory


def _build(directory: Path, requirements: Path) -> None:
    making = directory.with_suffix(".making")
    shutil.rmtree(making, ignore_errors=True)
    root = making / "root"
    root.mkdir(parents=True)
    _install_debian(root)
    _install_wheels(root, requirements)
    _configure(root)
    shutil.copy(next(root.glob("boot/vmlinuz-*")), making / "kernel")
    shutil.copy(next(root.glob("boot/initrd.img-*")), making / "initrd")
    make_disk(root, making / "disk", SIZE)
    shutil.rmtree(root)
    making.rename(directory)


def make_disk(content: Path, disk: Path, size: str) -> None:
    """An ext4 image file with the content of a directory; sparse, and nothing is mounted."""
    _run(["mke2fs", "-q", "-t", "ext4", "-d", str(content), str(disk), size])


def _install_debian(root: Path) -> None:
    include = "--include=" + ",".join(PACKAGES)
    _run(["debootstrap", "--variant=minbase", include, SUITE, str(root)])
    # after the rest: it makes the initrd, which wants to see the tools that go into it
    _in(root, ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *KERNEL])
    _in(root, ["apt-get", "clean"])


def _install_wheels(root: Path, requirements: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    command += ["--only-binary=:all:", "--python-version", PYTHON, "--no-compile", "--target", f"{root}{SITE}"]
    _run([*command, "-r", str(requirements)])
    _in(root, ["python3", "-m", "compileall", "-q", SITE])


def _configure(root: Path) -> None:
    for name, text in _FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    _in(root, ["systemctl", "enable", "--quiet", "node-start.service"])
    _in(root, ["systemctl", "mask", "--quiet", *_MASKED])


def _in(root: Path, command: Sequence[str]) -> None:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    _run(["chroot", str(root), *command], env=environment)


def _run(command: Sequence[str], env: dict[str, str] | None = None) -> None:
    subprocess.run(command, check=True, env=env, stdin=subprocess.DEVNULL, stdout=sys.stderr)
