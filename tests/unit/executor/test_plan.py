"""Plans of init and exec as values: the full one, one change each, and the rules of their order."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from crishim.executor import child, plan, sentences, tables, value
from crishim.executor.lower import Privileges, lower
from crishim.linux import selinux
from crishim.model.process import (
    CpuAffinity,
    MemoryPolicy,
    MountSpec,
    Namespace,
    NamespaceKind,
    ProcessSpec,
    Propagation,
    Scheduler,
    SeccompListener,
    User,
)
from tests.unit.executor.values import CONTAINER, OPENED, PROCESS, container_value

NEWUSER = 0x10000000
NEWCGROUP, NEWNET, NEWUTS = 0x2000000, 0x40000000, 0x4000000
RDONLY, NOSUID, NODEV, NOEXEC, STRICTATIME = 0x1, 0x2, 0x4, 0x8, 0x20

FINISH = [
    ("set_umask", 0o027),
    ("set_stdio", (-1, 37, 38), False),
    ("reset_signals",),
    ("set_no_new_privileges",),
    ("keep_descriptors", ()),
    ("set_rlimit", 7, 10, 20),
    ("enter_cwd_as_root", b"/work"),
    ("drop_bounding", 0b100001),
    ("set_user", 1000, 2000, (2000, 3000), True),
    ("enter_cwd", b"/work"),
    ("set_capabilities", 0b100001, 1, 1, 0, 0),
    ("die_with_parent",),
    ("announce",),
    ("load_seccomp", b"program"),
    ("execute", (b"prog", b"arg"), {b"PATH": b"/bin", b"A": b"1"}),
]
EARLY = [
    ("set_oom_score_adj", 36, b"500"),
    ("raise_hard_limit", 7, 20),
    ("set_affinity", (0, 2, 3)),
    ("set_scheduler", 3, 0, 3, 0, 0, 0, 0),
    ("set_io_priority", 2 << 13 | 4),
]


def init(**changes: Any) -> list[plan.Step]:
    return plan.init_steps(container_value(replace(CONTAINER, **changes)), OPENED)


def init_of(**changes: Any) -> list[plan.Step]:
    return init(process=replace(PROCESS, **changes))


def exec_(process: ProcessSpec = PROCESS, namespaces: int = NEWNET) -> list[plan.Step]:
    body = {**value.process_value(process), "container_id": b"c1"}
    return plan.exec_steps(body, {**OPENED, b"target": 40}, namespaces)


def names(steps: list[plan.Step]) -> list[str]:
    return [str(step[0]) for step in steps]


def test_the_plan_of_a_full_container() -> None:
    assert init() == [
        ("set_dumpable", 0),
        ("join_cgroup", 33),
        ("join_cgroup", 34),
        ("new_session",),
        *EARLY,
        ("join_keyring", b"_ses.c1", True),
        ("unshare", NEWCGROUP),
        ("take_shm", 3),
        ("enter_root", 32),
        ("mount_filesystem", b"proc", b"/proc", (), NOSUID | NOEXEC | NODEV, 0),
        ("mount_filesystem", b"tmpfs", b"/dev", (b"mode=755",), NOSUID | STRICTATIME, 0x70),
        ("make_devices", ((b"/dev/null", b"c", 1, 3, 0o666, 0, 0),)),
        ("link_devices",),
        ("mount_filesystem", b"devpts", b"/dev/pts", (b"newinstance",), NOSUID | NOEXEC, 0),
        ("link_ptmx",),
        ("attach_shm", 3, b"/dev/shm", NOSUID, 0),
        ("mount_cgroups", b"/sys/fs/cgroup", RDONLY, ((b"", 35),)),
        ("attach", 31, b"/etc/hosts", True),
        ("make_cwd", b"/work"),
        ("make_root_read_only",),
        ("set_hostname", b"host"),
        ("set_domainname", b"domain"),
        ("write_sysctls", ((b"kernel.shmmni", b"7"),)),
        ("make_read_only", b"/proc/sys"),
        ("mask_paths", (b"/proc/kcore", b"/proc/keys")),
        ("set_root_propagation", 1 << 19),
        *FINISH,
    ]


def test_the_plan_of_a_full_exec() -> None:
    assert exec_() == [
        ("set_dumpable", 0),
        ("join_cgroup", 33),
        ("join_cgroup", 34),
        ("new_session",),
        *EARLY,
        ("join_namespace", 40, NEWNET),
        ("join_keyring", b"_ses.c1", False),
        *FINISH,
    ]


def test_the_plan_of_a_container_in_a_user_namespace() -> None:
    """The starter has taken the early steps, and proc is made while the host's can be seen."""
    namespaces = (*CONTAINER.namespaces, Namespace(NamespaceKind.USER))
    opened = {**OPENED, b"user": 60, b"view:proc": 61, b"view:sys": 62, b"device:0": 63}
    steps = plan.init_steps(container_value(replace(CONTAINER, namespaces=namespaces)), opened)
    assert steps[: steps.index(("attach", 31, b"/etc/hosts", True))] == [
        ("set_dumpable", 0),
        ("join_cgroup", 33),
        ("join_cgroup", 34),
        ("new_session",),
        ("become_root",),
        ("join_keyring", b"_ses.c1", True),
        ("unshare", NEWCGROUP),
        ("take_shm", 3),
        ("show", 61, b"/proc"),
        ("show", 62, b"/sys"),
        ("make_filesystem", 0, b"proc", (), NOSUID | NOEXEC | NODEV),
        ("hide", b"/proc"),
        ("hide", b"/sys"),
        ("enter_root", 32),
        ("attach_filesystem", 0, b"proc", b"/proc"),
        ("mount_filesystem", b"tmpfs", b"/dev", (b"mode=755",), NOSUID | STRICTATIME, 0x70),
        ("bind_devices", ((b"/dev/null", 63),)),
        ("link_devices",),
        ("mount_filesystem", b"devpts", b"/dev/pts", (b"newinstance",), NOSUID | NOEXEC, 0),
        ("link_ptmx",),
        ("attach_shm", 3, b"/dev/shm", NOSUID, 0),
        ("mount_cgroups", b"/sys/fs/cgroup", RDONLY, ((b"", 35),)),
    ]
    assert [step for step in steps if step in EARLY] == []
    assert plan.early_steps(container_value()["process"], opened) == EARLY  # type: ignore[arg-type]


