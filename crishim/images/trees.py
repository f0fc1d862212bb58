"""Directory trees that hostile processes made: of any depth, walked without following symlinks or crossing mounts."""

from __future__ import annotations

import errno
import os

#: flags that open a directory itself, never what a link in its place names
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: str | os.PathLike[str]) -> None:
    """Remove the directory `path` and all below it; nothing when it is not there.

    Needs two descriptors at any depth and no recursion. OSError EXDEV when something is mounted inside: what is behind
    a mount is never ours to delete.
    """
    try:
        current = os.open(path, DIRECTORY)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        os.unlink(path)
        return
    _empty(current)
    os.rmdir(path)


def _empty(current: int) -> None:
    """Empty the directory behind the descriptor, and close that."""
    try:
        device = os.fstat(current).st_dev
        #: for each directory above: its inode, the child we are in, its other directories still to empty
        way: list[tuple[int, str, list[str]]] = []
        pending = _remove_files(current)
        while True:
            if pending:
                name = pending.pop()
                inode = os.fstat(current).st_ino
                current = enter(current, name, device, None)
                way.append((inode, name, pending))
                pending = _remove_files(current)
            elif way:
                inode, name, pending = way.pop()
                current = enter(current, "..", device, inode)
                os.rmdir(name, dir_fd=current)
            else:
                return
    finally:
        os.close(current)


def _remove_files(directory: int) -> list[str]:
    """Remove everything but directories with content, and return the names of those."""
    with os.scandir(directory) as found:
        names = [(child.name, child.is_dir(follow_symlinks=False)) for child in found]
    filled = []
    for name, is_directory in names:
        if not is_directory:
            os.unlink(name, dir_fd=directory)
            continue
        try:
            os.rmdir(name, dir_fd=directory)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            filled.append(name)
    return filled


def enter(current: int, name: str, device: int, inode: int | None) -> int:
    """Open the child or parent `name` of `current`, and close that; checked to be the one that was meant.

    device is that of the tree, `inode` what the parent had. OSError when it is not there or another (EXDEV); `current`
    stays open then.
    """
    opened = os.open(name, DIRECTORY, dir_fd=current)
    found = os.fstat(opened)
    if found.st_dev != device or inode not in (None, found.st_ino):
        os.close(opened)
        raise OSError(errno.EXDEV, "a mount or a moved directory is in the way", name)
    os.close(current)
    return opened
