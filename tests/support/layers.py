"""Layers made and unpacked in tests: tar archives of any content, and directories as values that can be compared."""

from __future__ import annotations

import asyncio
import io
import os
import stat
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.roles import run_role


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", mode: int = 0o644, **fields: Any
) -> tarfile.TarInfo:
    """A member; fields are attributes of TarInfo."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = kind, link, mode
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def directory(name: str, mode: int = 0o755, **fields: Any) -> tarfile.TarInfo:
    return entry(name, tarfile.DIRTYPE, mode=mode, **fields)


def symlink(name: str, target: str) -> tarfile.TarInfo:
    return entry(name, tarfile.SYMTYPE, link=target)


def hardlink(name: str, target: str, **fields: Any) -> tarfile.TarInfo:
    return entry(name, tarfile.LNKTYPE, link=target, **fields)


def archive(members: Sequence[tarfile.TarInfo | tuple[str | tarfile.TarInfo, bytes]]) -> bytes:
    """A tar of members without content and of (name or member, content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                file = entry(member[0]) if isinstance(member[0], str) else member[0]
                file.size = len(member[1])
                tar.addfile(file, io.BytesIO(member[1]))
    return buffer.getvalue()


def unpack(blob: bytes, target: Path, *, max_bytes: int = 1 << 32, max_entries: int = 100_000) -> dict[str, Any]:
    """The reply of the unpack role for a blob and a directory, which is made when it is not there."""
    target.mkdir(exist_ok=True)
    blob_fd = os.memfd_create("blob")
    target_fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    names_fd = os.memfd_create("names")
    try:
        os.write(blob_fd, blob)
        os.lseek(blob_fd, 0, os.SEEK_SET)
        request = {"max_bytes": max_bytes, "max_entries": max_entries, "module_paths": []}
        return asyncio.run(run_role("unpack", request, [blob_fd, target_fd, names_fd]))
    finally:
        os.close(blob_fd)
        os.close(target_fd)
        os.close(names_fd)


def snapshot(top: Path) -> dict[str, tuple[Any, ...]]:
    """Every path below `top` with all that a layer can say about it; hard links by the first name of their inode."""
    found: dict[str, tuple[Any, ...]] = {}
    first: dict[int, str] = {}
    for path in sorted(top.rglob("*"), key=str):
        name, status = str(path.relative_to(top)), path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        content: Any = None
        if stat.S_ISREG(kind):
            content = (path.read_bytes(), first.setdefault(status.st_ino, name))
        elif stat.S_ISLNK(kind):
            content = os.readlink(path)
        elif stat.S_ISCHR(kind) or stat.S_ISBLK(kind):
            content = (os.major(status.st_rdev), os.minor(status.st_rdev))
        attributes = {
            key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
        }
        found[name] = (
            kind,
            stat.S_IMODE(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            content,
            attributes,
        )
    return found
