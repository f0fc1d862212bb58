"""How two runtimes are compared: what is made comparable, and what a page of known differences explains."""

from __future__ import annotations

import pytest

from tests.support.observer.normal import normal
from tests.support.observer.table import Difference, differences, read_table, unlisted, vanished

PAGE = """
| observable | where | crishim | runc | crun | why |
|---|---|---|---|---|---|
| `call.*` `limit` | plain v1 | ok | EPERM | = | a reason |

| word | meaning |
|---|---|
| other | no row |
"""
V1 = frozenset({"v1"})


def answers(
    ours: str, runc: str, crun: str, observable: str = "call.mount"
) -> dict[str, dict[str, dict[str, dict[str, str]]]]:
    values = {"crishim": ours, "runc": runc, "crun": crun}
    return {name: {"plain": {"init": {observable: value}}} for name, value in values.items()}


def test_what_is_the_same_everywhere_is_no_difference() -> None:
    assert differences(answers("ok", "ok", "ok")) == []
    (found,) = differences(answers("ok", "ok", "EPERM"))
    assert found == Difference("plain", "init", "call.mount", {"crishim": "ok", "runc": "ok", "crun": "EPERM"})


def test_what_one_does_not_see_is_a_difference() -> None:
    seen = answers("ok", "ok", "ok")
    del seen["crun"]["plain"]["init"]["call.mount"]
    (found,) = differences(seen)
    assert found.values["crun"] == "-"


@pytest.mark.parametrize(
    ("values", "observable", "machine", "explained"),
    [
        (("ok", "EPERM", "ok"), "call.mount", V1, True),
        (("ok", "EPERM", "EPERM"), "call.mount", V1, False),
        (("EPERM", "ok", "EPERM"), "call.mount", V1, False),
        (("ok", "EPERM", "ok"), "path", V1, False),
        (("ok", "EPERM", "ok"), "call.mount", frozenset({"v2"}), False),
    ],
)
def test_a_row_explains_its_values_at_its_place_alone(
    values: tuple[str, str, str], observable: str, machine: frozenset[str], explained: bool
) -> None:
    found = differences(answers(*values, observable=observable))
    assert (unlisted(found, read_table(PAGE), machine) == []) is explained


def test_a_pattern_without_a_difference_is_told_where_its_row_holds() -> None:
    seen = answers("ok", "EPERM", "ok")
    assert vanished(seen, read_table(PAGE), V1) == []  # this machine has no limit
    for runtime in seen.values():
        runtime["plain"]["init"]["limit"] = "1"
    assert vanished(seen, read_table(PAGE), V1) == ["limit: a reason"]
    assert vanished(seen, read_table(PAGE), frozenset({"v2"})) == []


@pytest.mark.parametrize(
    "row", ["| `x` | nowhere | a | b | c | why |", "| x |  | a | b | c | why |", "| `x` | | a | why |"]
)
def test_a_row_that_says_nothing_is_refused(row: str) -> None:
    with pytest.raises(ValueError, match=r"row|cells|patterns"):
        read_table("| observable | where | crishim | runc | crun | why |\n" + row)


def test_numbers_of_the_moment_become_words() -> None:
    said = {
        "descriptor.1.target": "pipe:[123]",
        "status.SigQ": "3/100",
        "status.VmRSS": "12 kB",
        "self.cgroup.0": "4:memory:/x",
        "mountinfo.0": "10 1 0:5 /top / rw,relatime - ext4 /dev/vda rw",
        "mountinfo.1": "11 10 0:6 / /proc rw shared:7 - proc proc rw,hidepid=2",
    }
    shown = normal(said, {"/top": "ROOT"})
    assert shown["descriptor.1.target"] == "pipe"
    assert (shown["status.SigQ"], shown.get("status.VmRSS")) == ("100", None)
    assert shown["self.cgroup.memory"] == "/x"
    assert (shown["mount.root./"], shown["mount.parent./"]) == ("ROOT", "out of sight")
    assert (shown["mount.parent./proc"], shown["mount.propagation./proc"]) == ("/", "shared")
    assert shown["mount.superblock./proc"] == "rw,hidepid=2"
