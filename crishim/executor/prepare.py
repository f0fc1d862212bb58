"""What the monitor opens for a container before it clones: every host path of a start is resolved here, and only here.

The result is a set of descriptors by role, which `plan.py` puts into the steps. Trees are detached copies with their
final flags and propagation, so the child attaches them without touching a host path.
"""

from __future__ import annotations

import errno
import os
import stat

from crishim.cgroups import effects
from crishim.executor import jail, plan, tables
from crishim.linux import fs, mount, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crishim.cgroups.hierarchy import Hierarchy
    from crishim.executor.seed import Seed

    #: options of a mount that give its files an SELinux context
    Context = tuple[tuple[bytes, bytes], ...]

_release = os.uname().release.split(".")
#: lower layers may be given one by one, so their number and names are not bounded by a page (Linux 6.5)
_OVERLAY_TAKES_LAYERS = (int(_release[0]), int(_release[1].split("-")[0])) >= (6, 5)


class Opened:
    """Descriptors by role; closed together."""

    __slots__ = ("by_role",)

    def __init__(self) -> None:
        self.by_role: dict[bytes, int] = {}

    def close_but(self, *kept: bytes) -> None:
        """Close all but the roles `kept`; the child has its own copies."""
        for role, fd in list(self.by_role.items()):
            if role not in kept:
                del self.by_role[role]
                if fd >= 0:
                    os.close(fd)


class StepFailed(Exception):
    """A start that failed before there was a child; the text is for people."""


def open_root(rootfs: dict[str, object], seed: Seed, user: int, label: object = None) -> int:
    """A detached mount of the root: an overlay made as the host's root, or a private copy of a directory.

    user: descriptor of the container's user namespace, by which owners are shifted; -1 for the host's. label: SELinux
    context of the files of an overlay (bytes); a directory keeps its own, since others may use it too.
    """
    idmap = mount.MOUNT_ATTR_IDMAP if user >= 0 else 0
    path = rootfs["path"]
    if isinstance(path, bytes):
        tree = mount.open_tree(fs.AT_FDCWD, path, mount.OPEN_TREE_CLONE | mount.AT_RECURSIVE)
        mount.mount_setattr(tree, set_=idmap, userns=max(user, 0), propagation=mount.MS_PRIVATE, recursive=True)
        return tree
    lowers = rootfs["lowers"]
    upper = rootfs["upper"]
    work = rootfs["work"]
    assert isinstance(lowers, list)
    writable = isinstance(upper, bytes) and isinstance(work, bytes)
    context = jail.context(label) if isinstance(label, bytes) else ()
    if len(lowers) == 1 and not writable and not context:
        tree = mount.open_tree(fs.AT_FDCWD, lowers[0], mount.OPEN_TREE_CLONE)
        flags = mount.MOUNT_ATTR_RDONLY | idmap
        mount.mount_setattr(tree, set_=flags, userns=max(user, 0), propagation=mount.MS_PRIVATE)
        return tree
    if user >= 0 or (len(lowers) == 1 and not writable):
        return _overlay_in_seed(lowers, upper, work, seed, user, context)  # type: ignore[arg-type]
    return _overlay(lowers, upper, work, context)  # type: ignore[arg-type]


def _overlay(lowers: list[bytes], upper: bytes | None, work: bytes | None, context: Context = ()) -> int:
    options: list[tuple[bytes, bytes | None]] = list(context)
    if _OVERLAY_TAKES_LAYERS:
        options += [(b"lowerdir+", lower) for lower in lowers]
    else:
        # a string of fsconfig(2) holds 255 bytes: names from the directory that the layers are in
        top = os.path.dirname(lowers[0])
        os.chdir(top)
        options.append((b"lowerdir", b":".join(os.path.relpath(lower, top) for lower in lowers)))
    if upper is not None and work is not None:
        options += [(b"upperdir", upper), (b"workdir", work)]
    return mount.new_mount(b"overlay", tuple(options))