def test_an_exec_in_a_user_namespace_becomes_its_root_as_soon_as_it_is_there() -> None:
    steps = exec_(namespaces=NEWUSER | NEWNET)
    place = steps.index(("join_namespace", 40, NEWUSER | NEWNET))
    assert steps[place + 1 : place + 3] == [("become_root",), ("join_keyring", b"_ses.c1", False)]
    assert steps[place - len(EARLY) : place] == EARLY


def test_a_memory_policy_and_a_personality_are_steps() -> None:
    steps = init_of(memory_policy=MemoryPolicy("MPOL_BIND", "0,65", ("MPOL_F_STATIC_NODES",)), personality="LINUX32")
    assert ("set_memory_policy", 2 | 1 << 15, (1 | 1 << 65).to_bytes(16, "little")) in steps
    assert ("set_personality", 8) in steps


def test_every_step_is_lowered_or_a_function_of_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selinux, "why_refused", lambda context: "")
    terminal = replace(PROCESS, terminal=True, apparmor_profile="p", label="l")
    mqueue = (*CONTAINER.mounts, MountSpec("/dev/mqueue", "mqueue"))
    labelled = init(process=terminal, mounts=mqueue, mount_label="l")
    program = lower(init() + exec_() + labelled, Privileges(-1, -1), 50)
    functions = {name for _, name, _, _ in program if name is not None}
    assert {name for name in functions if not callable(child.FUNCTIONS.get(name))} == set()
    assert {index for index, _, _, _ in program} >= set(range(len(init())))


