"""Network devices of the host in a container's network namespace: moved in by the starter, back by the monitor.

A device keeps its MAC address and its MTU by the kernel, and by us the addresses that somebody gave it and that mean
something elsewhere; then it is up. At the container's end, or when the start fails, it goes back with its old name and
addresses, and up when it was. What a container did to it must not come back with it: only a device that never left the
namespace meanwhile is moved, which a packet socket bound to it knows (an index can be taken by another device), and
its addresses are those it had.
"""

from __future__ import annotations

import errno
import os
from _socket import AF_PACKET, SOCK_CLOEXEC, SOCK_RAW, socket

from crishim.executor.prepare import StepFailed
from crishim.linux import process
from crishim.linux.rtnetlink import IFF_LOOPBACK, IFF_UP, Address, RouteSocket

#: kind of a starter's message to its monitor, before its answer
MOVED = 100

TYPE_CHECKING = False
if TYPE_CHECKING:
    #: name on the host, name inside, index inside, whether it was up, its addresses
    Device = tuple[bytes, bytes, int, bool, list[Address]]


class NetDevices:
    """The devices of one container. Owns sockets: of the host's namespace, of the container's, one for each device."""

    __slots__ = ("devices", "host", "inside", "marks")

    def __init__(self, host: RouteSocket, inside: RouteSocket) -> None:
        self.host = host
        self.inside = inside
        self.devices: list[Device] = []
        #: a packet socket bound to each device
        self.marks: list[socket] = []

    def to_value(self) -> dict[str, object]:
        """For a message; `fds` go beside it."""
        return {"devices": [list(device) for device in self.devices]}

    def fds(self) -> list[int]:
        """The sockets' descriptors, which stay ours."""
        return [sock.fileno() for sock in (self.host.sock, self.inside.sock, *self.marks)]

    @classmethod
    def from_value(cls, value: dict[str, object], fds: list[int]) -> NetDevices:
        """The inverse; the descriptors become its own."""
        made = cls(RouteSocket(fds[0]), RouteSocket(fds[1]))
        made.devices = [tuple(device) for device in value["devices"]]  # type: ignore[attr-defined]
        made.marks = [socket(fileno=fd) for fd in fds[2:]]
        return made

    def give_back(self, netns: int) -> list[str]:
        """Move all devices to the host's namespace, of the descriptor; what could not be done. Closes the sockets."""
        problems = []
        for (name, inside, index, was_up, addresses), mark in zip(self.devices, self.marks):
            try:
                if not mark.getsockname()[0]:  # it left the namespace, and its name and index may be another's
                    raise OSError(errno.ENODEV, "")
                self.inside.change(index, name=name, netns=netns)
                _revive(self.host, name, was_up, addresses)
            except OSError as error:
                what = f"network device {_text(name)} ({_text(inside)} inside)"
                problems.append(f"{what} is not back: {os.strerror(error.errno or 0).lower()}")
        self.close()
        return problems

    def move_in(self, name: bytes, inside: bytes, netns: int, mark: socket) -> None:
        """Move one device into the container's namespace, of the descriptor. StepFailed leaves it where it was.

        mark: an unbound packet socket of that namespace, which becomes ours.
        """
        what = f'net_devices["{_text(name)}"]'
        found = self.host.link(name)
        if found is None:
            raise StepFailed(f"{what}: no such device on the host")
        index, flags = found
        if flags & IFF_LOOPBACK:
            raise StepFailed(f"{what}: a loopback device stays where it is")
        if self.inside.link(inside) is not None:
            raise StepFailed(f'{what}: the name "{_text(inside)}" is taken in the container')
        addresses = self.host.global_addresses(index)
        try:
            self.host.change(index, name=inside, netns=netns)
        except OSError as error:
            raise StepFailed(f"{what}: it cannot be moved: {os.strerror(error.errno or 0).lower()}") from None
        self.marks.append(mark)
        self.devices.append((name, inside, 0, bool(flags & IFF_UP), addresses))
        try:
            now = _revive(self.inside, inside, True, addresses)
            self.devices[-1] = (name, inside, now, bool(flags & IFF_UP), addresses)
            mark.bind((inside.decode("utf-8", "surrogateescape"), 0))
        except OSError as error:
            raise StepFailed(f"{what}: bringing it up inside: {os.strerror(error.errno or 0).lower()}") from None

    def close(self) -> None:
        """Let go of the sockets."""
        for each in (self.host.sock, self.inside.sock, *self.marks):
            each.close()
        self.marks = []


def move_in(wanted: list[list[bytes]], proc: int, home: int, target: int) -> NetDevices:
    """Move devices, [name on the host, name inside], into a container's network namespace; StepFailed names one.

    proc: the host's /proc; home: descriptor of the host's network namespace, -1 when it is ours; target: of the
    container's, -1 when it is ours. The caller is left in its own.
    """
    own = os.open("self/ns/net", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    try:
        host = _route_socket(home, own)
        _enter(target)
        try:
            inside = RouteSocket()
            marks = [socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0) for _ in wanted]
        finally:
            _enter(own if target >= 0 else -1)
        moved = NetDevices(host, inside)
        try:
            for (name, name_inside), mark in zip(wanted, marks):
                moved.move_in(name, name_inside, target if target >= 0 else own, mark)
        except BaseException:
            moved.give_back(home if home >= 0 else own)
            raise
        return moved
    finally:
        os.close(own)


def _route_socket(namespace: int, own: int) -> RouteSocket:
    _enter(namespace)
    try:
        return RouteSocket()
    finally:
        _enter(own if namespace >= 0 else -1)


def _enter(namespace: int) -> None:
    if namespace >= 0:
        process.setns(namespace, process.CLONE_NEWNET)


def _revive(where: RouteSocket, name: bytes, up: bool, addresses: list[Address]) -> int:
    """Give a device that was moved its addresses, and bring it up; its index."""
    found = where.link(name)
    if found is None:
        raise OSError(errno.ENODEV, "")
    for address in addresses:
        where.add_address(found[0], address)
    if up:
        where.change(found[0], up=True)
    return found[0]


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")
