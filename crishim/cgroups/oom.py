"""Waiting for the kernel's OOM killer in one cgroup. Sources: cgroup-v2.rst (memory.events), cgroup-v1/memory.rst."""

from __future__ import annotations

import os
import select

from crishim.cgroups.files import join_path
from crishim.cgroups.hierarchy import Hierarchy
from crishim.cgroups.processes import oom_kills


class OomWatch:
    """A descriptor that poll(2) finds ready when the OOM killer was at work; owns it until `close`."""

    __slots__ = ("_hierarchy", "_path", "fd", "is_exact", "mask")

    def __init__(self, hierarchy: Hierarchy, path: str | bytes) -> None:
        """fd is -1 where there is no memory controller, or no such cgroup any more."""
        self._hierarchy = hierarchy
        self._path = path
        #: whether the counter has changed when the descriptor is ready; v1 tells before anything is killed
        self.is_exact = hierarchy.is_v2("memory")
        #: what to ask poll(2) for
        self.mask = select.POLLPRI if self.is_exact else select.POLLIN
        self.fd = -1
        tree = hierarchy.controllers.get("memory")
        if tree is None:
            return
        directory = join_path(tree, path)
        try:
            if self.is_exact:
                self.fd = os.open(directory + b"/memory.events", os.O_RDONLY | os.O_CLOEXEC)
                self.consume()
            else:
                self.fd = _v1_eventfd(directory)
        except FileNotFoundError:
            pass

    def count(self) -> int:
        """Processes killed so far, in the cgroup and below."""
        return oom_kills(self._hierarchy, self._path)

    def consume(self) -> None:
        """Wait for the next one from now on; a cgroup that is gone stays silent."""
        try:
            if self.is_exact:
                os.pread(self.fd, 4096, 0)
            else:
                os.eventfd_read(self.fd)
        except OSError:
            pass

    def close(self) -> None:
        """Let go of the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _v1_eventfd(directory: bytes) -> int:
    control = os.open(directory + b"/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
    try:
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            register = os.open(directory + b"/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(register, b"%d %d" % (event, control))
            finally:
                os.close(register)
        except BaseException:
            os.close(event)
            raise
        return event
    finally:
        os.close(control)
