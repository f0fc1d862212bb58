"""The steps of a child that make its root what the container sees: the root mount, file systems, devices, masks.

From `enter_root` on no path can name anything of the host. Run between clone3(2) and execve(2): see `child.py`.
"""

from __future__ import annotations

import errno
import os
import stat

from crishim.linux import fs, mount, process

_ROOT_FLAGS = os.O_PATH | os.O_DIRECTORY
#: read-only for good: who may remount still finds no room for anything
_MASK_OPTIONS: tuple[tuple[bytes, bytes | None], ...] = (
    (b"mode", b"0555"),
    (b"nr_blocks", b"1"),
    (b"nr_inodes", b"1"),
    (b"ro", None),
)

#: what a step with several objects is at, for the report of its failure
detail = b""
_shm: dict[int, int] = {}
_made: dict[int, int] = {}
_host_root = -1
#: device numbers of the container's procfs mounts
_procs: list[int] = []


def take_shm(index: int) -> None:
    """A copy of the pod's /dev/shm, which the seed namespace holds at /shm, before the pivot drops that namespace."""
    _shm[index] = mount.open_tree(fs.AT_FDCWD, b"/shm", mount.OPEN_TREE_CLONE)


def show(view: int, place: bytes) -> None:
    """Attach a proc or sysfs of the host in the seed, for a moment.

    In a mount namespace that a user namespace owns, the kernel mounts a new proc or sysfs only where an old one is
    already seen whole (`mount_too_revealing` of its fs/namespace.c), and our seed has none.
    """
    directory = os.open(place, _ROOT_FLAGS | os.O_CLOEXEC)
    mount.move_mount(view, directory)
    os.close(directory)
    os.close(view)


def make_filesystem(index: int, kind: bytes, options: tuple[bytes, ...], set_: int) -> None:
    """A new file system for `attach_filesystem`."""
    _made[index] = mount.new_mount(kind, pairs(options), set_)


def hide(place: bytes) -> None:
    """Take away what `show` attached: the container must not find the host's below its root."""
    mount.umount2(place, mount.MNT_DETACH)


def attach_filesystem(index: int, kind: bytes, target: bytes) -> None:
    """Attach what `make_filesystem` made."""
    _attach_made(_made[index], kind, target)


def enter_root(root: int) -> None:
    """Mount the detached root over the seed's "/", and make it our root.

    No pivot_root(2): what lies below is the seed's empty read-only tmpfs, so there is nothing of the host to hide, and
    the pivot and its unmount would cost a millisecond of waiting for RCU. Who joins this mount namespace later, or
    leaves a chroot, arrives on top, here.
    """
    place = os.open("/", _ROOT_FLAGS | os.O_CLOEXEC)
    mount.move_mount(root, place)
    os.close(place)
    os.fchdir(root)
    os.chroot(".")


def hold_shm(index: int, tree: int) -> None:
    """The pod's /dev/shm, for a child that was not born in the seed."""
    _shm[index] = tree


def show_bundle(tree: int, closed: bytes, bundle: bytes) -> None:
    """Cover a directory that others may not enter, so that the way to the bundle is open and leads to nothing else.

    In our copy of the host's tree alone; the place of the root in the bundle becomes the working directory.
    """
    way = mount.new_mount(b"tmpfs", ((b"mode", b"711"),))
    place = os.open(closed, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    mount.move_mount(way, place)
    os.close(place)
    for name in bundle[len(closed) :].strip(b"/").split(b"/"):
        os.mkdir(name, 0o711, dir_fd=way)
        below = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=way)
        os.close(way)
        way = below
    mount.move_mount(tree, way)
    os.close(way)
    os.chdir(bundle + b"/rootfs")


def enter_root_on_host(root: int) -> None:
    """Mount the detached root over the working directory, in the copy of the host's tree that we have, and enter it.

    For hooks, which find both there. What is mounted here does not reach the host.
    """
    global _host_root
    _host_root = open_root()
    mount.mount_setattr(_host_root, propagation=mount.MS_SLAVE, recursive=True)
    where = os.open(".", _ROOT_FLAGS | os.O_CLOEXEC)
    mount.move_mount(root, where)
    os.close(where)
    os.fchdir(root)
    os.chroot(".")


def leave_host(root: int) -> None:
    """Make the root that of this mount namespace, and drop the host's tree out of it."""
    os.fchdir(_host_root)
    os.chroot(".")
    os.fchdir(root)
    mount.pivot_root(b".", b".")
    mount.umount2(b".", mount.MNT_DETACH)
    os.close(_host_root)
    os.chdir("/")


def open_root() -> int:
    return os.open("/", _ROOT_FLAGS | os.O_CLOEXEC)


def directory(path: bytes) -> int:
    """A directory of the root, made when it is missing. The root is the working directory, until `enter_cwd`."""
    return fs.make_directories_in_root(fs.AT_FDCWD, path)


