"""The user namespace of a pod: made by the monitor, owner of the pod's other namespaces, joined by every init.

The monitor itself stays in the host's user namespace: it is the one that may write maps, limits and cgroups. A holder
process is born in the new namespace, makes the pod's other namespaces there, so that they belong to it, and ends when
the monitor has joined those.
"""

from __future__ import annotations

import os
from _signal import pidfd_send_signal
from _socket import MSG_NOSIGNAL, socket

from crishim.executor import wire
from crishim.linux import process


class UserNamespace:
    """A pod's user namespace: its descriptor and maps of [inside, outside, count]."""

    __slots__ = ("fd", "gids", "uids")

    def __init__(self, fd: int, uids: list[list[int]], gids: list[list[int]]) -> None:
        self.fd = fd
        self.uids = uids
        self.gids = gids

    def host_uid(self, uid: int) -> int:
        """The host's number of a uid inside; OSError EINVAL when it is not mapped."""
        return outside(self.uids, uid)

    def host_gid(self, gid: int) -> int:
        """The host's number of a gid inside; OSError EINVAL when it is not mapped."""
        return outside(self.gids, gid)


def make(uids: list[list[int]], gids: list[list[int]], kinds: int) -> UserNamespace:
    """Make it, and join new namespaces of `kinds` (clone flags) that it owns. OSError: maps that the kernel refuses."""
    ours, theirs = wire.pair()
    try:
        pid, pidfd = process.clone3(process.CLONE_NEWUSER)
        if pid == 0:
            ours.close()
            _hold(theirs, kinds)
        theirs.close()
        try:
            return _take_over(pid, pidfd, ours, UserNamespace(-1, uids, gids), kinds)
        finally:
            pidfd_send_signal(pidfd, 9)
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            os.close(pidfd)
    finally:
        ours.close()
        theirs.close()


def _take_over(pid: int, pidfd: int, holder: socket, user: UserNamespace, kinds: int) -> UserNamespace:
    """Give the holder its maps, and take from it what it was made for."""
    # a writer with privileges leaves setgroups(2) allowed: the image's groups must be kept
    _write_map(pid, b"uid_map", user.uids)
    _write_map(pid, b"gid_map", user.gids)
    holder.send(b"1", MSG_NOSIGNAL)
    answer = holder.recv(4)
    if answer != b"ok":
        code = int(answer or b"3")  # ESRCH: it was killed
        raise OSError(code, os.strerror(code))
    user.fd = os.open(b"/proc/%d/ns/user" % pid, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if kinds:
            process.setns(pidfd, kinds)
    except BaseException:
        os.close(user.fd)
        raise
    return user


def become_root() -> None:
    """Change to uid and gid 0 of the namespace that was just joined, without any other group.

    OSError EINVAL when it maps no 0. `lower.py` has the same three calls bare, for children.
    """
    os.setgroups(())
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _hold(monitor: socket, kinds: int) -> None:
    """In the new namespace: once the maps are there, become its root and make what it shall own; never returns."""
    try:
        if monitor.recv(1):
            try:
                become_root()  # or the root of /dev/mqueue would be nobody
                process.unshare(kinds)
                monitor.send(b"ok", MSG_NOSIGNAL)
            except OSError as error:
                monitor.send(b"%d" % (error.errno or 0), MSG_NOSIGNAL)
            monitor.recv(1)  # until the monitor has joined, and lets go or kills
    finally:
        os._exit(0)


def _write_map(pid: int, name: bytes, lines: list[list[int]]) -> None:
    fd = os.open(b"/proc/%d/%b" % (pid, name), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"".join(b"%d %d %d\n" % tuple(line) for line in lines))
    finally:
        os.close(fd)


def outside(lines: list[list[int]], number: int) -> int:
    """What a number of a map's inside is outside; OSError EINVAL when it is not mapped."""
    for inside, outside, count in lines:
        if inside <= number < inside + count:
            return outside + number - inside
    raise OSError(22, f"{number} is not mapped in the user namespace")
