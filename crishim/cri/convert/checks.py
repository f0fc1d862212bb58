"""Checks of single fields. Each takes the path of the field, which opens the message of its InvalidSpec."""

from __future__ import annotations

import enum
import ipaddress
import json
import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Final, NoReturn, TypeVar

from crishim.errors import InvalidSpec

E = TypeVar("E", bound=enum.Enum)

#: the two ids that are not ids: (uid_t) -1, and what lies beyond 32 bits (setresuid(2))
MAX_ID: Final = 2**32 - 2
MAX_PORT: Final = 65535
#: PATH_MAX of linux/limits.h, with its NUL
_MAX_PATH: Final = 4095
#: of one name, well above the 253 of a DNS name
_MAX_NAME: Final = 512
#: a pod cannot be larger than etcd's 1.5 MiB, so neither can what it carries here
_MAX_ANNOTATIONS: Final = 2 << 20
_MAX_LABELS: Final = 256 << 10
_MAX_SHOWN: Final = 80
#: waits of decades are as good as for ever, and small enough for every clock
_MAX_SECONDS: Final = 2**31 - 1

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SPACE_OR_CONTROL = re.compile(r"[\s\x00-\x1f\x7f]")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def refuse(path: str, value: object, why: str) -> NoReturn:
    """InvalidSpec for the field at `path`; long values are cut, control characters are escaped."""
    shown = json.dumps(value)
    if len(shown) > _MAX_SHOWN:
        shown = shown[:_MAX_SHOWN] + "..."
    raise InvalidSpec(f"{path} is {shown}: {why}")


def not_empty(path: str, value: str) -> str:
    """`value`, unless it is empty."""
    if not value:
        raise InvalidSpec(f"{path} is empty")
    return value


def without_nul(path: str, value: str) -> str:
    """`value`, which may go to the kernel as a C string."""
    if "\0" in value:
        refuse(path, value, "it must not hold a NUL byte")
    return value


def line(path: str, value: str) -> str:
    """`value`, which may be empty but fits on one line without control characters."""
    if _CONTROL.search(value):
        refuse(path, value, "it must not hold control characters")
    return value


def word(path: str, value: str) -> str:
    """`value`, not empty and without white space."""
    if _SPACE_OR_CONTROL.search(not_empty(path, value)):
        refuse(path, value, "it must not hold white space or control characters")
    return value


def name(path: str, value: str) -> str:
    """`value` as a part of an identity: not empty, one line, no slash, not "." or ".."."""
    line(path, not_empty(path, value))
    if "/" in value or value in (".", ".."):
        refuse(path, value, "it must be a name, not a path")
    if len(value) > _MAX_NAME:
        refuse(path, value, f"it must not be longer than {_MAX_NAME} characters")
    return value


def identifier(path: str, value: str) -> str:
    """`value` as an id of ours, or the beginning of one."""
    if not _ID.fullmatch(not_empty(path, value)):
        refuse(path, value, "it must be an id")
    return value


def reference(path: str, value: str) -> str:
    """`value` as something that can name an image; what it means is for the image store to say."""
    if len(word(path, value)) > _MAX_PATH:
        refuse(path, value, f"it must not be longer than {_MAX_PATH} characters")
    return value


def one_of(path: str, value: int, kind: type[E]) -> E:
    """The member with that wire number; proto3 enums are open, so any number can come."""
    try:
        return kind(value)
    except ValueError:
        refuse(path, value, "it must be one of " + ", ".join(f"{m.value} ({m.name})" for m in kind))


def within(path: str, value: int, low: int, high: int) -> int:
    """`value` when low <= value <= high."""
    if not low <= value <= high:
        refuse(path, value, f"it must be between {low} and {high}")
    return value


def seconds(path: str, value: int) -> int:
    """`value` in s, not negative; more than 68 years become 68 years."""
    if value < 0:
        refuse(path, value, "it must not be negative")
    return min(value, _MAX_SECONDS)


def _path(path: str, value: str) -> str:
    without_nul(path, value)
    if len(value.encode()) > _MAX_PATH:
        refuse(path, value, f"it must not be longer than {_MAX_PATH} bytes")
    return value


def absolute(path: str, value: str) -> str:
    """`value` as an absolute path; ".." is left to whoever resolves it below a root."""
    if not _path(path, not_empty(path, value)).startswith("/"):
        refuse(path, value, "it must be an absolute path")
    return value


def absolute_or_empty(path: str, value: str) -> str:
    """`value` as an absolute path, or "" when it was not given."""
    return absolute(path, value) if value else ""


def below(path: str, value: str) -> str:
    """`value` as a relative path that does not leave its directory and names something in it."""
    line(path, _path(path, not_empty(path, value)))
    if value.startswith("/"):
        refuse(path, value, "it must be a relative path")
    if ".." in value.split("/"):
        refuse(path, value, 'it must not hold ".."')
    if value.endswith("/") or posixpath.normpath(value) == ".":
        refuse(path, value, "it must name a file")
    return value


def directory(path: str, value: str) -> str:
    """`value` as an absolute path on one line without "..", or ""."""
    if ".." in line(path, absolute_or_empty(path, value)).split("/"):
        refuse(path, value, 'it must not hold ".."')
    return value


def address(path: str, value: str) -> str:
    """`value` as an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        refuse(path, value, "it must be an IP address")
    return line(path, value)


def words(path: str, values: Iterable[str]) -> tuple[str, ...]:
    """Each a `word`."""
    return tuple(word(f"{path}[{index}]", value) for index, value in enumerate(values))


def arguments(path: str, values: Iterable[str]) -> tuple[str, ...]:
    """Arguments of a program: any text without NUL, empty ones included."""
    return tuple(without_nul(f"{path}[{index}]", value) for index, value in enumerate(values))


def label_map(path: str, values: Mapping[str, str]) -> dict[str, str]:
    """A copy; keys fit on one line, values are kept as they are, byte for byte."""
    return _pairs(path, values, _MAX_LABELS)


def annotation_map(path: str, values: Mapping[str, str]) -> dict[str, str]:
    """A copy; keys fit on one line, values are kept as they are, byte for byte."""
    return _pairs(path, values, _MAX_ANNOTATIONS)


def _pairs(path: str, values: Mapping[str, str], limit_bytes: int) -> dict[str, str]:
    total = 0
    for key, value in values.items():
        line(f"{path} key", not_empty(f"{path} key", key))
        total += len(key.encode()) + len(value.encode())
    if total > limit_bytes:
        raise InvalidSpec(f"{path} holds {total} bytes: it must not hold more than {limit_bytes}")
    return dict(values)
