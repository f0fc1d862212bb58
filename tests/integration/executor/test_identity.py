"""Who a process is: user, groups, umask, capabilities, no_new_privs, seccomp filter; for init and exec alike."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crishim.model.process import Capabilities, User
from crishim.spec.seccomp import runtime_default
from tests.integration.conftest import Run
from tests.support.container import Node, all_capabilities, program, script

CHOWN, KILL, SETUID, NET_RAW = 1 << 0, 1 << 5, 1 << 7, 1 << 13


def status(run: Run, **changes: object) -> dict[str, str]:
    """/proc/self/status of a process that is no shell, by field."""
    ended = run(program("/bin/cat", "/proc/self/status", **changes))
    assert ended.code == 0, ended.output
    return {key: value.strip() for key, _, value in (line.partition(":") for line in ended.lines)}


def masks(fields: dict[str, str]) -> dict[str, int]:
    return {name: int(fields["Cap" + name], 16) for name in ("Bnd", "Eff", "Prm", "Inh", "Amb")}


def test_user_and_groups_are_the_numbers_asked_for(run: Run) -> None:
    fields = status(run, user=User(uid=1234, gid=2345, additional_groups=(2345, 7, 99999)))
    assert fields["Uid"].split() == ["1234"] * 4
    assert fields["Gid"].split() == ["2345"] * 4
    assert fields["Groups"].split() == ["7", "2345", "99999"]


def test_no_group_of_ours_is_kept(run: Run) -> None:
    assert status(run)["Groups"] == ""


@pytest.mark.parametrize(("umask", "expected"), [(None, "0022"), (0o077, "0077"), (0, "0000")])
def test_the_umask_is_set(run: Run, umask: int | None, expected: str) -> None:
    assert status(run, user=User(umask=umask))["Umask"] == expected


def test_capability_sets_are_exactly_those_asked_for(run: Run) -> None:
    given = frozenset({"CAP_CHOWN", "CAP_KILL", "CAP_SETUID"})
    fields = status(run, capabilities=Capabilities(bounding=given, effective=given, permitted=given))
    full = CHOWN | KILL | SETUID
    assert masks(fields) == {"Bnd": full, "Eff": full, "Prm": full, "Inh": 0, "Amb": 0}


def test_without_capabilities_root_has_none(run: Run) -> None:
    assert set(masks(status(run)).values()) == {0}


def test_another_user_keeps_only_the_bounding_set(run: Run) -> None:
    given = frozenset({"CAP_CHOWN"})
    fields = status(
        run, user=User(uid=1000), capabilities=Capabilities(bounding=given, effective=given, permitted=given)
    )
    assert masks(fields) == {"Bnd": CHOWN, "Eff": 0, "Prm": 0, "Inh": 0, "Amb": 0}


def test_ambient_capabilities_reach_another_user(run: Run) -> None:
    given = frozenset({"CAP_NET_RAW"})
    fields = status(run, user=User(uid=1000), capabilities=Capabilities(given, given, given, given, given))
    assert set(masks(fields).values()) == {NET_RAW}


def test_an_ambient_capability_that_is_not_inheritable_is_left_out(run: Run) -> None:
    given = frozenset({"CAP_NET_RAW"})
    capabilities = Capabilities(bounding=given, effective=given, permitted=given, ambient=given)
    assert masks(status(run, user=User(uid=1000), capabilities=capabilities))["Amb"] == 0


def test_a_container_may_have_all_that_the_node_has(run: Run, node: Node) -> None:
    ours = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd"))
    fields = status(run, capabilities=all_capabilities(node))
    assert masks(fields)["Bnd"] == masks(fields)["Eff"] == int(ours.split()[1], 16)


@pytest.mark.parametrize("wanted", [True, False])
def test_no_new_privileges_is_as_asked(run: Run, wanted: bool) -> None:
    assert status(run, no_new_privileges=wanted)["NoNewPrivs"] == str(int(wanted))


@pytest.mark.parametrize("nnp", [True, False], ids=["no-new-privs", "new-privs"])
def test_a_seccomp_filter_is_loaded_and_bites(run: Run, nnp: bool) -> None:
    kernel = tuple(int(part) for part in os.uname().release.split(".")[:2])
    assert len(kernel) == 2
    filter_ = runtime_default(frozenset(), (kernel[0], kernel[1]), os.uname().machine)
    fields = status(run, seccomp=filter_, no_new_privileges=nnp)
    assert fields["Seccomp"] == "2"
    assert fields["Seccomp_filters"] == "1"
    refused = run(script("unshare -U true", seccomp=filter_, no_new_privileges=nnp))
    assert refused.code != 0
    assert "not permitted" in refused.output


def test_without_a_filter_there_is_none(run: Run) -> None:
    assert status(run)["Seccomp"] == "0"
