"""Each room of the package imports only the rooms below it, so that data and events flow one way.

The table is the one of the architecture page. Imports under TYPE_CHECKING and inside functions count as well: what a
room may not know at run time it may not know by name either.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "crishim"

EXECUTOR_DOOR = frozenset({"executor.client", "executor.wire"})
DOOR_ROOM = "executor's door"
EVERYTHING = frozenset({"*"})

IN_DOOR_ROOM = frozenset(
    {
        "executor.client",
        "executor.connection",
        "executor.hook_values",
        "executor.listener_values",
        "executor.probe",
        "executor.remote",
        "executor.requests",
        "executor.value",
    }
)
"""Modules that run in the server and speak to the executor's processes, which never load them."""

ALLOWED: dict[str, frozenset[str]] = {
    "__init__": frozenset({"process", "model", "errors"}),
    "__main__": frozenset({"cli"}),
    "errors": frozenset(),
    "model": frozenset({"errors"}),
    "spec": frozenset({"model", "errors"}),
    "linux": frozenset(),
    "cgroups": frozenset({"model", "linux", "errors"}),
    "logs": frozenset({"model", "errors"}),
    "process": frozenset({"model", "spec", "cgroups", "errors"}) | EXECUTOR_DOOR,
    "executor": frozenset({"cgroups", "linux", "logs", "errors"}),
    DOOR_ROOM: frozenset({"executor", "cgroups", "linux", "model", "errors"}),
    "images": frozenset({"model", "linux", "errors"}),
    "network": frozenset({"model", "errors"}),
    "store": frozenset({"model", "errors"}),
    "runtime": frozenset({"model", "spec", "store", "images", "network", "cgroups", "errors"}) | EXECUTOR_DOOR,
    "streaming": frozenset({"runtime", "model", "errors"}),
    "metrics": frozenset({"store", "model"}),
    "cri": frozenset({"runtime", "model", "errors"}),
    "config": frozenset({"model", "errors"}),
    "app": EVERYTHING,
    "cli": frozenset({"app", "config", "model", "errors"}),
}

ONLY_IN: dict[str, frozenset[str]] = {
    "ctypes": frozenset({"linux"}),
    "grpc": frozenset({"cri"}),
    "google": frozenset({"cri"}),
    "jeepney": frozenset({"cgroups"}),
    "prometheus_client": frozenset({"metrics"}),
    "urllib3": frozenset({"images"}),
    "yaml": frozenset({"runtime"}),
}
"""A module from outside the package and the rooms that may import it."""

NEVER_IN: dict[str, frozenset[str]] = {
    "executor": frozenset({"asyncio", "dataclasses", "logging", "threading", "random", "inspect", "socketserver"}),
}
"""The zygote loads this room, and every page it maps is paid once per monitor."""


def _files() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if "pb" not in path.relative_to(PACKAGE).parts]


def _room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return _room_of(".".join(parts))


def _room_of(inner: str) -> str:
    """The room of a module, named from the package's root ("store.codec")."""
    if any(inner == name or inner.startswith(f"{name}.") for name in IN_DOOR_ROOM):
        return DOOR_ROOM
    return inner.split(".")[0]


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    """The dotted name a from-import starts at, its leading dots resolved."""
    if node.level == 0:
        return node.module or ""
    package = ("crishim", *path.relative_to(PACKAGE).parts[:-1])
    base = package[: len(package) - node.level + 1]
    return ".".join((*base, node.module) if node.module else base)


def _imports(source: str, path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import; `from a import b` gives both a and a.b, since b may be a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, path)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def _is_allowed(room: str, inner: str, allowed: frozenset[str]) -> bool:
    """Whether a module of the package, named from its root ("store.codec"), may be imported by a room."""
    if allowed is EVERYTHING or _room_of(inner) == room:
        return True
    if _room_of(inner) == DOOR_ROOM and not allowed & EXECUTOR_DOOR:
        return False
    return any(inner == name or inner.startswith(f"{name}.") for name in allowed)


def _violations(source: str, path: Path) -> list[str]:
    room = _room(path)
    found = []
    for line, name in _imports(source, path):
        top, _, inner = name.partition(".")
        where = f"{path.relative_to(PACKAGE.parent)}:{line}"
        if top == "crishim":
            # `from crishim import errors` and `import crishim` alike; the bare package is the public door
            if inner and not _is_allowed(room, inner, ALLOWED[room]):
                found.append(f"{where}: {room} imports {name}")
        elif room not in ONLY_IN.get(top, frozenset({room})) or top in NEVER_IN.get(room, frozenset()):
            found.append(f"{where}: {room} imports {name}")
    return found


def test_every_room_is_in_the_table() -> None:
    assert {_room(path) for path in _files()} <= set(ALLOWED)


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_rooms_that_its_room_may_know(path: Path) -> None:
    assert _violations(path.read_text(), path) == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("model", "from crishim.store import store"),
        ("model", "from ..store import store"),
        ("store", "if TYPE_CHECKING:\n    from crishim import runtime"),
        ("store", "def late():\n    import crishim.runtime.exits"),
        ("runtime", "from crishim.executor import monitor"),
        ("runtime", "from crishim.executor.zygote import Zygote"),
        ("runtime", "import crishim.linux.mount"),
        ("store", "import ctypes"),
        ("runtime", "import grpc.aio"),
        ("executor", "from dataclasses import dataclass"),
        ("executor", "from crishim.executor.client import Executor"),
    ],
)
def test_an_import_against_the_table_is_found(room: str, source: str) -> None:
    assert len(_violations(source, PACKAGE / room / "example.py")) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("runtime", "from crishim.executor.client import Zygote"),
        ("runtime", "from crishim.executor import client"),
        ("runtime", "from .operations import Operations"),
        ("app", "from crishim.cri.server import Server"),
        ("cri", "import grpc"),
        ("model", "from crishim import errors"),
    ],
)
def test_an_import_by_the_table_passes(room: str, source: str) -> None:
    assert _violations(source, PACKAGE / room / "example.py") == []
