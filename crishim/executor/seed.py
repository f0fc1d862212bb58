"""The seed mount namespace that every child is cloned from: an empty tmpfs and nothing of the host.

Cloning copies the mount table of the cloner; with a thousand mounts on the host that is what would cost most. A cloner
joins the seed, clones, and goes back. A pod's own seed also holds its /dev/shm, at /shm.
"""

from __future__ import annotations

import os

from crishim.linux import fs, mount, process


class Seed:
    """Descriptors: the host's mount namespace to come back to, the seed, and the host's /proc, which the seed lacks."""

    __slots__ = ("host", "proc", "seed")

    def __init__(self, host: int, proc: int, seed: int) -> None:
        self.host = host
        self.proc = proc
        self.seed = seed

    def enter(self) -> None:
        """Into the seed, until `leave`."""
        process.setns(self.seed, process.CLONE_NEWNS)

    def clone(self, flags: int, cgroup: int = -1) -> tuple[int, int]:
        """clone3 from inside the seed; (pid, pidfd) in the parent, which is back in the host's namespace."""
        self.enter()
        try:
            pid, pidfd = process.clone3(flags, cgroup)
        except OSError:
            self.leave()
            raise
        if pid:
            self.leave()
        return pid, pidfd

    def open_tree(self, path: bytes) -> int:
        """A detached copy of a mount in the seed; the caller owns it."""
        process.setns(self.seed, process.CLONE_NEWNS)
        try:
            return mount.open_tree(fs.AT_FDCWD, path, mount.OPEN_TREE_CLONE)
        finally:
            self.leave()

    def subtree(self, tree: int, path: bytes) -> int:
        """A detached copy of what `path` names inside a detached tree, which is used up; no link leads out of it.

        Only what is attached can be copied before Linux 6.15, so it is attached in a copy of the seed that ends here.
        """
        self.enter()
        try:
            process.unshare(process.CLONE_NEWNS)
            place = os.open("/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            mount.move_mount(tree, place)
            os.close(place)
            found = fs.openat2(tree, path, os.O_PATH)
            copy = mount.open_tree(found, b"", mount.OPEN_TREE_CLONE | fs.AT_EMPTY_PATH)
            os.close(found)
            return copy
        finally:
            os.close(tree)
            self.leave()

    def leave(self) -> None:
        """Back to the host's mounts; whoever cannot go back ends: it would see an empty tree as the host."""
        try:
            process.setns(self.host, process.CLONE_NEWNS)
        except OSError:
            os._exit(70)

    def current(self) -> int:
        """Descriptor of the calling process's mount namespace; the caller owns it."""
        return os.open("self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc)


def make_seed() -> Seed:
    """The seed of this zygote. Raises OSError (EPERM: not privileged)."""
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    seed = Seed(os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC), proc, -1)
    process.unshare(process.CLONE_NEWNS)
    try:
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        mount.mount_setattr(root, propagation=mount.MS_PRIVATE, recursive=True)  # what follows must not reach the host
        os.close(root)
        empty = mount.new_mount(
            b"tmpfs",
            ((b"mode", b"0755"), (b"nr_inodes", b"8"), (b"size", b"64k")),
            mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV,
        )
        for name in ("root", "shm", "proc", "sys"):  # the last two: see `jail.show`
            os.mkdir(name, 0o755, dir_fd=empty)
        place = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # any directory, for a moment
        mount.move_mount(empty, place)
        os.close(place)
        os.fchdir(empty)
        mount.pivot_root(b".", b".")
        mount.umount2(b".", mount.MNT_DETACH)
        mount.mount_setattr(empty, set_=mount.MOUNT_ATTR_RDONLY)
        os.close(empty)
        seed.seed = seed.current()
    finally:
        seed.leave()
    return seed


def make_pod_seed(base: Seed, shm_bytes: int, uid: int, gid: int, label: bytes | None = None) -> Seed:
    """A copy of the seed with a tmpfs of `shm_bytes` at /shm: the /dev/shm of a pod with its own IPC namespace.

    uid, gid: the host's numbers of the pod's root; label: SELinux context of what it holds.
    """
    base.enter()
    try:
        process.unshare(process.CLONE_NEWNS)
        shm = mount.new_mount(
            b"tmpfs",
            (
                (b"mode", b"1777"),
                (b"size", b"%d" % shm_bytes),
                (b"uid", b"%d" % uid),
                (b"gid", b"%d" % gid),
                *(((b"context", label),) if label else ()),
            ),
            mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOEXEC,
            b"shm",
        )
        place = os.open("/shm", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        mount.move_mount(shm, place)
        os.close(place)
        os.close(shm)
        return Seed(base.host, base.proc, base.current())
    finally:
        base.leave()
