"""A layer's tar applied to the current root directory, as overlayfs wants to see it.

Runs inside a child that `roles.py` has confined: "/" is the layer's directory, so no name, symlink or ".." can lead out
of it, and nothing else changes the tree meanwhile. Whiteouts become 0/0 character devices, opaque directories get
`trusted.overlay.opaque`. No dataclasses, logging or tarfile, and nothing is imported late.
"""

from __future__ import annotations

import errno
import os
import stat

from crishim.errors import InvalidSpec
from crishim.images import tar
from crishim.images.stream import LayerStream

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
OPAQUE_XATTR = "trusted.overlay.opaque"
_BLOCK = 4096
_SMALL = 4096
#: for each entry that a layer may have: parents that are looked for. Each is looked for once, and again after a
#: directory was replaced, so that a layer which does that all the time would keep the unpacker for hours
_LOOKS = 4
_SKIPPED_XATTR_ERRORS = frozenset({errno.ENOTSUP, errno.EPERM, errno.EINVAL})


class Applied:
    """What a layer became: figures for the running totals and what the store must know of its shape."""

    __slots__ = ("bytes", "implied", "inodes", "root_given", "root_opaque")

    def __init__(self) -> None:
        #: content rounded up to blocks; directories count one block
        self.bytes = _BLOCK
        self.inodes = 1
        #: the layer states mode and owner of the root directory itself
        self.root_given = False
        #: the layer hides everything below it
        self.root_opaque = False
        #: directories that names imply and no entry states, parents first: what is below the layer says how they are
        self.implied: dict[bytes, None] = {}


def apply_entries(stream: LayerStream, max_entries: int) -> Applied:
    """Make every entry of the stream below "/". InvalidSpec names the entry that cannot be; OSError is the disk's."""
    layer = _Layer(stream, _LOOKS * max_entries)
    for count, entry in enumerate(tar.read_entries(stream)):
        # directories that a name implies count too: one name may have two thousand
        if count >= max_entries or layer.applied.inodes > max_entries:
            raise InvalidSpec(f"the layer has more than {max_entries} entries")
        try:
            layer.apply(entry)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
                raise
            raise InvalidSpec(f"the layer's entry {entry.name[:256]!r} cannot be made: {error.strerror}") from None
    layer.finish()
    return layer.applied


