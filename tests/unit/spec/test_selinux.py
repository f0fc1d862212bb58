"""Which SELinux contexts a pod and its containers have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from crishim.errors import Exhausted, InvalidSpec, Unsupported
from crishim.model.container import ContainerConfig, ContainerSecurity
from crishim.model.sandbox import (
    NamespaceMode,
    NamespaceOptions,
    PodLabels,
    Sandbox,
    SandboxConfig,
    SandboxSecurity,
    SandboxState,
    SELinuxOptions,
)
from crishim.spec import selinux
from crishim.spec.selinux import Context, DefaultLabels

PROCESS = "system_u:system_r:container_t"
FILE = "system_u:object_r:container_file_t"
DEFAULTS = DefaultLabels(
    Context("system_u", "system_r", "container_t", "s0"),
    Context("system_u", "object_r", "container_file_t", "s0"),
    Context("system_u", "system_r", "spc_t", "s0"),
)
LEVEL = "s0:c1,c2"
OWN = NamespaceOptions(pid=NamespaceMode.CONTAINER)
CONFIG = SandboxConfig("pod", "uid", "ns")


def sandbox(asked: SELinuxOptions | None = None, ipc: NamespaceMode = NamespaceMode.POD) -> Sandbox:
    config = replace(CONFIG, security=SandboxSecurity(NamespaceOptions(ipc=ipc), selinux=asked))
    level = asked.level if asked and asked.level else LEVEL
    return Sandbox("s", config, SandboxState.READY, 1, selinux=selinux.pod_labels(asked, DEFAULTS, level))


def labels(
    asked: SELinuxOptions | None = None,
    *,
    pod: Sandbox | None = None,
    privileged: bool = False,
    namespaces: NamespaceOptions = OWN,
    defaults: DefaultLabels | None = DEFAULTS,
) -> tuple[str | None, str | None]:
    config = ContainerConfig("c", security=ContainerSecurity(selinux=asked, privileged=privileged))
    return selinux.container_labels(config, pod or sandbox(), namespaces, defaults)


def test_a_pod_has_the_types_of_the_policy_and_a_level_of_its_own() -> None:
    assert selinux.pod_labels(None, DEFAULTS, LEVEL) == PodLabels(f"{PROCESS}:{LEVEL}", f"{FILE}:{LEVEL}")


def test_a_type_and_a_role_are_of_processes_and_a_user_and_a_level_of_files_too() -> None:
    asked = SELinuxOptions("staff_u", "staff_r", "own_t", "s0:c7")
    found = selinux.pod_labels(asked, DEFAULTS, "s0:c7")
    assert found == PodLabels("staff_u:staff_r:own_t:s0:c7", "staff_u:object_r:container_file_t:s0:c7")


def test_a_policy_without_levels_has_labels_of_three_parts() -> None:
    flat = DefaultLabels(Context("u", "r", "container_t"), Context("u", "object_r", "container_file_t"))
    assert selinux.pod_labels(None, flat, "") == PodLabels("u:r:container_t", "u:object_r:container_file_t")


def test_a_container_has_the_labels_of_its_pod() -> None:
    assert labels() == (f"{PROCESS}:{LEVEL}", f"{FILE}:{LEVEL}")


@pytest.mark.parametrize(
    ("asked", "process", "file"),
    [
        (SELinuxOptions(level="s0:c9"), f"{PROCESS}:s0:c9", f"{FILE}:s0:c9"),
        (SELinuxOptions(type="own_t"), f"system_u:system_r:own_t:{LEVEL}", f"{FILE}:{LEVEL}"),
        (SELinuxOptions(role="own_r"), f"system_u:own_r:container_t:{LEVEL}", f"{FILE}:{LEVEL}"),
        (
            SELinuxOptions(user="own_u"),
            f"own_u:system_r:container_t:{LEVEL}",
            f"own_u:object_r:container_file_t:{LEVEL}",
        ),
    ],
)
def test_what_a_container_does_not_name_is_its_pods(asked: SELinuxOptions, process: str, file: str) -> None:
    assert labels(asked) == (process, file)


def test_who_is_privileged_or_shares_processes_or_ipc_with_the_host_is_not_confined() -> None:
    wanted = ("system_u:system_r:spc_t:s0", f"{FILE}:{LEVEL}")
    assert labels(privileged=True) == wanted
    assert labels(namespaces=replace(OWN, pid=NamespaceMode.NODE)) == wanted
    assert labels(pod=sandbox(ipc=NamespaceMode.NODE)) == wanted


def test_a_type_that_is_named_counts_for_them_too() -> None:
    assert labels(SELinuxOptions(type="own_t"), privileged=True)[0] == f"system_u:system_r:own_t:{LEVEL}"
    assert labels(pod=sandbox(SELinuxOptions(type="own_t")), privileged=True)[0] == f"system_u:system_r:own_t:{LEVEL}"
    assert labels(SELinuxOptions(level="s0:c9"), privileged=True)[0] == "system_u:system_r:spc_t:s0:c9"
    assert labels(pod=sandbox(SELinuxOptions(level="s0:c9")), privileged=True)[0] == "system_u:system_r:spc_t:s0:c9"


def test_without_a_type_for_them_they_stay_in_the_servers_domain() -> None:
    assert labels(privileged=True, defaults=replace(DEFAULTS, unconfined=None)) == (None, f"{FILE}:{LEVEL}")


def test_a_pod_that_was_run_without_labels_gets_none_and_so_does_one_of_a_server_that_gives_none() -> None:
    assert labels(pod=replace(sandbox(), selinux=None)) == (None, None)
    assert labels(defaults=None) == (None, None)


def test_an_option_is_refused_where_labels_should_be_and_are_not() -> None:
    selinux.refuse_without_labels("x", None, "no policy")
    selinux.refuse_without_labels("x", SELinuxOptions(level="s0"), "")
    with pytest.raises(Unsupported, match=r"^x\.selinux_options: this node gives .*: no policy$"):
        selinux.refuse_without_labels("x", SELinuxOptions(level="s0"), "no policy")


@pytest.mark.parametrize("text", ["", "a", "a:b", "a::c", "a:b:c d", ":b:c"])
def test_what_is_no_context(text: str) -> None:
    with pytest.raises(InvalidSpec, match="is not an SELinux context"):
        selinux.parse(text)


@pytest.mark.parametrize("text", ["u:r:t", "u:r:t:s0", "u:r:t:s0-s0:c0.c1023", "u:r:t:s0:c1,c2"])
def test_a_context_is_its_parts(text: str) -> None:
    assert str(selinux.parse(text)) == text


@pytest.mark.parametrize(
    ("level", "found"),
    [
        ("s0", set()),
        ("", set()),
        ("s0:c1,c2", {1, 2}),
        ("s0:c2,c1", {1, 2}),
        ("s0:c3.c5,c9", {3, 4, 5, 9}),
        ("s0-s0:c1", {1}),
        ("s0:c1020.c9999", {1020, 1021, 1022, 1023}),
        ("s0:nonsense", set()),
    ],
)
def test_the_categories_of_a_level(level: str, found: set[int]) -> None:
    assert selinux.categories(level) == found


def numbers(*values: int) -> Iterator[int]:
    yield from values


def test_a_pair_that_somebody_has_or_that_is_no_pair_is_not_given() -> None:
    drawn = numbers(2, 1, 5, 5, 9, 3)
    assert selinux.free_level("s0", {frozenset({1, 2})}, lambda below: next(drawn)) == "s0:c3,c9"


def test_when_no_pair_is_free_it_is_told() -> None:
    drawn = [1, 2]
    with pytest.raises(Exhausted, match="belongs to a pod"):
        selinux.free_level("s0", {frozenset({1, 2})}, lambda below: drawn.append(drawn.pop(0)) or drawn[-1])


def test_the_sensitivity_is_what_comes_before_categories_and_ranges() -> None:
    assert [selinux.sensitivity(each) for each in ("s0", "s1:c1", "s0-s0:c0.c1023", "")] == ["s0", "s1", "s0", ""]
