"""A user namespace that cannot be made."""

from __future__ import annotations

import errno
import os

import pytest

from crishim.executor import userns
from crishim.linux import process


def test_a_kernel_that_makes_no_user_namespace_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(flags: int, cgroup: int = -1) -> tuple[int, int]:
        raise OSError(errno.ENOSPC, "user.max_user_namespaces is reached")

    monkeypatch.setattr(process, "clone3", refuse)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="max_user_namespaces"):
        userns.make([[0, 1 << 20, 65536]], [[0, 1 << 20, 65536]], 0)
    assert os.listdir("/proc/self/fd") == before
