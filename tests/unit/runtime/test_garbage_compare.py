from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from crishim.images.store import StoreUse
from crishim.model.container import ContainerState
from crishim.model.leftover import Finding, LeftoverKind
from crishim.network.door import NetworkObject
from crishim.runtime.garbage.compare import BLOB_LIFE_NS, blind_kinds, compare
from crishim.runtime.garbage.owners import Instance, Member, Owners, Pod, both
from crishim.runtime.garbage.present import FoundProcess, Present, SandboxDirectory, present

#: a pod below the server's own cgroup, one that the kubelet made, and their containers
OWN, KUBE, RUNNING, EXITED = (digit * 64 for digit in "abcd")
GONE, BUSY = "0" * 64, "1" * 64
KUBE_CGROUP = "/kubepods/pod1"
NOW_NS = 10 * BLOB_LIFE_NS

INSTANCE = Instance("/crishim-x.slice", "bridge", "crishim-x", "/state", "/root")
OWNERS = Owners(
    instance=INSTANCE,
    pods={
        OWN: Pod(f"/crishim-x.slice/pods/{OWN}", True, f"/run/netns/crishim-x-{OWN}", True, "bridge"),
        KUBE: Pod(KUBE_CGROUP, True, None, True, "host"),
    },
    members={
        RUNNING: Member(OWN, f"/crishim-x.slice/pods/{OWN}/{RUNNING}", has_process=True),
        EXITED: Member(KUBE, f"{KUBE_CGROUP}/{EXITED}", ContainerState.EXITED),
    },
    busy=frozenset({BUSY, "RunPodSandbox"}),
    reserved={},
)
PRESENT = Present(
    cgroups=frozenset({f"/crishim-x.slice/pods/{OWN}", f"/crishim-x.slice/pods/{OWN}/{RUNNING}"}),
    processes=(),
    pins=frozenset({f"crishim-x-{OWN}"}),
    mounts=(f"/run/netns/crishim-x-{OWN}",),
    sandboxes=(SandboxDirectory(OWN, True, frozenset({RUNNING})), SandboxDirectory(KUBE, True, frozenset({EXITED}))),
    filters=frozenset({"f1"}),
    roots=frozenset({RUNNING, EXITED}),
    layers=frozenset({"1", "new-2"}),
    blobs=(("partial", "sha256-1", NOW_NS),),
    spools=frozenset({"images/spool/now"}),
    network=(NetworkObject("address", "10.0.0.2", OWN), NetworkObject("device", "crv1", OWN)),
    images=StoreUse(
        prepared=frozenset({RUNNING, EXITED}),
        layers=frozenset({"1", "new-2"}),
        blobs=frozenset({"sha256-1"}),
        spools=frozenset({"now"}),
    ),
)


def found(there: Present, owners: Owners = OWNERS) -> list[Finding]:
    return compare(owners, there, now_ns=NOW_NS, filters_used={"f1"})


def names(there: Present, owners: Owners = OWNERS) -> list[tuple[str, str]]:
    return [(each.kind.value, each.name) for each in found(there, owners)]


def with_more(field: str, *more: Any) -> Present:
    """The healthy node with something added to one part."""
    old = getattr(PRESENT, field)
    return replace(PRESENT, **{field: old | set(more) if isinstance(old, frozenset) else (*old, *more)})


def test_on_a_healthy_node_nothing_is_found() -> None:
    assert found(PRESENT) == []


@pytest.mark.parametrize(
    ("field", "thing", "expected"),
    [
        ("cgroups", f"/crishim-x.slice/pods/{GONE}", ("cgroup", f"/crishim-x.slice/pods/{GONE}")),
        ("cgroups", f"/crishim-x.slice/pods/{OWN}/{GONE}", ("cgroup", f"/crishim-x.slice/pods/{OWN}/{GONE}")),
        ("cgroups", f"{KUBE_CGROUP}/{EXITED}", ("cgroup", f"{KUBE_CGROUP}/{EXITED}")),
        ("processes", FoundProcess(7, 1, "crishim-monitor", GONE, ()), ("process", "crishim-monitor 7")),
        ("processes", FoundProcess(7, 1, "crishim-zygote", "", ()), ("process", "crishim-zygote 7")),
        ("pins", f"crishim-x-{GONE}", ("netns", f"/run/netns/crishim-x-{GONE}")),
        ("mounts", f"/root/containers/{GONE}/upper", ("mount", f"/root/containers/{GONE}/upper")),
        ("mounts", "/root/layers/3", ("mount", "/root/layers/3")),
        (
            "sandboxes",
            SandboxDirectory(GONE, False, frozenset()),
            ("sandbox_directory", f"/state/sandboxes/{GONE}"),
        ),
        ("filters", "f2", ("filter", "f2")),
        ("roots", GONE, ("rootfs", f"/root/containers/{GONE}")),
        ("layers", "new-9", ("layer", "new-9")),
        ("layers", "17", ("layer", "17")),
        ("blobs", ("partial", "sha256-2", NOW_NS - BLOB_LIFE_NS - 1), ("blob", "partial/sha256-2")),
        ("spools", "images/spool/old", ("spool", "images/spool/old")),
        ("spools", "tmpabcdefgh", ("spool", "tmpabcdefgh")),
        ("network", NetworkObject("address", "10.0.0.9", GONE), ("network", "address 10.0.0.9")),
        ("network", NetworkObject("device", "crv9"), ("network", "device crv9")),
        ("network", NetworkObject("rule", "ports4 tcp 80"), ("network", "rule ports4 tcp 80")),
        ("network", NetworkObject("attachment", GONE, GONE), ("network", f"attachment {GONE}")),
    ],
)
def test_what_is_nobodys_is_found(field: str, thing: object, expected: tuple[str, str]) -> None:
    assert names(with_more(field, thing)) == [expected]