def test_instructions_know_the_step_that_they_belong_to() -> None:
    steps = exec_()
    program = lower(steps, Privileges(0b111, 0b111), 50)
    order = [index for index, _, _, _ in program]
    assert order == sorted(order)
    dropped = [args[2] for index, name, args, _ in program if steps[index][0] == "drop_bounding" and name is None]
    assert dropped == [1, 2], "of our own three, what is not kept"


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ({"no_new_privileges": False}, ["set_no_new_privileges"]),
        ({"capabilities": None}, ["drop_bounding", "set_capabilities"]),
        ({"seccomp": None}, ["load_seccomp"]),
        ({"cwd": None}, ["make_cwd", "enter_cwd_as_root", "enter_cwd"]),
        ({"cwd": "/"}, ["enter_cwd_as_root", "enter_cwd"]),
        ({"rlimits": ()}, ["raise_hard_limit", "set_rlimit"]),
        ({"scheduler": None}, ["set_scheduler"]),
        ({"io_priority": None}, ["set_io_priority"]),
        ({"cpu_affinity": None}, ["set_affinity"]),
    ],
)
def test_what_is_not_asked_for_is_no_step(change: dict[str, Any], gone: list[str]) -> None:
    full = names(init())
    left = names(init_of(**change))
    assert sorted(left) == sorted(name for name in full if name not in gone)


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ({"hostname": None}, ["set_hostname"]),
        ({"domainname": None}, ["set_domainname"]),
        ({"sysctls": {}}, ["write_sysctls"]),
        ({"masked_paths": ()}, ["mask_paths"]),
        ({"readonly_paths": ()}, ["make_read_only"]),
        ({"rootfs": replace(CONTAINER.rootfs, readonly=False)}, ["make_root_read_only"]),
        ({"rootfs": replace(CONTAINER.rootfs, propagation=Propagation.PRIVATE)}, ["set_root_propagation"]),
        ({"namespaces": CONTAINER.namespaces[:2]}, ["unshare", "set_hostname", "set_domainname"]),
    ],
)
def test_what_a_container_does_not_have_is_no_step(change: dict[str, Any], gone: list[str]) -> None:
    assert names(init(**change)) == [name for name in names(init()) if name not in gone]


def test_a_joined_uts_namespace_keeps_its_name() -> None:
    uts = tuple(ns for ns in CONTAINER.namespaces if ns.kind is not NamespaceKind.UTS)
    steps = init(namespaces=(*uts, Namespace(NamespaceKind.UTS, "/proc/1/ns/uts")))
    assert "set_hostname" not in names(steps)


def test_an_exec_that_shares_all_namespaces_joins_none() -> None:
    assert "join_namespace" not in names(exec_(namespaces=0))


def test_umask_is_set_for_init_and_left_alone_for_an_exec() -> None:
    without = replace(PROCESS, user=User())
    assert ("set_umask", 0o022) in init(process=without)
    assert "set_umask" not in names(exec_(without))


def test_a_terminal_is_opened_before_the_root_turns_read_only_and_in_an_exec_not_bound() -> None:
    process = replace(PROCESS, terminal=True, console_width=80, console_height=24)
    steps = init(process=process)
    assert ("open_console", True, 80, 24, 1000) in steps
    assert names(steps).index("open_console") < names(steps).index("make_root_read_only")
    assert ("open_console", False, 80, 24, 1000) in exec_(process)
    assert ("set_stdio", (-1, 37, 38), True) in steps


def test_labels_are_written_through_the_hosts_proc_before_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selinux, "why_refused", lambda context: "")
    steps = init_of(apparmor_profile="profile", label="label")
    assert ("write_exec_attribute", 36, b"apparmor", b"profile") in steps
    assert ("write_exec_attribute", 36, b"", b"label") in steps
    order = names(steps)
    assert order.index("write_exec_attribute") < order.index("keep_descriptors")


def test_extra_files_are_kept_in_their_order() -> None:
    opened = {**OPENED, b"extra:3": 50, b"extra:4": 51}
    steps = plan.init_steps(container_value(), opened)
    assert ("keep_descriptors", (50, 51)) in steps