def _overlay_in_seed(
    lowers: list[bytes], upper: bytes | None, work: bytes | None, seed: Seed, user: int, context: Context
) -> int:
    """An overlay of idmapped layers; what is written belongs to the ids of the namespace on the disk too.

    overlayfs takes layers by path, and no copies that are attached nowhere: they are attached in a copy of the seed,
    which is gone when this returns, while the overlay keeps clones of its own. Needs Linux 5.19. A single layer that
    nobody writes to has an empty directory below it, since overlayfs asks for two.
    """
    layers = [_mapped(lower, user) for lower in lowers]
    base = b"" if upper is None or work is None else os.path.commonpath((upper, work))
    if base:
        layers.append(mount.open_tree(fs.AT_FDCWD, base, mount.OPEN_TREE_CLONE))
    seed.enter()
    try:
        process.unshare(process.CLONE_NEWNS)
        scratch = mount.new_mount(b"tmpfs")
        place = os.open("/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        mount.move_mount(scratch, place)
        os.close(place)
        for number, layer in enumerate(layers):
            name = b"%d" % number
            os.mkdir(name, 0o700, dir_fd=scratch)
            place = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=scratch)
            mount.move_mount(layer, place)
            os.close(place)
            os.close(layer)
        paths = [b"/root/%d" % number for number in range(len(lowers))]
        if not base:
            if len(paths) == 1:
                os.mkdir(b"empty", 0o755, dir_fd=scratch)
                paths.append(b"/root/empty")
            return _overlay(paths, None, None, context)
        top = b"/root/%d" % len(lowers)
        return _overlay(paths, top + upper[len(base) :], top + work[len(base) :], context)  # type: ignore[index]
    finally:
        os.close(scratch)
        seed.leave()


def _mapped(path: bytes, user: int) -> int:
    tree = mount.open_tree(fs.AT_FDCWD, path, mount.OPEN_TREE_CLONE)
    idmap = mount.MOUNT_ATTR_IDMAP if user >= 0 else 0
    mount.mount_setattr(tree, set_=idmap, userns=max(user, 0), propagation=mount.MS_PRIVATE)
    return tree


def open_mounts(container: dict[str, object], opened: Opened, seed: Seed, user: int) -> None:
    """Open the source of every bind mount and image volume; StepFailed names the mount. user: as for `open_root`."""
    mounts = container["mounts"]
    assert isinstance(mounts, list)
    for index, item in enumerate(mounts):
        if item["kind"] == b"bind":
            try:
                tree, is_file = _open_bind(item, bool(container["make_missing_sources"]), user)
            except OSError as error:
                source = item["source"].decode("utf-8", "replace")
                target = item["target"].decode("utf-8", "replace")
                hint = " (its file system may not support id-mapped mounts)" if item["idmap"] else ""
                raise StepFailed(
                    f'mounting "{source}" at "{target}": {os.strerror(error.errno or 0).lower()}{hint}'
                ) from None
            opened.by_role[b"mount:%d" % index] = tree
            item["source_is_file"] = is_file
        elif item["kind"] == b"image":
            try:
                tree = _open_image(item, seed, user, container.get("mount_label"))
                opened.by_role[b"mount:%d" % index] = tree
            except OSError as error:
                source, target = (item[key].decode("utf-8", "replace") for key in ("source", "target"))
                raise StepFailed(
                    f'ImageVolumeMountFailed: mounting "{source or "/"}" of the image at "{target}":'
                    f" {os.strerror(error.errno or 0).lower()}"
                ) from None
            item["source_is_file"] = not stat.S_ISDIR(os.fstat(tree).st_mode)


def _open_image(item: dict[str, object], seed: Seed, user: int, label: object) -> int:
    """A read-only mount of an image, or of what a path names in it."""
    tree = open_root({"path": None, "lowers": item["layers"], "upper": None, "work": None}, seed, user, label)
    source = item["source"]
    assert isinstance(source, bytes)
    if source:
        tree = seed.subtree(tree, source)
    set_, clear, _ = tables.attributes(item["flags"])  # type: ignore[arg-type]
    mount.mount_setattr(tree, set_=set_, clear=clear, propagation=mount.MS_PRIVATE)
    return tree


def _open_bind(item: dict[str, object], make_missing: bool, user: int) -> tuple[int, bool]:
    source = item["source"]
    assert isinstance(source, bytes)
    flags = mount.OPEN_TREE_CLONE | (mount.AT_RECURSIVE if item["recursive"] else 0)
    try:
        tree = mount.open_tree(fs.AT_FDCWD, source, flags)
    except FileNotFoundError:
        if not make_missing or os.path.islink(source):
            raise
        os.makedirs(source, 0o755, exist_ok=True)
        tree = mount.open_tree(fs.AT_FDCWD, source, flags)
    try:
        propagation = tables.propagation(item["propagation"])  # type: ignore[arg-type]
        if propagation != mount.MS_PRIVATE:
            _require_shared(source, propagation)
        set_, clear, recursive = tables.attributes(item["flags"])  # type: ignore[arg-type]
        if propagation != mount.MS_SHARED:  # a shared tree already is in the peer group of its source
            mount.mount_setattr(tree, propagation=propagation, recursive=True)
        if set_ or clear:
            mount.mount_setattr(tree, set_=set_, clear=clear, recursive=recursive)
        if item["idmap"]:
            if user < 0:
                raise OSError(errno.EINVAL, "no user namespace")
            mount.mount_setattr(tree, set_=mount.MOUNT_ATTR_IDMAP, userns=user, recursive=bool(item["recursive"]))
        return tree, not stat.S_ISDIR(os.fstat(tree).st_mode)
    except BaseException:
        os.close(tree)
        raise