@pytest.mark.parametrize(
    ("field", "thing"),
    [
        ("cgroups", f"{KUBE_CGROUP}/{GONE}"),  # the kubelet's pod cgroup: another runtime's container may be there
        ("cgroups", f"{KUBE_CGROUP}/somebody"),
        ("pins", f"crishim-x-1234-{GONE}"),  # of a server whose name begins as ours does
        ("pins", "crishim-x-hello"),
        ("processes", FoundProcess(7, 1, "crishim-monitor", OWN, ())),  # not adopted yet
        ("blobs", ("blobs", "sha256-3", NOW_NS - BLOB_LIFE_NS + 1)),  # its pull may be tried again
        ("mounts", f"/state/sandboxes/{OWN}/files/x"),  # somebody looks into a living pod
        ("filters", ".f3.tmp"),
    ],
)
def test_what_is_somebody_elses_or_may_be_needed_is_left_alone(field: str, thing: object) -> None:
    assert found(with_more(field, thing)) == []


@pytest.mark.parametrize(
    ("field", "thing"),
    [
        ("cgroups", f"/crishim-x.slice/pods/{BUSY}"),
        ("cgroups", f"/crishim-x.slice/pods/{OWN}/{BUSY}"),
        ("processes", FoundProcess(7, 1, "crishim-monitor", BUSY, ())),
        ("pins", f"crishim-x-{BUSY}"),
        ("sandboxes", SandboxDirectory(BUSY, True, frozenset({GONE}))),
        ("roots", BUSY),
        ("network", NetworkObject("address", "10.0.0.9", BUSY)),
    ],
)
def test_what_an_operation_is_making_is_left_alone(field: str, thing: object) -> None:
    assert found(with_more(field, thing)) == []


def test_what_is_in_the_cgroup_of_a_pod_that_is_gone_goes_with_it() -> None:
    there = with_more("cgroups", f"/crishim-x.slice/pods/{GONE}", f"/crishim-x.slice/pods/{GONE}/{EXITED}")
    assert names(there) == [("cgroup", f"/crishim-x.slice/pods/{GONE}")]


def test_a_cgroup_below_a_pod_of_the_kubelet_is_ours_when_our_records_know_its_container() -> None:
    there = replace(with_more("cgroups", f"{KUBE_CGROUP}/{GONE}"), roots=PRESENT.roots | {GONE})  # type: ignore[operator]
    assert ("cgroup", f"{KUBE_CGROUP}/{GONE}") in names(there)


def test_only_the_dead_containers_of_a_stray_monitor_end_with_it() -> None:
    children = (f"/kubepods/pod9/{GONE}", f"{KUBE_CGROUP}/{RUNNING}", "/crishim-x.slice/monitors", "/")
    (process,) = found(with_more("processes", FoundProcess(7, 3, "crishim-monitor", GONE, children)))
    assert (process.pid, process.started_ticks, process.cgroups) == (7, 3, (f"/kubepods/pod9/{GONE}",))
    (zygote,) = found(with_more("processes", FoundProcess(8, 3, "crishim-zygote", "", children)))
    assert zygote.cgroups == ()


def test_files_and_socket_in_the_directory_of_a_living_sandbox() -> None:
    pods = {**OWNERS.pods, OWN: replace(OWNERS.pods[OWN], ready=False, has_monitor=False)}
    there = replace(PRESENT, sandboxes=(SandboxDirectory(OWN, True, frozenset({RUNNING, GONE})),))
    findings = found(there, replace(OWNERS, pods=pods))
    assert [(each.kind, each.owner, each.sandbox_id) for each in findings] == [
        (LeftoverKind.SOCKET, OWN, OWN),
        (LeftoverKind.CONTAINER_FILES, GONE, OWN),
    ]


