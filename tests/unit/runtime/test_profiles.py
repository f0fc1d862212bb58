"""Localhost seccomp profiles come from one directory and from nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crishim.errors import InvalidSpec
from crishim.model.process import SeccompFilter
from crishim.runtime.profiles import SeccompProfiles
from crishim.runtime.settings import Settings
from crishim.spec.facts import NodeAbilities

NODE = NodeAbilities(kernel=(6, 1), machine="x86_64", capabilities=frozenset(), apparmor=False)
ALLOW = json.dumps({"defaultAction": "SCMP_ACT_ALLOW"})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "profiles" / "sub").mkdir(parents=True)
    (tmp_path / "profiles" / "sub" / "open.json").write_text(ALLOW)
    (tmp_path / "outside.json").write_text(ALLOW)
    return tmp_path / "profiles"


def compiled(directory: Path, path: str) -> SeccompFilter:
    return SeccompProfiles(Settings(NODE, "/s", "/r", "/c", "n", seccomp_profile_dir=str(directory))).compiled(
        path, frozenset()
    )


def test_a_profile_is_found_by_its_relative_and_its_absolute_path(directory: Path) -> None:
    assert compiled(directory, "sub/open.json") == compiled(directory, f"{directory}/sub/open.json")


@pytest.mark.parametrize(
    "path", ["../outside.json", "{up}/outside.json", "sub/link.json", "{here}/../outside.json", ""]
)
def test_a_profile_elsewhere_is_refused(directory: Path, path: str) -> None:
    (directory / "sub" / "link.json").symlink_to(directory.parent / "outside.json")
    with pytest.raises(InvalidSpec, match="not below the profile directory"):
        compiled(directory, path.format(up=directory.parent, here=directory))


def test_a_sibling_with_the_same_beginning_is_elsewhere(directory: Path) -> None:
    sibling = directory.with_name("profiles-of-others")
    sibling.mkdir()
    (sibling / "open.json").write_text(ALLOW)
    with pytest.raises(InvalidSpec, match="not below the profile directory"):
        compiled(directory, str(sibling / "open.json"))


def test_a_missing_profile_is_named(directory: Path) -> None:
    with pytest.raises(InvalidSpec, match="missing"):
        compiled(directory, "missing.json")


def test_what_is_not_json_is_refused(directory: Path) -> None:
    (directory / "bad.json").write_text("{")
    with pytest.raises(InvalidSpec, match="not JSON"):
        compiled(directory, "bad.json")
