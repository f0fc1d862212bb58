"""What selinuxfs says of a context."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from crishim.linux import selinux


def test_without_selinuxfs_there_is_no_selinux(tmp_path: Path) -> None:
    assert selinux.why_refused("a:b:c", str(tmp_path)) == "SELinux is not enabled on this node"


def test_the_kernel_is_told_the_context_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "context").touch()
    assert selinux.why_refused("a:b:c:s0", str(tmp_path)) == ""
    assert (tmp_path / "context").read_text() == "a:b:c:s0"


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (errno.EINVAL, "the SELinux policy of this node has no such context"),
        (errno.EACCES, "cannot be asked: permission denied"),
    ],
)
def test_a_refusal_of_the_kernel_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, sentence: str
) -> None:
    (tmp_path / "context").touch()

    def refuse(fd: int, data: bytes) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", refuse)
    assert selinux.why_refused("a:b:c", str(tmp_path)).endswith(sentence)
