from __future__ import annotations

import ipaddress
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crishim.errors import AlreadyExists, Exhausted, Unavailable, Unsupported
from crishim.model.sandbox import PortMapping
from crishim.network.pool import AddressPool, gateway_of

FOUR = ipaddress.ip_network("10.88.0.0/29")
SIX = ipaddress.ip_network("fd00::/64")


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[AddressPool]:
    opened = AddressPool(tmp_path / "network.db")
    yield opened
    opened.close()


def _ip(pool: AddressPool, sandbox_id: str) -> str:
    return str(pool.reserve(sandbox_id, (FOUR,)).ips[0])


def test_addresses_follow_the_gateway_in_each_subnet(pool: AddressPool) -> None:
    held = pool.reserve("a", (FOUR, SIX))
    assert [str(each) for each in held.interfaces] == ["10.88.0.2/29", "fd00::2/64"]
    assert str(gateway_of(FOUR)) == "10.88.0.1"


def test_a_repetition_gets_what_the_sandbox_holds(pool: AddressPool) -> None:
    port = PortMapping("tcp", 80, 8080)
    held = pool.reserve("a", (FOUR,), (port,))
    assert pool.reserve("a", (SIX,), ()) == held
    assert pool.list() == (held,)


def test_a_released_address_comes_again_only_after_all_others(pool: AddressPool) -> None:
    first = _ip(pool, "a")
    pool.release("a")
    others = [_ip(pool, name) for name in "bcde"]
    assert first not in others and len(set(others)) == 4
    assert _ip(pool, "f") == first


def test_exhaustion_names_the_subnet_and_reserves_nothing(pool: AddressPool) -> None:
    for name in "abcde":
        pool.reserve(name, (FOUR,))
    with pytest.raises(Exhausted, match=r"10\.88\.0\.0/29 has no free address: 5 are held"):
        pool.reserve("f", (SIX, FOUR))
    assert pool.find("f") is None
    pool.release("c")
    assert _ip(pool, "f") == "10.88.0.4"


def test_neither_gateway_nor_broadcast_is_given(pool: AddressPool) -> None:
    assert sorted(_ip(pool, name) for name in "abcde") == [f"10.88.0.{last}" for last in range(2, 7)]


def test_a_taken_host_port_names_its_owner_and_reserves_nothing(pool: AddressPool) -> None:
    pool.reserve("a", (FOUR,), (PortMapping("tcp", 80, 8080),))
    with pytest.raises(AlreadyExists, match=r"host port 8080 \(every address, tcp\) is taken by sandbox a"):
        pool.reserve("b", (FOUR,), (PortMapping("tcp", 81, 8080),))
    assert pool.find("b") is None
    assert pool.reserve("c", (FOUR,), (PortMapping("udp", 81, 8080), PortMapping("tcp", 81, 8081, "127.0.0.1")))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("", "0.0.0.0"),
        ("0.0.0.0", ""),
        ("", "::"),
        ("::", ""),
        ("", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("::1", "::"),
        ("::1", "0:0:0:0:0:0:0:1"),
    ],
)
def test_a_host_port_is_taken_for_every_spelling_and_for_each_address_of_a_family(
    pool: AddressPool, first: str, second: str
) -> None:
    pool.reserve("a", (FOUR, SIX), (PortMapping("tcp", 80, 8080, first),))
    with pytest.raises(AlreadyExists, match="is taken by sandbox a"):
        pool.reserve("b", (FOUR, SIX), (PortMapping("tcp", 80, 8080, second),))
    pool.release("a")
    assert pool.reserve("b", (FOUR, SIX), (PortMapping("tcp", 80, 8080, second),)).ports


@pytest.mark.parametrize(("first", "second"), [("0.0.0.0", "::"), ("127.0.0.1", "::"), ("127.0.0.1", "127.0.0.2")])
def test_a_host_port_on_other_addresses_is_free(pool: AddressPool, first: str, second: str) -> None:
    pool.reserve("a", (FOUR, SIX), (PortMapping("tcp", 80, 8080, first),))
    assert pool.reserve("b", (FOUR, SIX), (PortMapping("tcp", 80, 8080, second),)).ports