def spare_proc(place: int) -> None:
    """EPERM for a place on procfs, where a link of the image has led (CVE-2019-16884): what lies there is relied on."""
    global detail
    if os.fstat(place).st_dev in _procs:
        detail = b"it is inside of /proc, which cannot be mounted over"
        raise OSError(errno.EPERM, "on procfs")


def attach(tree: int, target: bytes, is_file: bool) -> None:
    """Attach a prepared tree at `target`, which is made when it is missing."""
    place = fs.make_file_in_root(fs.AT_FDCWD, target) if is_file else directory(target)
    spare_proc(place)
    mount.move_mount(tree, place)
    os.close(place)
    os.close(tree)


def cover_proc_file(tree: int, target: bytes) -> None:
    """Attach a prepared tree over a file of the container's own procfs, and nothing else."""
    place = fs.openat2(fs.AT_FDCWD, target, os.O_PATH, 0, fs.RESOLVE_IN_ROOT | fs.RESOLVE_NO_MAGICLINKS)
    if os.fstat(place).st_dev not in _procs:
        raise OSError(errno.EXDEV, "not on procfs")
    mount.move_mount(tree, place)
    os.close(place)
    os.close(tree)


def attach_shm(index: int, target: bytes, set_: int, clear: int) -> None:
    """Attach the pod's /dev/shm."""
    mount.mount_setattr(_shm[index], set_=set_, clear=clear)
    attach(_shm[index], target, False)


def mount_filesystem(kind: bytes, target: bytes, options: tuple[bytes, ...], set_: int, clear: int) -> None:
    """A new file system at `target`."""
    _attach_made(mount.new_mount(kind, pairs(options), set_), kind, target)


def pairs(options: tuple[bytes, ...]) -> tuple[tuple[bytes, bytes | None], ...]:
    """Mount options as `mount.new_mount` takes them."""
    return tuple((key, value if mark else None) for key, mark, value in (item.partition(b"=") for item in options))


def context(label: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """The option of a mount that gives all its files an SELinux context; none for an empty one."""
    return ((b"context", label),) if label else ()


def _attach_made(made: int, kind: bytes, target: bytes) -> None:
    """proc and sysfs go only on plain directories: a link there would hide from us what we rely on (CVE-2019-19921)."""
    place = directory(target)
    if kind in (b"proc", b"sysfs"):
        os.close(place)
        place = fs.openat2(fs.AT_FDCWD, target, _ROOT_FLAGS, 0, fs.RESOLVE_IN_ROOT | fs.RESOLVE_NO_SYMLINKS)
    else:
        spare_proc(place)
    if kind == b"proc":
        _procs.append(os.fstat(made).st_dev)
    mount.move_mount(made, place)
    os.close(made)
    os.close(place)


def mount_cgroups(target: bytes, set_: int, trees: tuple[tuple[bytes, int], ...], label: bytes = b"") -> None:
    """The container's own cgroups: the one of v2 (empty name), or a directory per controller of v1 on a tmpfs.

    label: SELinux context of that tmpfs, as for `mask_paths`.
    """
    if len(trees) == 1 and trees[0][0] == b"":
        place = directory(target)
        mount.move_mount(trees[0][1], place)
        os.close(place)
        return
    place = directory(target)
    made = mount.new_mount(b"tmpfs", ((b"mode", b"755"), *context(label)), set_ & ~mount.MOUNT_ATTR_RDONLY)
    mount.move_mount(made, place)
    os.close(place)
    for name, tree in trees:  # below the fresh tmpfs, where no path can lead elsewhere
        os.mkdir(name, 0o755, dir_fd=made)
        mount.move_mount(tree, made, name)
        os.close(tree)
    if set_ & mount.MOUNT_ATTR_RDONLY:
        mount.mount_setattr(made, set_=mount.MOUNT_ATTR_RDONLY)
    os.close(made)


def make_devices(nodes: tuple[tuple[bytes, bytes, int, int, int, int, int], ...]) -> None:
    """Device nodes on the fresh tmpfs of /dev: (path, kind, major, minor, mode, uid, gid)."""
    os.umask(0)
    dev = directory(b"/dev")
    for path, kind, major, minor, mode, uid, gid in nodes:
        parent, name = dev, path[5:]
        if b"/" in name or not path.startswith(b"/dev/"):
            parent, name = directory(os.path.dirname(path)), os.path.basename(path)
        bits = stat.S_IFBLK if kind == b"b" else stat.S_IFCHR
        try:
            os.mknod(name, bits | mode, os.makedev(major, minor), dir_fd=parent)
        except FileExistsError:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if found.st_rdev != os.makedev(major, minor) or stat.S_IFMT(found.st_mode) != bits:
                raise
        if uid or gid:
            os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        if parent != dev:
            os.close(parent)
    os.umask(0o022)
    os.close(dev)


def bind_devices(nodes: tuple[tuple[bytes, int], ...]) -> None:
    """Nodes of the host, verified when they were opened: (path, tree)."""
    for path, tree in nodes:
        attach(tree, path, True)


def link_devices() -> None:
    """The links that every /dev has."""
    dev = directory(b"/dev")
    for link, target in (
        (b"fd", b"/proc/self/fd"),
        (b"stdin", b"/proc/self/fd/0"),
        (b"stdout", b"/proc/self/fd/1"),
        (b"stderr", b"/proc/self/fd/2"),
        (b"core", b"/proc/kcore"),
    ):
        if link != b"core" or os.path.exists(target):
            os.symlink(target, link, dir_fd=dev)
    os.close(dev)


def link_ptmx() -> None:
    """/dev/ptmx is that of the container's own devpts."""
    dev = directory(b"/dev")
    try:
        os.symlink(b"pts/ptmx", b"ptmx", dir_fd=dev)
    except FileExistsError:
        pass
    os.close(dev)


def make_root_read_only() -> None:
    """The root mount alone; what is mounted below it keeps its own flags."""
    root = open_root()
    mount.mount_setattr(root, set_=mount.MOUNT_ATTR_RDONLY)
    os.close(root)


def set_root_propagation(bits: int) -> None:
    """Propagation of "/", only now: set earlier it would have reached the seed."""
    root = open_root()
    mount.mount_setattr(root, propagation=bits, recursive=False)
    os.close(root)


def make_directory(path: bytes) -> None:
    """A directory of the root, made with its parents when it is missing."""
    os.close(directory(path))


def make_cwd(path: bytes) -> None:
    """The working directory of an image may not exist yet; made inside the jail, before the root turns read-only."""
    try:
        os.close(directory(path))
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EINVAL, errno.ELOOP):  # enter_cwd tells what is wrong with those
            raise