def test_the_initial_affinity_is_set_before_the_cgroup_is_joined_and_the_final_one_after() -> None:
    both = CpuAffinity(initial="0", final="1")
    for steps in (init_of(cpu_affinity=both), exec_(replace(PROCESS, cpu_affinity=both))):
        order = names(steps)
        assert steps.index(("set_affinity", (0,))) < order.index("join_cgroup")
        assert steps.index(("set_affinity", (1,))) > len(order) - 1 - order[::-1].index("join_cgroup")
    alone = exec_(replace(PROCESS, cpu_affinity=CpuAffinity(initial="0")))
    assert names(alone).count("set_affinity") == 1 and alone[1] == ("set_affinity", (0,))


def test_a_log_is_told_of_every_step_and_closed_before_the_last() -> None:
    steps = exec_()
    program = lower(steps, Privileges(0, 0), 100, 50)
    told = [(index, args) for index, name, args, _ in program if name == "tell"]
    assert [index for index, _ in told] == list(range(len(steps)))
    keep = names(steps).index("keep_descriptors")
    assert {args[0] for index, args in told if index <= keep} == {50}
    assert {args[0] for index, args in told if index > keep} == {4}
    assert (keep, "keep_descriptors", ((), 50), 0) in program
    assert program[-2][2][1] == 4, "closed"
    assert program[-1][1] == "execute"
    assert told[-1][1][1] == b'{"level":"debug","msg":"execute prog"}\n'


def test_a_line_of_the_log_is_json_whatever_it_is_about() -> None:
    line = sentences.label(("attach", 3, b'/a"b\\c\n\xff', False))
    assert json.loads(line) == {"level": "debug", "msg": 'attach /a"b\\c\n\ufffd'}


def mounting(*mounts: MountSpec) -> list[plan.Step]:
    made = container_value(replace(CONTAINER, mounts=mounts))
    opened = {**OPENED, **{b"mount:%d" % index: 70 + index for index in range(len(mounts))}}
    return plan.init_steps(made, opened)


def mounted(*mounts: MountSpec) -> list[plan.Step]:
    return [step for step in mounting(*mounts) if "tmpfs" in str(step[0]) or "filesystem" in str(step[0])]


def test_a_plain_tmpfs_is_a_file_system_like_any_other() -> None:
    options = (b"mode=755",)
    assert mounted(MountSpec("/x", "tmpfs", options=("mode=755",))) == [
        ("mount_filesystem", b"tmpfs", b"/x", options, 0, 0)
    ]


@pytest.mark.parametrize(
    ("mount", "step"),
    [
        (MountSpec("/x", "tmpfs"), ("mount_tmpfs", b"/x", (), 0, 0, False)),
        (
            MountSpec("/x", "tmpfs", flags=("ro",), options=("mode=1",)),
            ("mount_tmpfs", b"/x", (b"mode=1",), 1, 0, False),
        ),
        (MountSpec("/x", "tmpfs", options=("mode=1",), copy_up=True), ("mount_tmpfs", b"/x", (b"mode=1",), 0, 0, True)),
    ],
)
def test_a_tmpfs_that_wants_more_is_finished_when_all_is_mounted(mount: MountSpec, step: plan.Step) -> None:
    assert mounted(mount) == [step, ("finish_tmpfs",)]
    order = names(mounting(mount, MountSpec("/x/y", source="/y")))
    assert order.index("attach") < order.index("finish_tmpfs") < order.index("make_root_read_only")


EARLY_HOOKS = {"stages": {b"createContainer": [[b"/hook", [b"/hook"], None, 0]]}, "bundle": b"/bundle"}


def test_a_child_that_hooks_look_at_enters_its_root_in_the_bundle_and_leaves_the_host_when_they_have_run() -> None:
    opened = {**OPENED, b"bundle": 60, b"shm:3": 61}
    steps = plan.init_steps({**container_value(), "hooks": EARLY_HOOKS}, opened)
    order = names(steps)
    assert ("enter_root_on_host", 32) in steps
    assert ("hold_shm", 3, 61) in steps
    assert "enter_root" not in order and "take_shm" not in order
    await_, leave = steps.index(("await_hooks", 0)), steps.index(("leave_host", 32))
    assert leave == await_ + 1
    last_mount = max(order.index(name) for name in ("attach", "mount_filesystem", "mount_cgroups", "make_devices"))
    assert last_mount < await_ < order.index("make_cwd") < order.index("mask_paths")


