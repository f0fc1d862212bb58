"""The configuration as keys and values again: to print it, and to see what changed."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from crishim.config.checks import Address
from crishim.config.files import Key
from crishim.config.sections import Config
from crishim.model.process import Rlimit

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_LISTEN: Key = ("server", "listen")


def flat(config: Config) -> dict[Key, object]:
    """Every key with its value as TOML would give it, in the order of the sections.

    An option of a runtime handler that is not set and has no value to say so is left out.
    """
    return {
        key: f"unix://{value}" if key == _LISTEN else value for key, value in _flat((), config) if value is not None
    }


def name_of(key: Key) -> str:
    """A key as TOML writes it: `images.mirrors."docker.io"`."""
    return ".".join(part if _BARE.fullmatch(part) else json.dumps(part, ensure_ascii=False) for part in key)


def toml_value(value: object) -> str:
    """A value of `flat` as TOML writes it."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def changes(old: Config, new: Config) -> tuple[Key, ...]:
    """Keys whose values differ, in the order of the sections; those that came or went are among them."""
    before, after = flat(old), flat(new)
    return tuple(key for key in (before | after) if before.get(key) != after.get(key))


def _flat(path: Key, value: object) -> Iterator[tuple[Key, object]]:
    if isinstance(value, Address):
        host = f"[{value.host}]" if ":" in value.host else value.host
        yield path, f"{host}:{value.port}"
    elif value is None:
        yield path, None if path[0] == "runtimes" else ""
    elif isinstance(value, tuple) and (path[-1] == "rlimits"):
        yield from _table(path, {each.kind.removeprefix("RLIMIT_"): _bounds(each) for each in value})
    elif isinstance(value, tuple):
        yield path, [part if isinstance(part, (str, int)) else str(part) for part in value]
    elif isinstance(value, Mapping):
        yield from _table(path, value)
    elif dataclasses.is_dataclass(value):
        for each in dataclasses.fields(value):
            yield from _flat((*path, each.name), getattr(value, each.name))
    else:
        yield path, str(value) if isinstance(value, Path) else value


def _table(path: Key, table: Mapping[str, object]) -> Iterator[tuple[Key, object]]:
    for key, part in table.items():
        yield from _flat((*path, key), part)


def _bounds(limit: Rlimit) -> tuple[int, int]:
    return limit.soft, limit.hard
