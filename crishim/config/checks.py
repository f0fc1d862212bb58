"""Checks of single values: each takes what TOML gave and the path of its key, and returns the value of the field.

What does not fit is InvalidSpec with the path, the value and what was wanted.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from crishim.errors import InvalidSpec
from crishim.model.process import Rlimit

Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network
Check = Callable[[object, str], Any]

# sockaddr_un holds 107 bytes (unix(7)); the socket is bound under a longer temporary name first.
_SOCKET_PATH_BYTES = 96
_REGISTRY = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[(?P<six>[0-9A-Fa-f:]+)\])(?::(?P<port>[0-9]{1,5}))?"
)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SIZE = re.compile(r"([0-9]{1,19}) ?(B|KiB|MiB|GiB|TiB)")
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_RLIMITS = re.compile(
    "AS|CORE|CPU|DATA|FSIZE|LOCKS|MEMLOCK|MSGQUEUE|NICE|NOFILE|NPROC|RSS|RTPRIO|RTTIME|SIGPENDING|STACK"
)
#: characters of a wrong value that an error shows
_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Address:
    """A numeric IP address and a port."""

    host: str
    port: int


def wrong(path: str, value: object, want: str) -> InvalidSpec:
    """The error of a value that is not `want`."""
    return InvalidSpec(f"{path}: {_shown(value)} is not {want}")


def _shown(value: object) -> str:
    """A value of TOML as a sentence may hold it."""
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= _SHOWN else f'"{value[:_SHOWN]}..."'
    try:
        shown = str(value).lower() if isinstance(value, bool) else repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits; lists in lists
        return "a value too large to show"
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


def a_text(value: object, path: str) -> str:
    """Any text without NUL."""
    if not isinstance(value, str) or "\0" in value:
        raise wrong(path, value, "a text")
    return value


def a_line(value: object, path: str) -> str:
    """A text without control characters."""
    if any(char < " " or char == "\x7f" for char in a_text(value, path)):
        raise wrong(path, value, "one line of text")
    return str(value)


def boolean(value: object, path: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise wrong(path, value, "true or false")
    return value


def one_of(*words: str) -> Check:
    """One of these texts."""

    def check(value: object, path: str) -> str:
        if value not in words:
            raise wrong(path, value, f"one of {', '.join(words)}")
        return str(value)

    return check


def whole_number(low: int, high: int) -> Check:
    """A whole number within bounds."""

    def check(value: object, path: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise wrong(path, value, f"a whole number from {low} to {high}")
        return value

    return check


def seconds(low: float, high: float) -> Check:
    """A number of seconds within bounds."""

    def check(value: object, path: str) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            raise wrong(path, value, f"a number of seconds from {low:g} to {high:g}")
        return float(value)

    return check


def size(low: int, high: int) -> Check:
    """Bytes as a number, or a text such as "16 MiB"."""

    def check(value: object, path: str) -> int:
        match = _SIZE.fullmatch(value) if isinstance(value, str) else None
        count = int(match[1]) * _UNITS[match[2]] if match else value
        if not isinstance(count, int) or isinstance(count, bool) or not low <= count <= high:
            raise wrong(path, value, f'a size from {low} to {high} bytes, as a number or like "16 MiB"')
        return count

    return check


def absolute_path(value: object, path: str) -> Path:
    """An absolute path, not necessarily there; "//" and "." are taken out."""
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value or ".." in value.split("/"):
        raise wrong(path, value, "an absolute path")
    return Path("/" + os.path.normpath(value).lstrip("/"))


def relative_path(value: object, path: str) -> str:
    """A path below a directory that is known, or "" for none."""
    if value != "" and (a_text(value, path).startswith("/") or ".." in str(value).split("/")):
        raise wrong(path, value, "a relative path")
    return str(value)


def unix_socket(value: object, path: str) -> Path:
    """The path of "unix:///PATH"."""
    text = a_text(value, path)
    if not text.startswith("unix:///") or len(os.fsencode(text)) - len("unix://") > _SOCKET_PATH_BYTES:
        raise wrong(path, value, f"of the form unix:///PATH with at most {_SOCKET_PATH_BYTES} bytes of path")
    return absolute_path(text.removeprefix("unix://"), path)


def ip_and_port(value: object, path: str) -> Address | None:
    """An address and port, None for ""."""
    text = a_text(value, path)
    if not text:
        return None
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        ipaddress.ip_address(bare)
        good = (":" in bare) == (bare != host) and port.isascii() and port.isdigit() and int(port) <= 65535
    except ValueError:
        good = False
    if not good:
        raise wrong(path, value, 'an address and port like "127.0.0.1:9477" or "[::1]:9477", or "" for none')
    return Address(bare, int(port))


def file_path(value: object, path: str) -> Path | None:
    """An absolute path, or None for ""."""
    return None if value == "" else Path(absolute_path(value, path))


def list_of(check: Check, *, empty: bool = True) -> Check:
    """A list whose values pass `check`."""

    def check_list(value: object, path: str) -> tuple[Any, ...]:
        if not isinstance(value, list) or not (value or empty):
            raise wrong(path, value, "a list" if empty else "a list with at least one value")
        return tuple(check(part, f"{path}[{index}]") for index, part in enumerate(value))

    return check_list


def table_of(key_check: Check, check: Check) -> Check:
    """A table whose keys and values pass their checks."""

    def check_table(value: object, path: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise wrong(path, value, "a table")
        table = {key_check(key, path): check(part, _inner(path, key)) for key, part in value.items()}
        return MappingProxyType(table)

    return check_table


def _inner(path: str, key: str) -> str:
    return f"{path}.{key}" if _BARE_KEY.fullmatch(key) else f'{path}."{key}"'


def ip_subnets(value: object, path: str) -> tuple[Subnet, ...]:
    """At least one subnet, at most one of each IP version."""
    subnets: list[Subnet] = []
    for index, text in enumerate(list_of(a_text, empty=False)(value, path)):
        try:
            subnet = ipaddress.ip_network(text)
        except ValueError:
            raise wrong(f"{path}[{index}]", text, 'a subnet like "10.88.0.0/16", without host bits') from None
        if subnet.num_addresses < 4:
            raise wrong(f"{path}[{index}]", text, "large enough for a gateway and a pod")
        if subnet.version in [other.version for other in subnets]:
            raise wrong(
                f"{path}[{index}]", text, f"the only IPv{subnet.version} subnet; one of each version is allowed"
            )
        subnets.append(subnet)
    return tuple(subnets)


def matching(pattern: re.Pattern[str], want: str) -> Check:
    """A text that the pattern matches whole, without ".."."""

    def check(value: object, path: str) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value) or ".." in value.split("/"):
            raise wrong(path, value, want)
        return value

    return check


def endpoint_url(value: object, path: str) -> str:
    """An http or https URL without a user, query or fragment."""
    text = a_text(value, path)
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and _is_registry(parts.netloc) and not (parts.query or parts.fragment)
    except ValueError:  # a bracket that is not closed
        good = False
    if not good:
        raise wrong(path, value, 'a URL like "https://mirror.example:5000", without a user')
    return text.rstrip("/")


def registry_host(value: object, path: str) -> str:
    """A host with or without a port."""
    if not isinstance(value, str) or not _is_registry(value):
        raise wrong(path, value, 'a registry like "registry.example:5000"')
    return value


def _is_registry(text: str) -> bool:
    match = _REGISTRY.fullmatch(text)
    if match is None or (match["port"] and not 1 <= int(match["port"]) <= 65535):
        return False
    try:
        return match["six"] is None or bool(ipaddress.IPv6Address(match["six"]))
    except ValueError:
        return False


def resource_limits(value: object, path: str) -> tuple[Rlimit, ...]:
    """A table of setrlimit(2): name without RLIMIT_ to soft and hard limit."""
    table = table_of(a_text, list_of(whole_number(-1, 2**63 - 1)))(value, path)
    limits = []
    for name, bounds in table.items():
        if not _RLIMITS.fullmatch(name):
            raise wrong(path, name, f"one of {_RLIMITS.pattern.replace('|', ', ')}")
        if len(bounds) != 2 or _unlimited(bounds[0]) > _unlimited(bounds[1]):
            raise wrong(
                _inner(path, name), list(bounds), "a soft limit and a hard limit not below it (-1 is unlimited)"
            )
        limits.append(Rlimit(f"RLIMIT_{name}", bounds[0], bounds[1]))
    return tuple(limits)


def _unlimited(value: int) -> float:
    return float("inf") if value == -1 else value
