"""A FUSE file system whose server never answers: what a dead network file system looks like to who touches it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crishim.linux import mount

_MS_NOSUID_NODEV = 2 | 4


def cannot_mount() -> str:
    """Why this machine cannot have one; empty when it can."""
    if os.geteuid() != 0:
        return "needs root"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/fuse cannot be opened: {error.strerror}"
    return ""


@contextmanager
def dead_mount(target: Path) -> Iterator[Path]:
    """Mounted at `target`, which nobody may look at from then on; in the end who waits for it is let go."""
    target.mkdir()
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        options = b"fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other" % device
        mount.mount(b"crishim-dead", os.fsencode(target), b"fuse", _MS_NOSUID_NODEV, options)
        try:
            yield target
        finally:
            os.close(device)
            device = -1
            mount.umount2(os.fsencode(target), mount.MNT_DETACH)
    finally:
        if device >= 0:
            os.close(device)
