"""From a TOML file to the configuration. Errors name the path of the key and the value."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from crishim.config.checks import wrong
from crishim.config.keys import CHECKS
from crishim.config.sections import Config
from crishim.errors import InvalidSpec, NotFound

DEFAULT_PATH = Path("/etc/crishim/config.toml")

T = TypeVar("T")


def load(path: Path | None, overrides: Mapping[str, object] | None = None) -> Config:
    """The configuration of a TOML file, or the defaults without one, changed by `overrides`.

    overrides: path of a key ("server.listen") to its value as TOML would give it; None leaves the key alone.
    Raises NotFound without the file, InvalidSpec for what is not TOML, unknown keys and wrong values.
    """
    table = _parsed(path) if path is not None else {}
    for key, value in (overrides or {}).items():
        if value is not None:
            *sections, name = key.split(".")
            inner = table
            for section in sections:
                inner = inner.setdefault(section, {})
                if not isinstance(inner, dict):
                    raise wrong(section, inner, "a table")
            inner[name] = value
    config = _checked(Config, table, "")
    if config.server.root == config.server.state:
        raise wrong("server.state", str(config.server.state), "another directory than server.root")
    if (config.streaming.cert_file is None) != (config.streaming.key_file is None):
        given = "cert_file" if config.streaming.key_file is None else "key_file"
        raise InvalidSpec(f"streaming.{given}: a certificate and its key are given together or not at all")
    return config


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"configuration {path} does not exist") from None
    except OSError as error:
        raise InvalidSpec(f"configuration {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"configuration {path} is not TOML: {error}") from error
    except ValueError:  # int() refuses more than 4300 digits
        raise InvalidSpec(f"configuration {path} holds a number of thousands of digits") from None
    except RecursionError:
        raise InvalidSpec(f"configuration {path} holds lists or tables nested too deeply") from None


def _checked(kind: type[T], table: object, path: str) -> T:
    """The section `kind` of a TOML table; keys that are not given keep their defaults."""
    if not isinstance(table, dict):
        raise wrong(path, table, "a table")
    values: dict[str, Any] = {}
    known = {each.name: each for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name, value in table.items():
        inner = f"{path}.{name}" if path else name
        if name not in known:
            raise InvalidSpec(
                f"{inner}: there is no such key; {path or 'the top level'} has {', '.join(sorted(known))}"
            )
        check = CHECKS.get(inner)
        values[name] = check(value, inner) if check else _checked(type(known[name].default), value, inner)
    return kind(**values)
