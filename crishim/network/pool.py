"""Addresses and host ports of pods, on disk, so that none is given twice whatever crashes.

One sqlite file, WAL with synchronous FULL: a reservation is durable before the first effect in the kernel, and it is
released after the last one. A reservation names everything that must be undone, so `bridge.py` needs no other record.
Addresses are given in turn: one that was released is not used again before the others, since peers may still have it
in their caches. Beyond its scope: what the kernel has. Calls block for a disk sync; one thread at a time.
"""

from __future__ import annotations

import ipaddress
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from crishim.errors import AlreadyExists, Exhausted, Unavailable, Unsupported
from crishim.model.sandbox import PortMapping
from crishim.network.rtnetlink import Address, Interface, interface_of
from crishim.network.rules import is_conflict

Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network

_SCHEMA_VERSION = 1
# no index by sandbox: a node has some hundred rows, and each index is a page more in every commit
_SCHEMA = (
    "CREATE TABLE address (ip TEXT PRIMARY KEY, subnet TEXT NOT NULL, sandbox_id TEXT NOT NULL)",
    "CREATE TABLE port (protocol TEXT NOT NULL, host_ip TEXT NOT NULL, host_port INTEGER NOT NULL,"
    " container_port INTEGER NOT NULL, sandbox_id TEXT NOT NULL, PRIMARY KEY (protocol, host_ip, host_port))",
    # the address given last in each subnet
    "CREATE TABLE turn (subnet TEXT PRIMARY KEY, ip TEXT NOT NULL)",
    # the kubelet tells its pod CIDR when it starts or when it changes, not when we restart
    "CREATE TABLE pod_cidr (subnet TEXT NOT NULL)",
)


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one sandbox holds: an address in each subnet, in the order of the subnets, and host ports."""

    sandbox_id: str
    interfaces: tuple[Interface, ...]
    ports: tuple[PortMapping, ...] = ()

    @property
    def ips(self) -> tuple[Address, ...]:
        """The pod's addresses, one of each subnet."""
        return tuple(each.ip for each in self.interfaces)


