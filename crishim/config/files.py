"""From TOML files to the configuration: the file, its drop-in files, then what the command line says.

The drop-in files of PATH are `PATH.d/*.toml`, in the order of their names. A table of a later one is merged into that
of an earlier one key by key, every other value takes its place. Errors name the file, the path of the key and the
value.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from crishim.config.checks import wrong
from crishim.config.keys import CHECKS
from crishim.config.sections import Config
from crishim.errors import InvalidSpec, NotFound

DEFAULT_PATH = Path("/etc/crishim/config.toml")
COMMAND_LINE = "command line"

T = TypeVar("T")

#: path of a key, a part per table
Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration, and where its values are from."""

    config: Config
    #: key to the file that gave its value, or COMMAND_LINE; what is not here has its default
    origins: Mapping[Key, str]


def load(path: Path | None, overrides: Mapping[str, object] | None = None) -> Config:
    """The configuration that `read` finds."""
    return read(path, overrides).config


def read(path: Path | None, overrides: Mapping[str, object] | None = None, *, optional: bool = False) -> Loaded:
    """The configuration of a TOML file and its drop-in files, or the defaults without a path, changed by `overrides`.

    overrides: path of a key ("server.listen") to its value as TOML would give it; None leaves the key alone.
    Raises NotFound without the file unless it is `optional`; InvalidSpec for what is not TOML, unknown keys and wrong
    values.
    """
    table: dict[str, Any] = {}
    origins: dict[Key, str] = {}
    for file in _files(path, optional) if path is not None else ():
        found = _parsed(file)
        try:
            _checked(Config, found, "")  # each by itself, so that an error can name its file
        except InvalidSpec as error:
            raise InvalidSpec(f"configuration {file}: {error}") from None
        _merge(table, found, str(file), (), origins)
    for key, value in (overrides or {}).items():
        if value is not None:
            given: object = value
            for name in reversed(key.split(".")):
                given = {name: given}
            assert isinstance(given, dict)
            _checked(Config, given, "")
            _merge(table, given, COMMAND_LINE, (), origins)
    config = _checked(Config, table, "")
    _check_together(config)
    return Loaded(config, origins)


def _check_together(config: Config) -> None:
    """What values must be to each other."""
    if config.server.root == config.server.state:
        raise wrong("server.state", str(config.server.state), "another directory than server.root")
    if (config.streaming.cert_file is None) != (config.streaming.key_file is None):
        given = "cert_file" if config.streaming.key_file is None else "key_file"
        raise InvalidSpec(f"streaming.{given}: a certificate and its key are given together or not at all")
    default = config.containers.default_runtime_handler
    if default not in config.runtimes:
        raise wrong("containers.default_runtime_handler", default, f"one of {', '.join(config.runtimes)}")


def _files(path: Path, optional: bool) -> list[Path]:
    directory = Path(f"{path}.d")
    try:
        drop_ins = sorted(file for file in directory.iterdir() if file.suffix == ".toml" and file.name[0] != ".")
    except FileNotFoundError:
        drop_ins = []
    except OSError as error:
        raise InvalidSpec(f"configuration {directory} cannot be read: {error.strerror}") from error
    return drop_ins if optional and not path.exists() else [path, *drop_ins]


def _merge(into: dict[str, Any], table: dict[str, Any], origin: str, path: Key, origins: dict[Key, str]) -> None:
    """Put what was found valid in its place; the nesting is that of the configuration, so it is never deep."""
    for name, value in table.items():
        if isinstance(value, dict):
            _merge(into.setdefault(name, {}), value, origin, (*path, name), origins)
        else:
            into[name] = value
            origins[*path, name] = origin


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
