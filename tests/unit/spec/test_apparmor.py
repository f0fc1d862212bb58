"""Which AppArmor profile a container gets, and what the default one says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crishim.errors import Unsupported
from crishim.model.container import ContainerSecurity
from crishim.model.sandbox import ProfileType, SecurityProfile
from crishim.spec.apparmor import apparmor_profile, default_profile
from crishim.spec.facts import NodeAbilities

WITHOUT = NodeAbilities((6, 18), "x86_64", frozenset())
NODE = replace(WITHOUT, apparmor=True, apparmor_default="crishim-default")
LOCALHOST = SecurityProfile(ProfileType.LOCALHOST, "localhost/strict")
RUNTIME_DEFAULT = SecurityProfile(ProfileType.RUNTIME_DEFAULT)
UNCONFINED = SecurityProfile(ProfileType.UNCONFINED)


def profile(asked: SecurityProfile | None, node: NodeAbilities = NODE, *, privileged: bool = False) -> str | None:
    return apparmor_profile(ContainerSecurity(apparmor=asked, privileged=privileged), node)


@pytest.mark.parametrize("asked", [None, RUNTIME_DEFAULT])
def test_without_a_profile_of_its_own_a_container_has_the_default(asked: SecurityProfile | None) -> None:
    assert profile(asked) == "crishim-default"
    assert profile(asked, privileged=True) is None
    assert profile(asked, replace(NODE, apparmor_default=None)) is None, "the operator wants none"


def test_a_named_profile_loses_its_prefix_and_holds_for_privileged_containers_too() -> None:
    assert profile(LOCALHOST) == profile(LOCALHOST, privileged=True) == "strict"
    assert profile(UNCONFINED) is None


def test_a_node_without_apparmor_refuses_what_it_cannot_give() -> None:
    assert profile(None, WITHOUT) is profile(UNCONFINED, WITHOUT) is None
    for asked in (LOCALHOST, RUNTIME_DEFAULT):
        with pytest.raises(Unsupported, match="no AppArmor"):
            profile(asked, WITHOUT)


def test_a_default_that_could_not_be_loaded_is_refused_to_who_asks_for_it() -> None:
    broken = replace(NODE, apparmor_default=None, apparmor_problem="the compiler is not installed")
    assert profile(None, broken) is None
    assert profile(LOCALHOST, broken) == "strict"
    with pytest.raises(Unsupported, match="the compiler is not installed"):
        profile(RUNTIME_DEFAULT, broken)


def test_the_default_profile_needs_no_file_of_the_node() -> None:
    text = default_profile()
    assert text.startswith("profile crishim-default flags=(attach_disconnected, mediate_deleted) {\n")
    assert "include" not in text and "@{" not in text
    assert all(line.endswith(",") for line in text.splitlines()[1:-1])
