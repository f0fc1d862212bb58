"""Who a user is inside an image: /etc/passwd and /etc/group as a value, and the USER forms of an image. Pure.

The bytes come from `roles.read_users`, which bounds them. A number is always an id and never looked up as a name
(CVE-2016-3697), and what is out of range is an error instead of wrapping to root (CVE-2024-40635).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from crishim.errors import InvalidSpec

#: uid_t without -1, which chown(2) and setresuid(2) read as "unchanged"
MAX_ID = (1 << 32) - 2
_MAX_LINE = 1 << 16


@dataclass(frozen=True, slots=True)
class PasswdEntry:
    """A line of /etc/passwd."""

    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True)
class GroupEntry:
    """A line of /etc/group."""

    name: str
    gid: int
    members: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ResolvedUser:
    """A user as numbers. `groups` is what /etc/group adds, without the primary gid; `home` is "/" when unknown."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    #: the name in /etc/passwd, "" when there is none
    name: str


@dataclass(frozen=True, slots=True)
class UserDatabase:
    """The users of one root file system; the first line of a name or id counts, as in getpwnam(3)."""

    users: tuple[PasswdEntry, ...] = ()
    groups: tuple[GroupEntry, ...] = ()
    #: why a file could not be read; numbers resolve all the same, names do not
    passwd_error: str = ""
    group_error: str = ""
    _users_by_name: Mapping[str, PasswdEntry] = field(init=False, repr=False, compare=False)
    _users_by_uid: Mapping[int, PasswdEntry] = field(init=False, repr=False, compare=False)
    _groups_by_name: Mapping[str, GroupEntry] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_users_by_name", {user.name: user for user in reversed(self.users)})
        object.__setattr__(self, "_users_by_uid", {user.uid: user for user in reversed(self.users)})
        object.__setattr__(self, "_groups_by_name", {group.name: group for group in reversed(self.groups)})

    @classmethod
    def parse(cls, passwd: bytes, group: bytes, passwd_error: str = "", group_error: str = "") -> UserDatabase:
        """The database of two files; malformed lines are passed over, as nsswitch does."""
        users = tuple(user for line in _lines(passwd) if (user := _passwd_entry(line)))
        groups = tuple(entry for line in _lines(group) if (entry := _group_entry(line)))
        return cls(users, groups, passwd_error, group_error)

    @property
    def weight(self) -> int:
        """What keeping it takes, in entries: users, groups and members of groups."""
        return len(self.users) + sum(1 + len(group.members) for group in self.groups)

    def resolve(self, user: str) -> ResolvedUser:
        """An image's USER: "", uid, name, uid:gid, uid:group, name:gid or name:group; InvalidSpec names the value.

        Without a group part the primary gid is that of the passwd line, or 0; with one, /etc/group adds nothing.
        """
        name, colon, group = user.partition(":")
        if colon and (not name or not group):
            raise InvalidSpec(f"user {user!r} has an empty part")
        entry, uid = self._find(name) if name else (self._users_by_uid.get(0), 0)
        home = entry.home if entry and entry.home.startswith("/") else "/"
        found = entry.name if entry else ""
        if colon:
            return ResolvedUser(uid, self.gid_of(group), (), home, found)
        gid = entry.gid if entry else 0
        return ResolvedUser(uid, gid, self._groups_of(found, gid), home, found)

    def home(self, uid: int) -> str:
        """Home directory of the uid in /etc/passwd, "/" when there is none."""
        entry = self._users_by_uid.get(uid)
        return entry.home if entry and entry.home.startswith("/") else "/"

    def gid_of(self, group: str) -> int:
        """A group's number, or its name looked up; InvalidSpec names the value."""
        if _looks_numeric(group):
            return parse_id(group, "group")
        entry = self._groups_by_name.get(group)
        if entry is None:
            raise InvalidSpec(self.group_error or f"group {group!r} is not in /etc/group of the image")
        return entry.gid

    def _find(self, name: str) -> tuple[PasswdEntry | None, int]:
        if _looks_numeric(name):
            uid = parse_id(name, "user")
            return self._users_by_uid.get(uid), uid
        entry = self._users_by_name.get(name)
        if entry is None:
            raise InvalidSpec(self.passwd_error or f"user {name!r} is not in /etc/passwd of the image")
        return entry, entry.uid

    def _groups_of(self, name: str, primary: int) -> tuple[int, ...]:
        if not name:
            return ()
        return tuple(sorted({group.gid for group in self.groups if name in group.members and group.gid != primary}))


def parse_id(text: str, what: str) -> int:
    """A decimal uid or gid, 0..4294967294, digits only; InvalidSpec names `what` and the value."""
    if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_ID:
        return int(text)
    raise InvalidSpec(f"{what} {text!r} is not a number from 0 to {MAX_ID}")


def _looks_numeric(text: str) -> bool:
    """Whether it begins like a number: such text is an id or an error, and never a name to look up."""
    return text.lstrip(" \t\n\r\v\f")[:1].isdigit() or text[:1] in "+-" or text != text.strip()


def _lines(content: bytes) -> list[str]:
    return [line.decode("utf-8", "surrogateescape") for line in content.split(b"\n") if 0 < len(line) <= _MAX_LINE]


def _passwd_entry(line: str) -> PasswdEntry | None:
    fields = line.split(":")
    if len(fields) < 6 or not fields[0] or fields[0].startswith("#"):
        return None
    uid, gid = _file_id(fields[2]), _file_id(fields[3])
    return None if uid is None or gid is None else PasswdEntry(fields[0], uid, gid, fields[5])


def _group_entry(line: str) -> GroupEntry | None:
    fields = line.split(":")
    if len(fields) < 3 or not fields[0] or fields[0].startswith("#"):
        return None
    gid = _file_id(fields[2])
    if gid is None:
        return None
    members = tuple(name for part in fields[3:4] for name in part.split(",") if name)
    return GroupEntry(fields[0], gid, members)


def _file_id(text: str) -> int | None:
    try:
        return parse_id(text, "id")
    except InvalidSpec:
        return None