def test_what_is_left_of_a_reserved_sandbox_is_one_finding_but_for_its_processes_and_mounts() -> None:
    there = replace(
        with_more("cgroups", f"/crishim-x.slice/pods/{GONE}"),
        pins=PRESENT.pins | {f"crishim-x-{GONE}"},  # type: ignore[operator]
        processes=(FoundProcess(7, 1, "crishim-monitor", GONE, ()),),
        mounts=(*PRESENT.mounts, f"/state/sandboxes/{GONE}/x"),  # type: ignore[misc]
        network=(*PRESENT.network, NetworkObject("address", "10.0.0.9", GONE)),  # type: ignore[misc]
    )
    reserved = replace(OWNERS, reserved={GONE: f"/crishim-x.slice/pods/{GONE}"})
    assert [each.kind.value for each in found(there, reserved)] == ["process", "mount", "sandbox"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"cgroups": frozenset()}, ("cgroup", f"/crishim-x.slice/pods/{OWN}/{RUNNING}")),
        ({"mounts": ()}, ("netns", f"/run/netns/crishim-x-{OWN}")),
        ({"network": PRESENT.network[:1]}, ("network", f"network of {OWN}")),  # type: ignore[index]
        ({"network": ()}, ("network", f"network of {OWN}")),
        ({"roots": frozenset({EXITED})}, ("rootfs", f"/root/containers/{RUNNING}")),
    ],
)
def test_what_a_living_pod_lacks_is_said(changes: dict[str, Any], expected: tuple[str, str]) -> None:
    (finding,) = found(replace(PRESENT, **changes))
    assert ((finding.kind.value, finding.name), finding.missing) == (expected, True)


def test_a_pod_without_its_monitor_and_a_container_without_its_process_are_said() -> None:
    pods = {**OWNERS.pods, KUBE: replace(OWNERS.pods[KUBE], has_monitor=False)}
    members = {**OWNERS.members, RUNNING: replace(OWNERS.members[RUNNING], has_process=False)}
    there = replace(PRESENT, sandboxes=PRESENT.sandboxes[:1])  # type: ignore[index]
    findings = found(there, replace(OWNERS, pods=pods, members=members))
    assert [(each.kind, each.owner, each.missing) for each in findings] == [
        (LeftoverKind.PROCESS, RUNNING, True),
        (LeftoverKind.PROCESS, KUBE, True),
    ]


def test_nothing_is_said_of_a_pod_that_an_operation_changes_or_that_has_another_network() -> None:
    there = replace(PRESENT, network=(), mounts=(), cgroups=frozenset(), roots=frozenset({EXITED}))
    assert found(there, replace(OWNERS, busy=frozenset({OWN}))) == []
    cni = {**OWNERS.pods, OWN: replace(OWNERS.pods[OWN], network_mode="cni")}
    assert found(replace(PRESENT, network=()), replace(OWNERS, pods=cni)) == []


def test_from_what_could_not_be_looked_at_nothing_follows() -> None:
    assert compare(OWNERS, Present(), now_ns=NOW_NS) == []
    assert blind_kinds(Present(), None) == set(LeftoverKind) - {LeftoverKind.SANDBOX}
    assert blind_kinds(PRESENT, {"f1"}) == set()


def test_users_are_freed_before_what_they_use() -> None:
    there = replace(
        with_more("roots", GONE),
        pins=PRESENT.pins | {f"crishim-x-{GONE}"},  # type: ignore[operator]
        processes=(FoundProcess(7, 1, "crishim-monitor", GONE, ()),),
        sandboxes=(*PRESENT.sandboxes, SandboxDirectory(GONE, False, frozenset())),  # type: ignore[misc]
    )
    assert [each.kind.value for each in found(there)] == ["process", "netns", "sandbox_directory", "rootfs"]


def test_who_lived_before_or_after_a_look_lived_during_it() -> None:
    came = replace(OWNERS, pods={**OWNERS.pods, GONE: Pod("")})
    assert found(with_more("pins", f"crishim-x-{GONE}"), both(came, OWNERS)) == []
    assert found(with_more("pins", f"crishim-x-{GONE}"), both(OWNERS, came)) == []
    reserved = replace(OWNERS, reserved={GONE: "/a"})
    assert both(OWNERS, reserved).reserved == both(reserved, OWNERS).reserved == {}
    assert both(reserved, reserved).reserved == {GONE: "/a"}


def test_the_answer_of_the_role_becomes_values() -> None:
    answer: dict[str, object] = {
        "cgroups": [b"/a"],
        "processes": [[7, 9, b"crishim-monitor", b"s1", [b"/p/c"]]],
        "pins": None,
        "mounts": [b"/x \xff"],
        "sandboxes": [[b"s1", True, [b"c1"]]],
        "filters": [],
        "roots": [],
        "layers": [],
        "blobs": [[b"partial", b"sha256-1", 5]],
        "spools": [],
        "problems": ["/run/netns: input/output error"],
    }
    there = present(answer, None, None, ("the network: it hangs",))
    assert there.processes == (FoundProcess(7, 9, "crishim-monitor", "s1", ("/p/c",)),)
    assert (there.pins, there.mounts) == (None, ("/x \udcff",))
    assert there.sandboxes == (SandboxDirectory("s1", True, frozenset({"c1"})),)
    assert there.blobs == (("partial", "sha256-1", 5),)
    assert there.problems == ("/run/netns: input/output error", "the network: it hangs")