def test_release_frees_addresses_and_ports_and_may_be_repeated(pool: AddressPool) -> None:
    pool.reserve("a", (FOUR,), (PortMapping("tcp", 80, 8080),))
    pool.release("a")
    pool.release("a")
    assert pool.list() == ()
    assert pool.reserve("b", (FOUR,), (PortMapping("tcp", 80, 8080),)).ports


def test_reservations_and_turns_are_there_after_the_file_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "network.db"
    first = AddressPool(path)
    held = first.reserve("a", (FOUR, SIX), (PortMapping("udp", 53, 53, "127.0.0.1"),))
    first.reserve("b", (FOUR,))
    first.release("b")
    first.set_pod_cidr((SIX,))
    first.close()
    again = AddressPool(path)
    assert again.list() == (held,)
    assert again.pod_cidr() == (SIX,)
    assert _ip(again, "c") == "10.88.0.4"
    again.close()


def test_what_was_not_committed_is_not_reserved(tmp_path: Path) -> None:
    path = tmp_path / "network.db"
    crashed = AddressPool(path)
    crashed._database.execute("BEGIN IMMEDIATE")
    crashed._take("a", FOUR)
    crashed.close()
    again = AddressPool(path)
    assert again.list() == () and _ip(again, "b") == "10.88.0.2"
    again.close()


def test_commits_are_synced_to_the_disk(pool: AddressPool) -> None:
    # 2 is FULL, see "PRAGMA synchronous" of sqlite
    assert pool._database.execute("PRAGMA synchronous").fetchone() == (2,)
    assert pool._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_an_older_subnet_that_overlaps_keeps_its_addresses(pool: AddressPool) -> None:
    pool.reserve("a", (FOUR,))
    wider = ipaddress.ip_network("10.88.0.0/24")
    assert str(pool.reserve("b", (wider,)).ips[0]) == "10.88.0.3"


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "network.db"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(Unsupported, match="version 99"):
        AddressPool(path)


def test_a_disk_that_refuses_is_unavailable(pool: AddressPool) -> None:
    pool._database.execute("PRAGMA query_only = ON")
    with pytest.raises(Unavailable, match=r"address pool .*network\.db cannot be written"):
        pool.reserve("a", (FOUR,))


def test_a_disk_that_is_full_is_told_as_such(pool: AddressPool) -> None:
    (pages,) = pool._database.execute("PRAGMA page_count").fetchone()
    pool._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Exhausted, match="the disk is full"):
        pool.set_pod_cidr([ipaddress.ip_network(f"fd00:{number:x}::/64") for number in range(1, 2000)])
    assert pool.pod_cidr() == ()


@pytest.mark.parametrize("content", [b"no database at all" * 500, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "network.db"
    path.write_bytes(content)
    with pytest.raises(Unavailable, match=r"address pool .*network\.db cannot be used"):
        AddressPool(path)


def test_a_file_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot be opened"):
        AddressPool(tmp_path / "nowhere" / "network.db")


def test_a_file_that_is_damaged_in_its_tables_is_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "network.db"
    AddressPool(path).close()
    with open(path, "r+b") as file:
        file.seek(4096)  # the first page, with the schema, stays
        file.write(b"\xff" * (path.stat().st_size - 4096))
    pool = AddressPool(path)
    try:
        for use in (pool.list, pool.pod_cidr, lambda: pool.find("a"), lambda: pool.reserve("a", (FOUR,))):
            with pytest.raises(Unavailable, match=r"cannot be (read|written)"):
                use()
        with pytest.raises(Unavailable, match="cannot be written"):
            pool.release("a")
    finally:
        pool.close()


@settings(max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcdefgh")), max_size=40))
def test_no_address_is_ever_held_twice(steps: list[tuple[bool, str]]) -> None:
    pool = AddressPool(Path(":memory:"))
    held: dict[str, str] = {}
    for take, name in steps:
        if not take:
            pool.release(name)
            held.pop(name, None)
            continue
        try:
            ip = _ip(pool, name)
        except Exhausted:
            assert len(held) == 5
            continue
        assert held.setdefault(name, ip) == ip
        assert len(set(held.values())) == len(held)
    pool.close()
