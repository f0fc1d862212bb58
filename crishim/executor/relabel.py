"""The role that gives the files of volumes a container's SELinux context: a process of its own, for a volume may hang.

Nothing outside of a volume is touched: entries are opened below their directory, links are labelled and not followed,
and what is mounted inside stays as it is. Directories of the host are refused by where a path really leads
(CVE-2021-43816).
"""

from __future__ import annotations

import errno
import os
import stat

from crishim.linux import fs
from crishim.linux.selinux import ATTRIBUTE

_INSIDE = fs.RESOLVE_BENEATH | fs.RESOLVE_NO_SYMLINKS | fs.RESOLVE_NO_XDEV


def relabel(request: dict[str, object], descriptors: list[int]) -> dict[str, object]:
    """Label each of "paths" (bytes) with all that is below it; the answer has "labelled", how many objects changed.

    "label": the context; "ours": for each path, whether it is ours and needs no check; "exact", "trees": directories
    that are refused, and those that are refused with everything in them; "make": make a missing path as a directory.
    One that cannot be done ends it: "index" of the path with "refused", where it leads, or "errno" and "path".
    """
    paths, ours, label = request["paths"], request["ours"], request["label"]
    exact, trees = request["exact"], request["trees"]
    assert isinstance(paths, list) and isinstance(ours, list) and isinstance(label, bytes)
    assert isinstance(exact, list) and isinstance(trees, list)
    labelled = 0
    for index, path in enumerate(paths):
        try:
            top = _open(path, bool(request["make"]))
        except OSError as error:
            return {"index": index, "errno": error.errno or 0, "path": path}
        try:
            if not ours[index]:
                place = os.readlink(b"/proc/self/fd/%d" % top)
                if is_refused(place, exact, trees) or _is_one_of(top, [b"/", *exact, *trees]):
                    return {"index": index, "refused": place}
            labelled += Walk(label).run(top)
        except WalkFailed as failed:
            return {"index": index, "errno": failed.code, "path": path + failed.path}
        finally:
            os.close(top)
    return {"labelled": labelled}


def is_refused(path: bytes, exact: list[bytes], trees: list[bytes]) -> bool:
    """Whether a path (absolute, without links) is one of the directories, above one of them, or inside of a tree."""
    inner = path.rstrip(b"/") + b"/"
    above = any((each + b"/").startswith(inner) for each in (*exact, *trees))
    return above or any(inner.startswith(each + b"/") for each in trees)


def _is_one_of(top: int, directories: list[bytes]) -> bool:
    """Whether it is the same object as one of the directories, which a bind mount may show elsewhere."""
    found = os.fstat(top)
    for each in directories:
        try:
            other = os.stat(each)
        except OSError:
            continue
        if (other.st_dev, other.st_ino) == (found.st_dev, found.st_ino):
            return True
    return False


def _open(path: bytes, make: bool) -> int:
    """O_PATH descriptor of where a path leads."""
    try:
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        if not make or os.path.islink(path):
            raise
        os.makedirs(path, 0o755, exist_ok=True)
        return os.open(path, os.O_PATH | os.O_CLOEXEC)


class WalkFailed(Exception):
    """An object that could not be labelled: errno, and its path below the volume."""

    def __init__(self, code: int, path: bytes) -> None:
        self.code = code
        self.path = path


class Walk:
    """One volume."""

    def __init__(self, label: bytes) -> None:
        self._label = label
        self._changed = 0

    def run(self, top: int) -> int:
        """Label the object of descriptor `top` and what is below it; how many were changed. WalkFailed names one."""
        try:
            if not self._set(top):
                return 0  # a file system without labels has none anywhere
            if not stat.S_ISDIR(os.fstat(top).st_mode):
                return self._changed
            root = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=top)
        except OSError as error:
            raise WalkFailed(error.errno or 0, b"") from None
        try:
            waiting = [b""]
            while waiting:
                directory = waiting.pop()
                try:
                    waiting += self._enter(root, directory)
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.EXDEV, errno.ELOOP, errno.ENOTDIR):  # replaced meanwhile
                        raise WalkFailed(error.errno or 0, b"/" + directory) from None
        finally:
            os.close(root)
        return self._changed

    def _enter(self, root: int, directory: bytes) -> list[bytes]:
        """Label the entries of a directory; paths of those that are directories themselves."""
        inner: list[bytes] = []
        here = fs.openat2(root, directory or b".", os.O_RDONLY | os.O_DIRECTORY, 0, _INSIDE)
        try:
            for name in os.listdir(here):
                text = os.fsencode(name)
                path = directory + b"/" + text if directory else text
                if self._entry(here, text, path):
                    inner.append(path)
        finally:
            os.close(here)
        return inner

    def _entry(self, here: int, name: bytes, path: bytes) -> bool:
        """Label one entry; whether it is a directory."""
        try:
            found = fs.openat2(here, name, os.O_PATH | os.O_NOFOLLOW, 0, _INSIDE)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EXDEV):  # gone meanwhile, or something is mounted there
                return False
            raise WalkFailed(error.errno or 0, b"/" + path) from None
        try:
            self._set(found)
            return stat.S_ISDIR(os.fstat(found).st_mode)
        except OSError as error:
            raise WalkFailed(error.errno or 0, b"/" + path) from None
        finally:
            os.close(found)

    def _set(self, fd: int) -> bool:
        """Label an object; whether its file system can. One that has the label is left alone, and needs no write."""
        place = b"/proc/self/fd/%d" % fd
        try:
            if os.getxattr(place, ATTRIBUTE).rstrip(b"\0") != self._label:
                os.setxattr(place, ATTRIBUTE, self._label)
                self._changed += 1
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return False
            if error.errno != errno.ENODATA:
                raise
            os.setxattr(place, ATTRIBUTE, self._label)
            self._changed += 1
        return True