class _Layer:
    def __init__(self, stream: LayerStream, max_looks: int) -> None:
        self._stream = stream
        self._looks_left = max_looks
        self.applied = Applied()
        #: directories known to be there, so that a parent is looked up once
        self._known: set[bytes] = {b""}
        #: directory to mtime, set at the end: every entry made inside changes it
        self._times: dict[bytes, int] = {}

    def apply(self, entry: tar.Entry) -> None:
        """Make what the entry describes, or take away what it hides; its content is read from the stream."""
        name = tar.clean_name(entry.name)
        parent, _, base = name.rpartition(b"/")
        content = entry.stored + entry.padding
        if base.startswith(_WHITEOUT):
            self._make_parents(parent)
            self._whiteout(parent, base)
        elif entry.kind == tar.DIRECTORY:
            self._make_parents(parent)
            self._directory(name, entry)
        elif not name:
            raise InvalidSpec("the layer makes its root directory something else than a directory")
        else:
            self._make_parents(parent)
            self._make(name, entry)
            if entry.kind == tar.FILE:
                content = entry.padding
        self._stream.skip(content)

    def finish(self) -> None:
        """After the last entry: the times of directories, which each entry inside has changed."""
        for name, mtime_ns in self._times.items():
            try:
                os.utime(name or b".", ns=(mtime_ns, mtime_ns), follow_symlinks=False)
            except FileNotFoundError:
                pass  # replaced by a later entry

    def _make(self, name: bytes, entry: tar.Entry) -> None:
        try:
            self._create(name, entry)
        except FileExistsError:
            # a name given twice: the later one counts
            self._remove(name)
            self._create(name, entry)

    def _create(self, name: bytes, entry: tar.Entry) -> None:
        if entry.kind == tar.FILE:
            self._file(name, entry)
        elif entry.kind == tar.HARDLINK:
            self._hardlink(name, entry)
            return
        else:
            if entry.kind == tar.SYMLINK:
                os.symlink(entry.link, name)
            else:
                os.mknod(name, _node_type(entry.kind) | 0o600, os.makedev(entry.major, entry.minor))
            os.chown(name, entry.uid, entry.gid, follow_symlinks=False)
            if entry.kind != tar.SYMLINK:
                os.chmod(name, entry.mode)
            _set_xattrs(name, entry)
            os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)
        self.applied.inodes += 1

    def _file(self, name: bytes, entry: tar.Entry) -> None:
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if entry.segments is None:
                self._write(descriptor, entry.stored)
            else:
                self._write_sparse(descriptor, entry)
            os.fchown(descriptor, entry.uid, entry.gid)
            os.fchmod(descriptor, entry.mode)  # after chown, which clears set-user-id
            if entry.xattrs:
                _set_xattrs(descriptor, entry)
            os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(descriptor)
        self.applied.bytes += -(-entry.stored // _BLOCK) * _BLOCK

    def _write(self, descriptor: int, length: int) -> None:
        if length <= _SMALL:  # most files: one copy is cheaper than the machinery for many pieces
            _write_all(descriptor, self._stream.read(length))
            return
        for piece in self._stream.pieces(length):
            _write_all(descriptor, piece)

    def _write_sparse(self, descriptor: int, entry: tar.Entry) -> None:
        os.ftruncate(descriptor, entry.size)
        for offset, length in entry.segments or ():
            os.lseek(descriptor, offset, os.SEEK_SET)
            self._write(descriptor, length)

    def _hardlink(self, name: bytes, entry: tar.Entry) -> None:
        target = tar.clean_name(entry.link)
        if target == name:
            raise InvalidSpec(f"the layer links {name[:256]!r} to itself")
        try:
            os.link(target, name, follow_symlinks=False)
        except FileNotFoundError:
            raise InvalidSpec(f"the layer links {name[:256]!r} to {target[:256]!r}, which it does not hold") from None

    def _directory(self, name: bytes, entry: tar.Entry) -> None:
        if name:
            self._make_directory(name)
            if self.applied.implied:
                self.applied.implied.pop(os.path.realpath(name), None)
        else:
            self.applied.root_given = True
        path = name or b"."
        os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
        os.chmod(path, entry.mode)
        _set_xattrs(path, entry)
        self._times[name] = entry.mtime_ns

    def _make_directory(self, name: bytes) -> None:
        """An existing directory keeps its content; a whiteout in its place means that the lower one stays hidden."""
        hidden = False
        try:
            found = os.lstat(name)
        except FileNotFoundError:
            pass
        else:
            if stat.S_ISDIR(found.st_mode):
                self._known.add(name)
                return
            hidden = _is_whiteout(found)
            self._remove(name)
        os.mkdir(name, 0o755)
        if hidden:
            os.setxattr(name, OPAQUE_XATTR, b"y")
        self._known.add(name)
        self.applied.inodes += 1
        self.applied.bytes += _BLOCK

    def _make_parents(self, parent: bytes) -> None:
        """Make what is missing of `parent`, owned by root, 0755, until `parents.py` knows better.

        A symlink on the way is followed inside the layer.
        """
        if parent in self._known:
            return
        above, _, _ = parent.rpartition(b"/")
        self._make_parents_of(above, parent)

    def _make_parents_of(self, above: bytes, parent: bytes) -> None:
        missing = [parent]
        while above not in self._known:
            missing.append(above)
            above, _, _ = above.rpartition(b"/")
        self._looks_left -= len(missing)
        if self._looks_left < 0:
            raise InvalidSpec("the layer replaces directories by something else again and again")
        for name in reversed(missing):
            try:
                found = os.stat(name)
            except FileNotFoundError:
                if _exists(name):
                    raise InvalidSpec(
                        f"the layer puts files below {name[:256]!r}, a symlink that leads nowhere"
                    ) from None
                self._make_directory(name)
                self.applied.implied[os.path.realpath(name)] = None
            else:
                if _is_whiteout(found):
                    self._make_directory(name)
                elif not stat.S_ISDIR(found.st_mode):
                    raise InvalidSpec(f"the layer puts files below {name[:256]!r}, which is no directory")
                self._known.add(name)

    def _whiteout(self, parent: bytes, base: bytes) -> None:
        if base == _OPAQUE:
            if parent:
                os.setxattr(parent, OPAQUE_XATTR, b"y")
            else:
                self.applied.root_opaque = True  # overlayfs reads the mark on no root: the store cuts the stack instead
            return
        if base.startswith(b".wh..wh."):
            return  # what aufs kept for itself
        hidden = base[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise InvalidSpec(f"the layer has a whiteout of {hidden!r}")
        name = parent + b"/" + hidden if parent else hidden
        try:
            os.mknod(name, stat.S_IFCHR, 0)
        except FileExistsError:
            # whiteouts concern lower layers: what this layer holds stays, but hides what is below it
            if stat.S_ISDIR(os.lstat(name).st_mode):
                os.setxattr(name, OPAQUE_XATTR, b"y")
            return
        self.applied.inodes += 1

    def _remove(self, name: bytes) -> None:
        if stat.S_ISDIR(os.lstat(name).st_mode):
            _remove_tree(name)
            # symlinks may lead to what is gone: look every parent up again
            self._known = {b""}
        else:
            os.unlink(name)
            self._known.discard(name)


def _write_all(descriptor: int, content: bytes | memoryview) -> None:
    written = os.write(descriptor, content)
    while written < len(content):  # a disk that is nearly full takes a part
        written += os.write(descriptor, content[written:])


def _remove_tree(name: bytes) -> None:
    """Remove a directory of this layer. Paths are short enough: each was made by a name of at most PATH_MAX bytes."""
    directories = [name]
    for directory in directories:  # grows while it is walked: parents before their children
        with os.scandir(directory) as found:
            for child in found:
                if child.is_dir(follow_symlinks=False):
                    directories.append(child.path)
                else:
                    os.unlink(child.path)
    for directory in reversed(directories):
        os.rmdir(directory)


def _set_xattrs(target: bytes | int, entry: tar.Entry) -> None:
    for raw, value in entry.xattrs:
        name = os.fsdecode(raw)
        if not allowed_xattr(name):
            continue
        try:
            if isinstance(target, int):
                os.setxattr(target, name, value)
            else:
                os.setxattr(target, name, value, follow_symlinks=False)
        except OSError as error:
            # a file system without that kind of attribute, or user.* on a symlink: unpackers everywhere go on
            if error.errno not in _SKIPPED_XATTR_ERRORS or name == "security.capability":
                raise


def allowed_xattr(name: str) -> bool:
    """Not trusted.* and user.overlay.*, which steer overlayfs; of security.* only file capabilities, no label."""
    if name == "security.capability" or name.startswith("system.posix_acl_"):
        return True
    return name.startswith("user.") and not name.startswith("user.overlay.")


def _is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _exists(name: bytes) -> bool:
    try:
        os.lstat(name)
    except FileNotFoundError:
        return False
    return True


def _node_type(kind: bytes) -> int:
    return {tar.CHARACTER: stat.S_IFCHR, tar.BLOCK_DEVICE: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}[kind]
