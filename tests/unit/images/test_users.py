from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.errors import InvalidSpec
from crishim.images.users import MAX_ID, UserDatabase

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
1000:x:0:0:a trap:/trap:/bin/sh
app:x:1001:1002:app:/home/app:/bin/sh
app:x:7:7:second:/second:/bin/sh
# comment:x:1:1::/:
broken
wrapped:x:4294967296:0::/:/bin/sh
negative:x:-1:0::/:/bin/sh
relative:x:1003:1003::home:/bin/sh
"""
GROUP = b"""root:x:0:
staff:x:50:app,other
wheel:x:10:root,app,root
app:x:1002:app
0:x:77:
huge:x:99999999999:app
"""
USERS = UserDatabase.parse(PASSWD, GROUP)


@pytest.mark.parametrize(
    ("user", "uid", "gid", "groups", "home"),
    [
        ("", 0, 0, (10,), "/root"),
        ("0", 0, 0, (10,), "/root"),
        ("root", 0, 0, (10,), "/root"),
        ("app", 1001, 1002, (10, 50), "/home/app"),
        ("1001", 1001, 1002, (10, 50), "/home/app"),
        ("1000", 1000, 0, (), "/"),
        ("4242", 4242, 0, (), "/"),
        ("4242:17", 4242, 17, (), "/"),
        ("app:staff", 1001, 50, (), "/home/app"),
        ("app:0", 1001, 0, (), "/home/app"),
        ("1001:wheel", 1001, 10, (), "/home/app"),
        ("relative", 1003, 1003, (), "/"),
        (str(MAX_ID), MAX_ID, 0, (), "/"),
    ],
)
def test_the_forms_of_an_image_user(user: str, uid: int, gid: int, groups: tuple[int, ...], home: str) -> None:
    found = USERS.resolve(user)
    assert (found.uid, found.gid, found.groups, found.home) == (uid, gid, groups, home)


@pytest.mark.parametrize(
    "user",
    [
        "4294967295",
        "4294967296",
        "18446744073709551616",
        "-1",
        "+1",
        "0x0",
        " 1",
        "1 ",
        "1e3",
        "1_000",
        "١",
        "1000:",
        ":5",
        ":",
        "app:",
        "app:4294967296",
        "app:-1",
        "app:nobody-knows",
        "1:2:3",
        "ghost",
        "wrapped",
        "negative",
        "# comment",
        "App",
    ],
)
def test_a_user_that_cannot_be_is_refused_and_named(user: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        USERS.resolve(user)
    assert user.partition(":")[0] in str(refused.value) or user.partition(":")[2] in str(refused.value)


def test_a_number_is_never_a_name() -> None:
    """CVE-2016-3697: the image's passwd has a user called 1000 with uid 0."""
    assert USERS.resolve("1000").uid == 1000
    assert USERS.gid_of("0") == 0


def test_an_unreadable_file_stops_names_and_not_numbers() -> None:
    users = UserDatabase.parse(b"", b"", passwd_error="/etc/passwd of the image cannot be used: it has 3 GB")
    assert users.resolve("1000").uid == 1000
    with pytest.raises(InvalidSpec, match="3 GB"):
        users.resolve("app")


def test_home_by_uid() -> None:
    assert USERS.home(1001) == "/home/app"
    assert USERS.home(4242) == "/"


@given(st.binary(max_size=300), st.binary(max_size=300), st.text(max_size=12))
def test_any_bytes_make_a_database(passwd: bytes, group: bytes, user: str) -> None:
    users = UserDatabase.parse(passwd, group)
    try:
        found = users.resolve(user)
    except InvalidSpec:
        return
    assert 0 <= found.uid <= MAX_ID
    assert 0 <= found.gid <= MAX_ID
    if user.isascii() and user.isdigit():
        assert found.uid == int(user)