class AddressPool:
    """The pool of one instance. Each method raises Exhausted when the disk is full, and Unavailable when it refuses or
    the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        """Opens or makes the file. Unsupported when a newer version of crishim wrote it."""
        self._path = path
        with self._translated("opened"):
            # threads take turns, see the top of this module
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            with self._translated("used"):
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = FULL")
                self._migrate(path)
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        self._database.close()

    def reserve(self, sandbox_id: str, subnets: Sequence[Subnet], ports: Sequence[PortMapping] = ()) -> Reservation:
        """What the sandbox holds already, whatever the arguments, else a new address in each subnet and these ports.

        Exhausted names the subnet that has no free address, AlreadyExists the host port and its owner; both reserve
        nothing.
        """
        with self._transaction():
            held = self.find(sandbox_id)
            if held is not None:
                return held
            interfaces = tuple(self._take(sandbox_id, subnet) for subnet in subnets)
            for port in ports:
                self._take_port(sandbox_id, port)
            return Reservation(sandbox_id, interfaces, tuple(ports))

    def release(self, *sandbox_ids: str) -> None:
        """Together or not at all. Nothing to do for a sandbox that holds nothing."""
        rows = [(sandbox_id,) for sandbox_id in sandbox_ids]
        with self._transaction():
            self._database.executemany("DELETE FROM address WHERE sandbox_id = ?", rows)
            self._database.executemany("DELETE FROM port WHERE sandbox_id = ?", rows)

    def find(self, sandbox_id: str) -> Reservation | None:
        """None when the sandbox holds nothing."""
        return next(iter(self._read("WHERE sandbox_id = ?", (sandbox_id,))), None)

    def find_all(self, sandbox_ids: Sequence[str]) -> Sequence[Reservation]:
        """Those of these sandboxes that hold something."""
        if len(sandbox_ids) > 1:
            wanted = frozenset(sandbox_ids)
            return [each for each in self.list() if each.sandbox_id in wanted]
        return [each for each in map(self.find, sandbox_ids) if each is not None]

    def list(self) -> tuple[Reservation, ...]:
        """Every reservation, oldest first."""
        return tuple(self._read("", ()))

    def pod_cidr(self) -> tuple[Subnet, ...]:
        """What `set_pod_cidr` kept last; empty when it was never called."""
        with self._translated("read"):
            rows = self._database.execute("SELECT subnet FROM pod_cidr ORDER BY rowid").fetchall()
        return tuple(ipaddress.ip_network(subnet) for (subnet,) in rows)

    def set_pod_cidr(self, subnets: Sequence[Subnet]) -> None:
        """Keep the kubelet's choice over restarts; the reservations stay."""
        with self._transaction():
            self._database.execute("DELETE FROM pod_cidr")
            self._database.executemany("INSERT INTO pod_cidr VALUES (?)", [(str(each),) for each in subnets])

    def _read(self, where: str, values: tuple[str, ...]) -> Iterable[Reservation]:
        with self._translated("read"):
            addresses = self._database.execute(
                f"SELECT sandbox_id, ip, subnet FROM address {where} ORDER BY rowid", values
            ).fetchall()
            host_ports = self._database.execute(
                f"SELECT sandbox_id, protocol, container_port, host_port, host_ip FROM port {where} ORDER BY rowid",
                values,
            ).fetchall()
        interfaces: dict[str, list[Interface]] = {}
        for sandbox_id, ip, subnet in addresses:
            interfaces.setdefault(sandbox_id, []).append(_interface(ip, ipaddress.ip_network(subnet)))
        ports: dict[str, list[PortMapping]] = {}
        for sandbox_id, *port in host_ports:
            ports.setdefault(sandbox_id, []).append(PortMapping(*port))
        return (Reservation(each, tuple(interfaces[each]), tuple(ports.get(each, ()))) for each in interfaces)

    def _take(self, sandbox_id: str, subnet: Subnet) -> Interface:
        row = self._database.execute("SELECT ip FROM turn WHERE subnet = ?", (str(subnet),)).fetchone()
        last = int(ipaddress.ip_address(row[0])) if row else int(gateway_of(subnet))
        (held,) = self._database.execute("SELECT count(*) FROM address WHERE subnet = ?", (str(subnet),)).fetchone()
        number = None
        if held < _capacity(subnet):
            number = next((each for each in _in_turn(subnet, last) if self._is_free(each, subnet)), None)
        if number is None:
            raise Exhausted(f"subnet {subnet} has no free address: {held} are held")
        interface = _interface(number, subnet)
        ip = str(interface.ip)
        self._database.execute("INSERT INTO address VALUES (?, ?, ?)", (ip, str(subnet), sandbox_id))
        self._database.execute("INSERT OR REPLACE INTO turn VALUES (?, ?)", (str(subnet), ip))
        return interface

    def _is_free(self, number: int, subnet: Subnet) -> bool:
        # asked over all subnets: an older pod CIDR may overlap this one
        ip = str(_interface(number, subnet).ip)
        return self._database.execute("SELECT 1 FROM address WHERE ip = ?", (ip,)).fetchone() is None

    def _take_port(self, sandbox_id: str, port: PortMapping) -> None:
        # one pod may have a port on every address and another one on a single address: `rules.py` asks that first
        rows = self._database.execute(
            "SELECT sandbox_id, host_ip FROM port WHERE protocol = ? AND host_port = ? AND sandbox_id != ?",
            (port.protocol, port.host_port, sandbox_id),
        ).fetchall()
        for owner, host_ip in rows:
            if is_conflict(port, replace(port, host_ip=host_ip)):
                where = f"{host_ip or 'every address'}, {port.protocol}"
                raise AlreadyExists(f"host port {port.host_port} ({where}) is taken by sandbox {owner}")
        row = (port.protocol, port.host_ip, port.host_port, port.container_port, sandbox_id)
        self._database.execute("INSERT INTO port VALUES (?, ?, ?, ?, ?)", row)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """IMMEDIATE, so that a second server on this file fails here and not half-way."""
        with self._translated("written"):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                # sqlite has rolled back by itself after some errors of COMMIT
                if self._database.in_transaction:
                    with suppress(sqlite3.Error):
                        self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Errors of sqlite become ours; `what` is what cannot be done to the file."""
        try:
            yield
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise Exhausted(f"address pool {self._path} cannot grow: the disk is full") from error
            raise Unavailable(f"address pool {self._path} cannot be {what}: {error}") from error

    def _migrate(self, path: Path) -> None:
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version > _SCHEMA_VERSION:
            raise Unsupported(
                f"{path} has version {version}, written by a newer crishim; this one knows {_SCHEMA_VERSION}"
            )
        if version == _SCHEMA_VERSION:
            return
        with self._transaction():
            for statement in _SCHEMA:
                self._database.execute(statement)
            self._database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")


def gateway_of(subnet: Subnet) -> Address:
    """The bridge's own address: the first of the subnet."""
    return subnet.network_address + 1


def _pod_addresses(subnet: Subnet) -> range:
    """After the gateway; the last address of an IPv4 subnet is its broadcast address."""
    return range(int(gateway_of(subnet)) + 1, int(subnet.broadcast_address) + (0 if subnet.version == 4 else 1))


def _capacity(subnet: Subnet) -> int:
    # not len(): an IPv6 subnet may hold more than a C long
    addresses = _pod_addresses(subnet)
    return max(addresses.stop - addresses.start, 0)


def _in_turn(subnet: Subnet, last: int) -> Iterator[int]:
    """Every address that pods may have, once, beginning after `last`."""
    addresses = _pod_addresses(subnet)
    start = min(max(last + 1, addresses.start), addresses.stop)
    yield from range(start, addresses.stop)
    yield from range(addresses.start, start)


def _interface(ip: str | int, subnet: Subnet) -> Interface:
    address = ipaddress.IPv4Address(ip) if subnet.version == 4 else ipaddress.IPv6Address(ip)
    return interface_of(address, subnet.prefixlen)
