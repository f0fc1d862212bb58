"""What a child of the zygote does for images: `unpack` a layer, `read_users` of a root file system, `find_paths` in it.

A role is a function (request, descriptors) -> reply on plain dicts; the child ends after it. Both meet hostile bytes,
so each first gives up what it does not need. The executor hands the child no descriptor but those of the request and
its own reply socket. A failure is a reply too: {"error": sentence, "kind": class name in `crishim.errors`}.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
import sys
from collections.abc import Callable
from typing import Any

from crishim.errors import CrishimError, InvalidSpec
from crishim.images.apply import apply_entries
from crishim.images.stream import LayerStream
from crishim.linux.fs import openat2, read_bounded
from crishim.linux.mount import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, new_mount
from crishim.linux.process import PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, bounding_set, capset, prctl

#: bytes of /etc/passwd and of /etc/group that are read; more is an error (CVE-2025-4437, CVE-2026-47262)
MAX_USER_FILE = 1 << 20

CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SYS_ADMIN, MKNOD, SETFCAP = 0, 1, 3, 4, 21, 27, 31
#: CAP_SYS_ADMIN only because trusted.overlay.opaque wants it
_UNPACK_CAPABILITIES = (CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SYS_ADMIN, MKNOD, SETFCAP)
_READ_CAPABILITIES = (DAC_OVERRIDE,)

#: memory of a role's own. A layer decides how many names and attributes there are to remember; a hundred thousand
#: directories take 30 MiB, a frame of zstd at most 128 MiB
MEMORY_BYTES = 512 << 20

Reply = dict[str, Any]


def unpack(request: dict[str, Any], descriptors: list[int]) -> Reply:
    """Apply a layer blob to an empty directory; never raises.

    descriptors: the blob, open for reading at its start, the directory, and an empty file for the names of directories
    that the layer implies (absolute, each with a NUL behind). request: "max_bytes" and "max_entries" bound the unpacked
    layer, "module_paths" (list of str) is where the wheels for gzip and zstd are found.
    Reply: "diff_id", "bytes", "inodes", "root_given", "root_opaque", and "implied", the number of those names.
    """
    return replying(lambda: _unpack(request, *descriptors))


def read_users(request: dict[str, Any], descriptors: list[int]) -> Reply:
    """The user files of a root file system; never raises.

    Either the one descriptor is its root directory, or the request has "lowers": paths of its layers, topmost first.
    Reply: "passwd" and "group" (bytes, b"" for a file that is not there), or for a file that cannot be used
    "passwd_error", "group_error": a sentence.
    """
    return replying(lambda: _read_users(descriptors[0] if descriptors else open_layers(request["lowers"])))


def find_paths(request: dict[str, Any], _: list[int]) -> Reply:
    """Whether the image that has the layers "lowers" (topmost first) has what "paths" name (bytes); never raises.

    Links are followed inside the image. Reply: "errors", for each path the errno that keeps it from being opened, or 0.
    """
    return replying(lambda: _find_paths(open_layers(request["lowers"]), request["paths"]))


def replying(work: Callable[[], Reply]) -> Reply:
    """What `work` brings, or its failure as a reply."""
    try:
        return work()
    except CrishimError as error:
        return {"error": str(error), "kind": type(error).__name__}
    except OSError as error:
        kind = "Exhausted" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Unavailable"
        return {"error": f"the file system refuses: {error.strerror}", "kind": kind}
    except MemoryError:
        return {"error": f"not enough memory: it takes more than {MEMORY_BYTES >> 20} MiB", "kind": "Exhausted"}


def bound_memory() -> None:
    """From now on a request for more than `MEMORY_BYTES` is a MemoryError. Source: getrlimit(2), "RLIMIT_DATA"."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))


def _unpack(request: dict[str, Any], blob: int, directory: int, names: int) -> Reply:
    bound_memory()
    sys.path += [path for path in request["module_paths"] if path not in sys.path]
    stream = LayerStream(blob, request["max_bytes"])  # imports the decompressor, so before "/" is hostile
    confine(directory, _UNPACK_CAPABILITIES)
    applied = apply_entries(stream, request["max_entries"])
    with open(names, "wb", closefd=False) as file:  # a file: there may be as many as entries
        file.writelines(name + b"\0" for name in applied.implied)
    return {
        "diff_id": stream.drain(),
        "bytes": applied.bytes,
        "inodes": applied.inodes,
        "root_given": applied.root_given,
        "root_opaque": applied.root_opaque,
        "implied": len(applied.implied),
    }


def confine(root: int, capabilities: tuple[int, ...]) -> None:
    """Make `root` the root directory and give up every privilege but `capabilities`; nothing can be imported after."""
    os.umask(0)
    os.fchdir(root)
    os.chroot(".")
    os.chdir("/")
    # an import that happens late, also one in an error path of the standard library, would run files of the layer
    sys.path.clear()
    sys.meta_path.clear()
    sys.path_importer_cache.clear()
    drop_capabilities(capabilities)


def drop_capabilities(keep: tuple[int, ...]) -> None:
    """Keep these numbers alone, for good."""
    mask = sum(1 << number for number in keep)
    bounding = bounding_set()
    for number in range(bounding.bit_length()):
        if bounding >> number & 1 and not mask >> number & 1:
            prctl(PR_CAPBSET_DROP, number)
    capset(mask, mask, 0)
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def open_layers(lowers: list[bytes]) -> int:
    """The layers as overlayfs stacks them: a detached mount that nobody else sees and that ends with this process."""
    if len(lowers) == 1:
        return os.open(lowers[0], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    # names relative to their common directory: a string of fsconfig(2) holds 255 bytes
    top = os.path.dirname(lowers[0])
    os.chdir(top)
    names = [os.path.relpath(lower, top) for lower in lowers]
    attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
    try:
        return new_mount(b"overlay", tuple((b"lowerdir+", name) for name in names), attributes)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return new_mount(b"overlay", ((b"lowerdir", b":".join(names)),), attributes)  # before Linux 6.5


def _read_users(root: int) -> Reply:
    bound_memory()
    drop_capabilities(_READ_CAPABILITIES)
    reply: Reply = {}
    for name in ("passwd", "group"):
        try:
            reply[name] = _read_file(root, b"etc/" + name.encode())
        except FileNotFoundError:
            reply[name] = b""
        except (OSError, InvalidSpec) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            reply[name] = b""
            reply[name + "_error"] = f"/etc/{name} of the image cannot be used: {reason}"
    return reply


def _find_paths(root: int, paths: list[bytes]) -> Reply:
    drop_capabilities(_READ_CAPABILITIES)
    return {"errors": [_open_error(root, path) for path in paths]}


def _open_error(root: int, path: bytes) -> int:
    try:
        os.close(openat2(root, path, os.O_PATH))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _read_file(root: int, path: bytes) -> bytes:
    # O_PATH first: opening a fifo waits, and opening a device can do anything
    handle = openat2(root, path, os.O_PATH)
    try:
        found = os.fstat(handle)
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
            raise FileNotFoundError  # a whiteout in an only layer, where overlayfs does not read it
        if not stat.S_ISREG(found.st_mode):
            raise InvalidSpec("it is not a regular file")
        if found.st_size > MAX_USER_FILE:
            raise InvalidSpec(f"it has {found.st_size} bytes, more than {MAX_USER_FILE}")
        descriptor = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    finally:
        os.close(handle)
    try:
        return read_bounded(descriptor, MAX_USER_FILE)
    finally:
        os.close(descriptor)