def test_a_child_waits_for_the_last_hooks_right_before_it_is_executed() -> None:
    hooks = {"stages": {b"startContainer": [[b"/hook", [b"/hook"], None, 0]]}, "bundle": b"/bundle"}
    steps = plan.init_steps({**container_value(), "hooks": hooks}, OPENED)
    assert "enter_root" in names(steps)
    at = steps.index(("await_hooks", 1))
    assert names(steps)[at + 1 :] == ["announce", "load_seccomp", "execute"]


@pytest.mark.parametrize("nnp", [True, False])
def test_a_filter_with_flags_is_loaded_where_a_plain_one_is(nnp: bool) -> None:
    listener = {"seccomp_listener": SeccompListener("@agent"), "seccomp_flags": ("SECCOMP_FILTER_FLAG_LOG",)}
    plain, flagged = (init_of(no_new_privileges=nnp, **changes) for changes in ({}, listener))
    at = names(plain).index("load_seccomp")
    assert flagged[at] == ("load_flagged_seccomp", b"program", 2 | 8)
    assert flagged[:at] + flagged[at + 1 :] == plain[:at] + plain[at + 1 :]


@pytest.mark.parametrize("policy", ["SCHED_FIFO", "SCHED_DEADLINE", "SCHED_BATCH"])
def test_in_a_user_namespace_a_real_time_policy_comes_from_outside_at_the_very_end(policy: str) -> None:
    container = container_value(replace(CONTAINER, process=replace(PROCESS, scheduler=Scheduler(policy))))
    views = {b"user": 69, b"view:proc": 70, b"view:sys": 71, b"device:0": 72, b"device:1": 73}
    inside = names(plan.init_steps(container, OPENED | views))
    assert "set_scheduler" not in inside
    waits = policy != "SCHED_BATCH"  # that is inherited from the starter
    assert inside[-4:] == [
        *(["await_scheduler"] if waits else ["die_with_parent"]),
        "announce",
        "load_seccomp",
        "execute",
    ]
    assert "await_scheduler" not in names(plan.init_steps(container, OPENED))


def test_a_child_without_hooks_waits_for_nobody() -> None:
    assert "await_hooks" not in names(init())


PLANS = {
    "init": init(),
    "exec": exec_(),
    "init without no_new_privs": init_of(no_new_privileges=False),
    "exec without no_new_privs": exec_(replace(PROCESS, no_new_privileges=False)),
}

BEFORE = [
    ("set_dumpable", "join_namespace", "nobody in there may look into us"),
    ("join_cgroup", "unshare", "or the new cgroup namespace has our cgroup as its root"),
    ("join_cgroup", "join_namespace", "the trees are named by paths and descriptors of the host"),
    ("set_oom_score_adj", "set_user", "lowering needs privileges"),
    ("raise_hard_limit", "join_namespace", "in a user namespace nobody may raise"),
    ("keep_descriptors", "set_rlimit", "a low RLIMIT_NOFILE would hinder us"),
    ("set_rlimit", "set_user", "lowering the hard limit is for good, the user's capabilities are few"),
    ("set_stdio", "keep_descriptors", "what is given is still open"),
    ("keep_descriptors", "enter_cwd_as_root", "no directory of the host can be entered"),
    ("enter_cwd_as_root", "set_user", "with root's rights"),
    ("set_user", "enter_cwd", "with the user's rights"),
    ("drop_bounding", "set_user", "needs CAP_SETPCAP"),
    ("set_user", "set_capabilities", "a change of uid clears them"),
    ("set_capabilities", "die_with_parent", "a change of credentials clears it"),
    ("set_user", "die_with_parent", "a change of credentials clears it"),
    ("set_no_new_privileges", "load_seccomp", "it allows loading without privileges"),
    ("die_with_parent", "execute", ""),
    ("announce", "execute", "set-up is done"),
]


