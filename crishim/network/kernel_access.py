"""Sockets, lists and sysctls that the kernel's side of the bridge works with, in the network namespace of this process.

A socket is opened at its first use and kept, so that a pod's attach costs none. One thread at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from crishim.network import nftables, rtnetlink
from crishim.network.door import Readiness
from crishim.network.netlink import Request
from crishim.network.netlink_socket import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket


class NotReady(Exception):
    """The node lacks what the network needs; `readiness` says what."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.readiness = Readiness(False, reason, message)


class KernelAccess:
    """OSError (NetlinkError mostly) is what the kernel refused."""

    def __init__(self, sysctl: Path) -> None:
        self._sysctl = sysctl
        self._route: NetlinkSocket | None = None
        self._netfilter: NetlinkSocket | None = None

    def close(self) -> None:
        """Ends the sockets; what they made stays."""
        for each in (self._route, self._netfilter):
            if each is not None:
                each.close()
        self._route = self._netfilter = None

    def route(self) -> NetlinkSocket:
        """Of links, addresses, routes and traffic control."""
        if self._route is None:
            self._route = NetlinkSocket.open(NETLINK_ROUTE)
        return self._route

    def netfilter(self) -> NetlinkSocket:
        """Of packet rules and flows."""
        if self._netfilter is None:
            self._netfilter = NetlinkSocket.open(NETLINK_NETFILTER)
        return self._netfilter

    def transact(self, requests: Sequence[Request]) -> None:
        """All of these changes of packet rules, or none."""
        if requests:
            self.netfilter().transact(nftables.begin_batch(), requests, nftables.end_batch())

    def links(self) -> list[rtnetlink.Link]:
        """Every device."""
        return [rtnetlink.parse_link(each) for each in self.route().dump(rtnetlink.get_links())]

    def addresses(self) -> list[rtnetlink.LinkAddress]:
        """Those of every device."""
        found = (rtnetlink.parse_address(each) for each in self.route().dump(rtnetlink.get_addresses()))
        return [each for each in found if each is not None]

    def read_sysctl(self, path: str) -> str:
        """ "" when this kernel has none of this path below /proc/sys."""
        try:
            return (self._sysctl / path).read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return ""

    def has_ipv6(self) -> bool:
        """Whether the kernel has IPv6 and it is not disabled at boot."""
        return (self._sysctl / "net/ipv6").is_dir()

    def write_sysctl(self, path: str, value: str) -> None:
        """Only when it differs: some nodes have /proc/sys read-only and the right values."""
        if self.read_sysctl(path) == value:
            return
        try:
            (self._sysctl / path).write_text(value, encoding="ascii")
        except OSError as error:
            name = path.replace("/", ".")
            raise NotReady("SysctlRefused", f"sysctl {name} cannot be set to {value}: {error.strerror}") from error


@contextmanager
def tolerate(*numbers: int) -> Iterator[None]:
    """Swallows OSError with one of these numbers: what should go is gone."""
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise
