"""The default profile is loaded by the node's compiler, and what is missing is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crishim.errors import InvalidSpec, Unavailable
from crishim.runtime.apparmor import AppArmorProfiles
from crishim.spec.apparmor import DEFAULT_PROFILE, default_profile


def kernel(directory: Path, *names: str) -> Path:
    """The kernel's list of loaded profiles."""
    (directory / "profiles").write_text("".join(f"{name} (enforce)\n" for name in names))
    return directory / "profiles"


def compiler(directory: Path, script: str) -> str:
    """A program in the place of apparmor_parser; what it was told is in `arguments`."""
    program = directory / "parser"
    program.write_text(f'#!/bin/sh\necho "$@" >> {directory}/arguments\n{script}\n')
    os.chmod(program, 0o755)
    return str(program)


def profiles(directory: Path, script: str, *loaded: str, default: str = DEFAULT_PROFILE) -> AppArmorProfiles:
    return AppArmorProfiles(default, directory / "ours", kernel(directory, *loaded), compiler(directory, script))


def loads(directory: Path) -> str:
    return f"echo '{DEFAULT_PROFILE} (enforce)' >> {directory}/profiles"


def test_the_default_is_loaded_anew_at_the_start(tmp_path: Path) -> None:
    apparmor = profiles(tmp_path, loads(tmp_path), DEFAULT_PROFILE)
    apparmor.prepare()
    assert (apparmor.enabled, apparmor.default, apparmor.problem) == (True, DEFAULT_PROFILE, "")
    source = tmp_path / "ours" / DEFAULT_PROFILE
    assert source.read_text() == default_profile()
    arguments = (tmp_path / "arguments").read_text()
    assert arguments == f"--replace --write-cache --cache-loc={tmp_path}/ours/cache {source}\n"


def test_a_default_that_was_unloaded_is_loaded_again(tmp_path: Path) -> None:
    apparmor = profiles(tmp_path, loads(tmp_path))
    apparmor.prepare()
    kernel(tmp_path)
    apparmor.require(DEFAULT_PROFILE)
    apparmor.require(DEFAULT_PROFILE)
    assert len((tmp_path / "arguments").read_text().splitlines()) == 2, "not a third time: it is loaded"


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    apparmor = profiles(tmp_path, "echo 'line one' >&2; echo 'bad policy' >&2; exit 1")
    apparmor.prepare()
    assert apparmor.default is None
    assert apparmor.problem.endswith("cannot load crishim-default: bad policy")


def test_without_a_compiler_a_profile_that_is_loaded_serves(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    apparmor = AppArmorProfiles(DEFAULT_PROFILE, tmp_path / "ours", kernel(tmp_path), missing)
    apparmor.prepare()
    assert apparmor.default is None and "is not installed" in apparmor.problem
    with pytest.raises(Unavailable, match="is not installed"):
        apparmor.require(DEFAULT_PROFILE)
    apparmor = AppArmorProfiles(DEFAULT_PROFILE, tmp_path / "ours", kernel(tmp_path, DEFAULT_PROFILE), missing)
    apparmor.prepare()
    assert (apparmor.default, apparmor.problem) == (DEFAULT_PROFILE, "")


def test_another_profile_is_never_made_and_must_be_loaded(tmp_path: Path) -> None:
    apparmor = profiles(tmp_path, "exit 1", "my profile", default="my profile")
    apparmor.prepare()
    assert (apparmor.default, apparmor.problem) == ("my profile", "")
    with pytest.raises(InvalidSpec, match="'my' is not loaded"):
        apparmor.require("my")
    assert not (tmp_path / "arguments").exists()


def test_an_operator_may_want_none(tmp_path: Path) -> None:
    apparmor = profiles(tmp_path, "exit 1", default="unconfined")
    apparmor.prepare()
    assert (apparmor.enabled, apparmor.default, apparmor.problem) == (True, None, "")


def test_a_node_without_apparmor_has_no_profile_and_no_problem(tmp_path: Path) -> None:
    apparmor = AppArmorProfiles(DEFAULT_PROFILE, tmp_path / "ours", tmp_path / "nothing")
    apparmor.prepare()
    assert (apparmor.enabled, apparmor.default, apparmor.problem) == (False, None, "")