@pytest.mark.parametrize(("first", "second", "why"), BEFORE, ids=[f"{a}-{b}" for a, b, _ in BEFORE])
@pytest.mark.parametrize("kind", PLANS)
def test_order(kind: str, first: str, second: str, why: str) -> None:
    order = names(PLANS[kind])
    if first in order and second in order:
        last = len(order) - 1 - order[::-1].index(first)
        assert last < order.index(second), why


def test_seccomp_is_loaded_early_with_privileges_or_last_without() -> None:
    late, early = names(init()), names(init_of(no_new_privileges=False))
    assert late[-2:] == ["load_seccomp", "execute"]
    assert early.index("load_seccomp") < early.index("drop_bounding") < early.index("set_user")


def test_a_new_cgroup_namespace_and_mounts_come_before_what_needs_them() -> None:
    order = names(init())
    assert order.index("take_shm") < order.index("enter_root") < order.index("mount_filesystem")
    assert order.index("write_sysctls") < order.index("make_read_only"), "/proc/sys turns read-only"
    assert order.index("make_cwd") < order.index("make_root_read_only")
    assert order.index("set_root_propagation") > order.index("enter_root")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), (0, 0, False)),
        (("ro", "nosuid"), (RDONLY | NOSUID, 0, False)),
        (("ro", "rw"), (0, RDONLY, False)),
        (("rro",), (RDONLY, 0, True)),
        (("noatime", "strictatime"), (STRICTATIME, 0x70, False)),
        (("relatime",), (0, 0x70, False)),
        (("noexec", "exec"), (0, NOEXEC, False)),
    ],
)
def test_mount_flags(flags: tuple[str, ...], expected: tuple[int, int, bool]) -> None:
    assert tables.attributes([flag.encode() for flag in flags]) == expected


@pytest.mark.parametrize(
    ("step", "code", "detail", "sentence"),
    [
        (("execute", (b"prog",), {}), 2, b"", 'exec: "prog": executable file not found in $PATH'),
        (("execute", (b"/prog",), {}), 2, b"", 'exec: "/prog": no such file or directory'),
        (("execute", (b"/prog",), {}), 13, b"", 'exec: "/prog": permission denied'),
        (("attach", 9, b"/etc/x", True), 20, b"", 'mounting "/etc/x": not a directory'),
        (("mount_filesystem", b"proc", b"/proc", (), 0, 0), 20, b"w", 'mounting "/proc": not a directory (w)'),
        (("enter_cwd", b"/x"), 13, b"", 'working directory "/x": permission denied'),
        (("set_user", 5, 6, (), True), 22, b"", "changing to uid 5 gid 6: invalid argument"),
        (("set_rlimit", 7, 5, 6), 1, b"", "setting RLIMIT_NOFILE to 5:6: operation not permitted"),
        (("write_exec_attribute", 9, b"apparmor", b"a"), 2, b"", 'AppArmor profile "a": it is not loaded on this node'),
        (("write_exec_attribute", 9, b"apparmor", b"a"), 13, b"", 'AppArmor profile "a": permission denied'),
        (("write_exec_attribute", 9, b"", b"s0"), 22, b"", 'SELinux label "s0": invalid argument'),
        (("label_new_keys", 9, b"s0"), 13, b"", 'SELinux label "s0" of keys: permission denied'),
        (("label_mount", b"/dev/mqueue", b"s0"), 13, b"", 'labelling "/dev/mqueue": permission denied'),
        (("mask_paths", (b"/a",)), 0, b"/a", "mask paths: failed (/a)"),
        (("write_sysctls", ()), 22, b"\xff", "writing a sysctl: invalid argument (\ufffd)"),
    ],
)  # fmt: skip
def test_a_failed_step_is_a_sentence(step: plan.Step, code: int, detail: bytes, sentence: str) -> None:
    assert sentences.describe(step, code, detail) == sentence