def _require_shared(source: bytes, propagation: int) -> None:
    """rshared needs a shared mount below the source, rslave a shared or slave one (as runc and containerd ask).

    EINVAL otherwise: silently private would lose the user's mounts.
    """
    fd = os.open(source, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as info:
            wanted = next(line.split()[1] for line in info if line.startswith(b"mnt_id:"))
    finally:
        os.close(fd)
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            fields = line.split(b" ")
            if fields[0] == wanted:
                tags = fields[6 : fields.index(b"-")]
                shared = any(tag.startswith(b"shared:") for tag in tags)
                slave = any(tag.startswith(b"master:") for tag in tags)
                if shared or (slave and propagation == mount.MS_SLAVE):
                    return
                break
    raise OSError(errno.EINVAL, "not a shared mount")


def open_devices(container: dict[str, object], opened: Opened) -> None:
    """Open the host's device nodes, for a container that can make none; StepFailed when one is not what it must be."""
    nodes = container["device_nodes"]
    sources = container["device_sources"]
    assert isinstance(nodes, list) and isinstance(sources, list)
    for index, ((_, kind, major, minor, *_), source) in enumerate(zip(nodes, sources)):
        try:
            tree = mount.open_tree(fs.AT_FDCWD, source, mount.OPEN_TREE_CLONE)
        except OSError as error:
            where = source.decode("utf-8", "replace")
            raise StepFailed(f'device "{where}": {os.strerror(error.errno or 0).lower()}') from None
        opened.by_role[b"device:%d" % index] = tree
        found = os.fstat(tree)
        kind_is_right = stat.S_ISBLK(found.st_mode) if kind == b"b" else stat.S_ISCHR(found.st_mode)
        if not kind_is_right or found.st_rdev != os.makedev(major, minor):
            raise StepFailed(f'device "{source.decode("utf-8", "replace")}" is not {kind.decode()} {major}:{minor}')


def open_kernel_views(opened: Opened) -> None:
    """The host's proc and sysfs without what is mounted in them: see `jail.show`."""
    for name in (b"proc", b"sys"):
        opened.by_role[b"view:" + name] = mount.open_tree(fs.AT_FDCWD, b"/" + name, mount.OPEN_TREE_CLONE)


def open_namespaces(container: dict[str, object], opened: Opened) -> None:
    """Open the namespaces to join, all of them before anything changes."""
    joined = container["joined_namespaces"]
    assert isinstance(joined, dict)
    for kind, path in joined.items():
        try:
            opened.by_role[b"ns:" + kind] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            where = path.decode("utf-8", "replace")
            raise StepFailed(f'{kind.decode()} namespace "{where}": {os.strerror(error.errno or 0).lower()}') from None


def clone_flags(container: dict[str, object]) -> int:
    """Flags of clone3(2) for the namespaces that are new: not those that come before or after it."""
    kinds = container["new_namespaces"]
    assert isinstance(kinds, list)
    flags = tables.NAMESPACE_FLAGS[b"mnt"]
    for kind in kinds:
        if kind not in plan.NOT_BY_CLONE:
            flags |= tables.NAMESPACE_FLAGS[kind]
    return flags


def namespaces_of(container: dict[str, object]) -> int:
    """Clone flags of the namespaces that the container does not share with its monitor."""
    flags = tables.NAMESPACE_FLAGS[b"mnt"]
    for kind in (*container["new_namespaces"], *container["joined_namespaces"]):  # type: ignore[misc]
        flags |= tables.NAMESPACE_FLAGS[kind]
    if container["pid_namespace"] is not None:
        flags |= tables.NAMESPACE_FLAGS[b"pid"]
    return flags


def open_cgroups(hierarchy: Hierarchy, path: str, index: int, item: dict[str, object], opened: Opened) -> None:
    """The container's own cgroup directories as trees: one of v2 (name empty), or one per controller of v1.

    A bind of its own directory is what a container without a cgroup namespace may see.
    """
    set_, clear, _ = tables.attributes(item["flags"])  # type: ignore[arg-type]
    for name, directory in effects.directories(hierarchy, path):
        try:
            tree = mount.open_tree(fs.AT_FDCWD, directory, mount.OPEN_TREE_CLONE)
        except FileNotFoundError:
            continue
        mount.mount_setattr(tree, set_=set_, clear=clear, propagation=mount.MS_PRIVATE)
        opened.by_role[b"cgroup:%d:%b" % (index, name)] = tree
