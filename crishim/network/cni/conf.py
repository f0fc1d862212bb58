"""Network configuration of the node: files of one directory, the first valid one in the order of names wins.

Parsing is pure. Fields that a plugin understands and we do not are kept as they are. Source: CNI specification,
section 1; file names as containerd and CRI-O take them (.conf, .conflist, .json).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crishim.errors import InvalidSpec

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""What we speak, oldest first."""

_SUFFIXES = (".conf", ".conflist", ".json")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_MOST_BYTES = 1 << 20

Signature = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class PluginConf:
    """One plugin of the chain; `fields` is its object as written."""

    type: str
    fields: Mapping[str, Any]

    @property
    def capabilities(self) -> frozenset[str]:
        """Arguments of the runtime that it takes."""
        declared = self.fields.get("capabilities")
        return frozenset(name for name, wanted in declared.items() if wanted is True) if declared else frozenset()


@dataclass(frozen=True, slots=True)
class NetworkConf:
    """A chain of plugins; `version` is the newest of its versions that we speak."""

    name: str
    version: str
    plugins: tuple[PluginConf, ...]
    disable_check: bool = False
    disable_gc: bool = False

    @property
    def has_previous_result(self) -> bool:
        """DEL is given the result of ADD since 0.4.0."""
        return VERSIONS.index(self.version) >= VERSIONS.index("0.4.0")

    @property
    def has_check(self) -> bool:
        """CHECK came with 0.4.0."""
        return not self.disable_check and self.has_previous_result

    @property
    def has_status(self) -> bool:
        """STATUS came with 1.1.0."""
        return self.version == "1.1.0"

    @property
    def has_gc(self) -> bool:
        """GC came with 1.1.0."""
        return self.version == "1.1.0" and not self.disable_gc


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a directory holds: the network to use, None without one, and a sentence for each file that is not valid."""

    network: NetworkConf | None
    problems: tuple[str, ...]


def parse_network(text: str) -> NetworkConf:
    """A chain, or a single plugin as a chain of one. InvalidSpec says what is wrong."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidSpec(f"it is not JSON: {error}") from None
    return network_of(document)


def network_of(document: object) -> NetworkConf:
    """The same, from a decoded document."""
    if not isinstance(document, dict):
        raise InvalidSpec("it is not an object")
    name = document.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidSpec(f"name: {name!r} is not a name of letters, digits, '_', '.' and '-'")
    chain = document.get("plugins", [document] if "type" in document else [])
    if not isinstance(chain, list) or not chain:
        raise InvalidSpec("plugins: there is none")
    return NetworkConf(
        name=name,
        version=_version(document),
        plugins=tuple(_plugin(fields, f"plugins[{index}]") for index, fields in enumerate(chain)),
        disable_check=_flag(document, "disableCheck"),
        disable_gc=_flag(document, "disableGC"),
    )


def document_of(network: NetworkConf) -> dict[str, Any]:
    """What `network_of` reads back to an equal value."""
    return {
        "name": network.name,
        "cniVersion": network.version,
        "plugins": [dict(plugin.fields) for plugin in network.plugins],
        "disableCheck": network.disable_check,
        "disableGC": network.disable_gc,
    }


def load(directory: Path) -> Loaded:
    """The first valid file. A directory that does not exist holds nothing."""
    problems: list[str] = []
    for path in _files(directory):
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise InvalidSpec(f"it has more than {_MOST_BYTES} bytes")
            return Loaded(parse_network(path.read_text(encoding="utf-8")), tuple(problems))
        except InvalidSpec as error:
            problems.append(f"{path}: {error}")
        except OSError as error:
            problems.append(f"{path}: {error.strerror}")
        except UnicodeDecodeError:
            problems.append(f"{path}: it is not UTF-8")
    return Loaded(None, tuple(problems))


def signature(directory: Path) -> Signature:
    """Differs when a file came, went or was written: (name, inode, size, mtime in ns) of each."""
    found = []
    for path in _files(directory):
        try:
            status = os.stat(path)
        except OSError:
            continue
        found.append((path.name, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


def _files(directory: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    return [directory / name for name in names if name.endswith(_SUFFIXES)]


def _plugin(fields: object, where: str) -> PluginConf:
    if not isinstance(fields, dict):
        raise InvalidSpec(f"{where}: it is not an object")
    kind = fields.get("type")
    # a program's name and never a path: the search path alone says which programs may run
    if not isinstance(kind, str) or not kind or "/" in kind or kind in (".", ".."):
        raise InvalidSpec(f"{where}.type: {kind!r} is not the name of a plugin")
    if not isinstance(fields.get("capabilities", {}), dict):
        raise InvalidSpec(f"{where}.capabilities: it is not an object")
    return PluginConf(kind, fields)


def _version(document: Mapping[str, Any]) -> str:
    several = document.get("cniVersions", [])
    offered = [document.get("cniVersion", "0.1.0"), *(several if isinstance(several, list) else [several])]
    spoken = [version for version in VERSIONS if version in offered]
    if not spoken:
        raise InvalidSpec(f"cniVersion: {offered[0]!r} is not one of {', '.join(VERSIONS)}")
    return spoken[-1]


def _flag(document: Mapping[str, Any], name: str) -> bool:
    value = document.get(name, False)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise InvalidSpec(f"{name}: {value!r} is not true or false")
    return value