def make_read_only(path: bytes) -> None:
    """A path becomes a read-only mount of itself; a missing one needs no protection."""
    try:
        found = fs.openat2(fs.AT_FDCWD, path, os.O_PATH, 0, fs.RESOLVE_NO_MAGICLINKS)
    except (FileNotFoundError, NotADirectoryError):
        return
    tree = mount.open_tree(found, b"", mount.OPEN_TREE_CLONE | mount.AT_RECURSIVE | fs.AT_EMPTY_PATH)
    mount.mount_setattr(tree, set_=mount.MOUNT_ATTR_RDONLY, recursive=True)
    mount.move_mount(tree, found)
    os.close(tree)
    os.close(found)


def mask_paths(paths: tuple[bytes, ...], label: bytes = b"") -> None:
    """Files are covered by /dev/null, verified to be the device (CVE-2025-31133), directories by one empty tmpfs."""
    global detail
    null = -1
    empty = -1
    for path in paths:
        detail = path
        try:
            found = fs.openat2(fs.AT_FDCWD, path, os.O_PATH, 0, fs.RESOLVE_NO_MAGICLINKS)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if stat.S_ISDIR(os.fstat(found).st_mode):
            if empty < 0:
                empty = mount.new_mount(b"tmpfs", (*_MASK_OPTIONS, *context(label)), mount.MOUNT_ATTR_RDONLY)
                mount.move_mount(empty, found)
            else:
                clone_onto(empty, found)
        else:
            if null < 0:
                null = os.open("/dev/null", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
                if not fs.is_device(null, 1, 3):
                    raise OSError(errno.ENODEV, "not the null device")
            clone_onto(null, found)
        os.close(found)
    for fd in (null, empty):
        if fd >= 0:
            os.close(fd)
    detail = b""


def clone_onto(source: int, target: int) -> None:
    tree = mount.open_tree(source, b"", mount.OPEN_TREE_CLONE | fs.AT_EMPTY_PATH)
    mount.move_mount(tree, target)
    os.close(tree)


def write_sysctls(values: tuple[tuple[bytes, bytes], ...]) -> None:
    """Through a procfs of our own that nothing is mounted over (CVE-2025-52881); one key, one write."""
    global detail
    proc = mount.new_mount(b"proc")
    for key, value in values:
        detail = key
        path = b"sys/" + key.replace(b".", b"/")
        fd = fs.openat2(proc, path, os.O_WRONLY, 0, fs.RESOLVE_BENEATH | fs.RESOLVE_NO_XDEV | fs.RESOLVE_NO_MAGICLINKS)
        os.write(fd, value)
        os.close(fd)
    os.close(proc)
    detail = b""


def set_hostname(name: bytes) -> None:
    """sethostname(2) in the container's own UTS namespace."""
    process.sethostname(name)


def set_domainname(name: bytes) -> None:
    """setdomainname(2)."""
    process.setdomainname(name)
