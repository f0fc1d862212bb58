"""Copies of the package that pretend to be another version of crishim."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import crishim


def other_version(directory: Path, version: str, *, wire: int, accepted: tuple[int, ...]) -> Path:
    """`directory` with a crishim of that version in it, whose messages have the version `wire`."""
    package = directory / "crishim"
    shutil.copytree(Path(crishim.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    _replace(package / "__init__.py", r'__version__ = "[^"]+"', f'__version__ = "{version}"')
    _replace(package / "executor/wire.py", r"^VERSION = \d+", f"VERSION = {wire}")
    _replace(package / "executor/wire.py", r"^ACCEPTED_VERSIONS = .*", f"ACCEPTED_VERSIONS = {accepted!r}")
    return directory


def change(directory: Path, module: str, pattern: str, text: str) -> None:
    """One more change in a module of such a copy."""
    _replace(directory / "crishim" / module, pattern, text)


def _replace(path: Path, pattern: str, text: str) -> None:
    changed, count = re.subn(pattern, lambda _: text, path.read_text(), flags=re.MULTILINE)
    assert count == 1, f"{pattern} is {count} times in {path}"
    path.write_text(changed)
