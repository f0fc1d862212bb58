"""A cgroup v2 tree in a directory: making a cgroup fills it with its files, as the kernel does."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from crishim.cgroups.hierarchy import Hierarchy, detect

FILES = (
    *("cgroup.procs", "cgroup.kill", "cgroup.freeze", "cgroup.subtree_control", "cgroup.events"),
    *("cpu.weight", "cpu.max", "memory.max", "memory.swap.max", "memory.events", "pids.max"),
)


class FakeV2:
    """Files are plain, so a value written stays; cgroup.controllers are those its parent enabled."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.mkdir, self.rmdir = os.mkdir, os.rmdir
        root.mkdir()
        self._fill(root, ["cpu", "memory", "pids"])
        monkeypatch.setattr(os, "mkdir", self._mkdir)
        monkeypatch.setattr(os, "rmdir", self._rmdir)
        self.hierarchy: Hierarchy = detect(os.fsencode(root))

    def _mkdir(self, path: bytes, mode: int = 0o777) -> None:
        self.mkdir(path, mode)
        directory = Path(os.fsdecode(path))
        enabled = (directory.parent / "cgroup.subtree_control").read_text().replace("+", "").split()
        self._fill(directory, enabled)

    def _rmdir(self, path: bytes, *, dir_fd: int | None = None) -> None:
        """As the kernel: a cgroup with processes or children is busy, its own files are no hindrance."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=dir_fd)
        try:
            names = os.listdir(fd)
            children = [name for name in names if stat.S_ISDIR(os.stat(name, dir_fd=fd).st_mode)]
            if children or os.stat("cgroup.procs", dir_fd=fd).st_size:
                raise OSError(errno.EBUSY, "busy")
            for name in names:
                os.unlink(name, dir_fd=fd)
        finally:
            os.close(fd)
        self.rmdir(path, dir_fd=dir_fd)

    def _fill(self, directory: Path, controllers: list[str]) -> None:
        for name in FILES:
            (directory / name).touch()
        (directory / "cgroup.controllers").write_text(" ".join(controllers) + "\n")


@pytest.fixture
def v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeV2:
    return FakeV2(tmp_path / "cgroup", monkeypatch)
