"""The compiled filters, run by a small interpreter of classic BPF and compared with a plain reading of the rules."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.errors import InvalidSpec, Unsupported
from crishim.model.process import SeccompFilter, SeccompListener
from crishim.spec import seccomp
from crishim.spec.seccomp_profile import (
    ALLOW,
    ERRNO,
    KILL_PROCESS,
    NOTIFY,
    X32_BIT,
    Condition,
    Profile,
    Rule,
    numbers,
    runtime_default_profile,
)

KERNEL = (6, 1)
AUDIT = {"x86_64": 0xC000003E, "x32": 0xC000003E, "i386": 0x40000003, "aarch64": 0xC00000B7}
EPERM, ENOSYS = ERRNO | 1, ERRNO | 38
NO_ARGUMENTS = (0,) * 6
MACHINES = [("x86_64", "x86_64"), ("x86_64", "x32"), ("x86_64", "i386"), ("aarch64", "aarch64")]
CAPABILITY_SETS = [
    frozenset(),
    frozenset({"CAP_SYS_ADMIN"}),
    frozenset({"CAP_SYS_PTRACE", "CAP_SYS_TIME", "CAP_BPF", "CAP_SYS_CHROOT"}),
]


def run(program: bytes, number: int, audit: int, arguments: Sequence[int] = NO_ARGUMENTS) -> int:
    """The SECCOMP_RET value of a filter for one call, as the kernel's classic BPF machine has it."""
    data = struct.pack("=IIQ6Q", number, audit, 0, *arguments)
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator, at = 0, 0
    for _ in range(len(code) + 1):
        operation, true, false, value = code[at]
        at += 1
        if operation == 0x20:
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif operation == 0x05:
            at += value
        elif operation in (0x15, 0x25, 0x35):
            holds = {0x15: accumulator == value, 0x25: accumulator > value, 0x35: accumulator >= value}[operation]
            at += true if holds else false
        elif operation == 0x54:
            accumulator &= value
        elif operation == 0x06:
            return int(value)
        else:
            raise AssertionError(f"instruction {operation:#x} is not one that we put down")
    raise AssertionError("the program does not end")


def compare(condition: Condition, arguments: Sequence[int]) -> bool:
    argument, value = arguments[condition.index], condition.value
    return {
        "SCMP_CMP_NE": argument != value,
        "SCMP_CMP_LT": argument < value,
        "SCMP_CMP_LE": argument <= value,
        "SCMP_CMP_EQ": argument == value,
        "SCMP_CMP_GE": argument >= value,
        "SCMP_CMP_GT": argument > value,
        "SCMP_CMP_MASKED_EQ": argument & value == condition.value_two,
    }[condition.op]


def expected(profile: Profile, architecture: str, number: int, arguments: Sequence[int]) -> int:
    """What the rules say, read one by one."""
    table = numbers(architecture)
    named = [rule for rule in profile.rules if any(table.get(name) == number for name in rule.names)]
    for rule in sorted(named, key=lambda rule: not rule.conditions):
        if all(compare(condition, arguments) for condition in rule.conditions):
            return rule.action
    largest = max((table[name] for rule in profile.rules for name in rule.names if name in table), default=None)
    refuses = profile.default & ~0xFFFF in (ERRNO, 0, KILL_PROCESS, 0x30000)
    if largest is not None and number > largest and refuses and profile.default != ENOSYS:
        return ENOSYS
    return profile.default


EDGES = (0, 1, 38, 39, 40, 0x7E020000, 0xFFFFFFFF, 1 << 32, (1 << 32) | 38, (1 << 64) - 1)
words = st.one_of(st.sampled_from(EDGES), st.integers(0, (1 << 64) - 1))
arguments6 = st.tuples(words, words, words, words, words, words)


@pytest.mark.parametrize(("machine", "architecture"), MACHINES)
@pytest.mark.parametrize("capabilities", CAPABILITY_SETS, ids=["none", "admin", "some"])
def test_every_number_is_answered_as_the_table_says(
    machine: str, architecture: str, capabilities: frozenset[str]
) -> None:
    profile = runtime_default_profile(capabilities, KERNEL, machine)
    program = seccomp.runtime_default(capabilities, KERNEL, machine)
    base = X32_BIT if architecture == "x32" else 0
    for number in [*range(base, base + 560), base + 4095, base + 0x3FFFFFFF]:
        assert run(program, number, AUDIT[architecture]) == expected(profile, architecture, number, NO_ARGUMENTS), (
            number
        )


@given(
    st.sampled_from(MACHINES),
    st.sampled_from(CAPABILITY_SETS),
    st.sampled_from(["socket", "clone", "personality"]),
    arguments6,
)
def test_conditional_calls_are_answered_as_the_table_says(
    machine: tuple[str, str], capabilities: frozenset[str], name: str, arguments: tuple[int, ...]
) -> None:
    profile = runtime_default_profile(capabilities, KERNEL, machine[0])
    program = seccomp.runtime_default(capabilities, KERNEL, machine[0])
    number = numbers(machine[1])[name]
    assert run(program, number, AUDIT[machine[1]], arguments) == expected(profile, machine[1], number, arguments)


NAMES = sorted(numbers("x86_64"))
conditions = st.builds(
    Condition,
    st.integers(0, 5),
    st.sampled_from(["SCMP_CMP_" + op for op in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")]),
    words,
    words,
)
rules = st.builds(
    Rule,
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=30).map(tuple),
    st.sampled_from([ALLOW, EPERM, ENOSYS, KILL_PROCESS, 0x7FFC0000]),
    st.lists(conditions, max_size=3).map(tuple),
)
profiles = st.builds(
    Profile,
    st.sampled_from([ALLOW, EPERM, ENOSYS, KILL_PROCESS, 0, 0x7FFC0000]),
    st.lists(rules, max_size=8).map(tuple),
    st.sampled_from([("x86_64", "i386", "x32"), ("x86_64",), ("x86_64", "x32")]),
)


@given(profiles, st.data())
def test_any_profile_is_compiled_to_what_it_says(profile: Profile, data: st.DataObject) -> None:
    program = seccomp.compile(profile, arch="x86_64")
    for _ in range(10):
        architecture = data.draw(st.sampled_from(profile.architectures))
        table = numbers(architecture)
        named = [table[name] for rule in profile.rules for name in rule.names if name in table]
        chosen = st.sampled_from(named) if named else st.nothing()
        top = 0x3FFFFFFF if architecture == "x86_64" else (1 << 32) - 1
        number = data.draw(chosen | st.integers(X32_BIT if architecture == "x32" else 0, top))
        values = [c.value for rule in profile.rules for c in rule.conditions] or [0]
        arguments = data.draw(st.tuples(*[st.sampled_from(values) | words] * 6))
        assert run(program, number, AUDIT[architecture], arguments) == expected(
            profile, architecture, number, arguments
        )


def test_a_large_profile_with_conditions_needs_long_jumps_and_still_holds() -> None:
    rule_list = tuple(
        Rule(
            (name,), ERRNO | i, (Condition(i % 6, "SCMP_CMP_GT", 7 << 32 | i), Condition((i + 1) % 6, "SCMP_CMP_LE", i))
        )
        for i, name in enumerate(NAMES[:200])
    )
    profile = Profile(ALLOW, rule_list, ("x86_64",))
    program = seccomp.compile(profile, arch="x86_64")
    assert len(program) // 8 > 1000
    for i, name in enumerate(NAMES):
        number = numbers("x86_64")[name]
        for arguments in (NO_ARGUMENTS, (8 << 32, 0) * 3, (0, 8 << 32) * 3, (i, 7 << 32 | i + 1) * 3):
            assert run(program, number, AUDIT["x86_64"], arguments) == expected(profile, "x86_64", number, arguments)


def test_a_profile_too_large_for_the_kernel_is_refused() -> None:
    everything = tuple(Condition(i, "SCMP_CMP_MASKED_EQ", 1 << i, 1) for i in range(6))
    rule_list = tuple(Rule((name,), ERRNO | i, everything) for i, name in enumerate(NAMES))
    with pytest.raises(InvalidSpec, match="4096"):
        seccomp.compile(Profile(ALLOW, rule_list, ("x86_64",)), arch="x86_64")


def test_programs_of_foreign_architectures_are_killed() -> None:
    program = seccomp.runtime_default(frozenset(), KERNEL, "x86_64")
    assert run(program, 1, AUDIT["aarch64"]) == KILL_PROCESS
    assert run(seccomp.runtime_default(frozenset(), KERNEL, "aarch64"), 1, 0x40000028) == KILL_PROCESS


def test_x32_numbers_are_unknown_where_the_profile_lacks_x32() -> None:
    program = seccomp.compile(Profile(EPERM, (Rule(("read",), ALLOW),), ("x86_64",)), arch="x86_64")
    assert run(program, 0, AUDIT["x86_64"]) == ALLOW
    assert run(program, X32_BIT, AUDIT["x86_64"]) == ENOSYS
    assert run(program, 0, AUDIT["i386"]) == KILL_PROCESS


@pytest.mark.parametrize("family", [38, 40, 1 << 32 | 38, 1 << 63 | 40])
def test_socket_families_are_judged_by_the_32_bits_that_the_kernel_reads(family: int) -> None:
    program = seccomp.runtime_default(frozenset(), KERNEL, "x86_64")
    assert run(program, 41, AUDIT["x86_64"], (family, 1, 0, 0, 0, 0)) == EPERM
    assert run(program, 41, AUDIT["x86_64"], (2, 1, 0, 0, 0, 0)) == ALLOW


@pytest.mark.parametrize("name", ["io_uring_setup", "keyctl", "userfaultfd", "mount", "unshare", "bpf", "kexec_load"])
def test_dangerous_calls_are_refused_without_capabilities(name: str) -> None:
    program = seccomp.runtime_default(frozenset(), KERNEL, "x86_64")
    assert run(program, numbers("x86_64")[name], AUDIT["x86_64"]) == EPERM


def test_the_default_filter_is_small_and_cached() -> None:
    program = seccomp.runtime_default(frozenset(), KERNEL, "x86_64")
    assert len(program) // 8 < 800
    assert seccomp.runtime_default(frozenset(), KERNEL, "x86_64") is program


def test_ptrace_needs_a_kernel_where_it_cannot_get_around_the_filter() -> None:
    new, old = (seccomp.runtime_default(frozenset(), kernel, "x86_64") for kernel in ((4, 8), (4, 7)))
    ptrace = numbers("x86_64")["ptrace"]
    assert (run(new, ptrace, AUDIT["x86_64"]), run(old, ptrace, AUDIT["x86_64"])) == (ALLOW, EPERM)


def test_a_machine_without_table_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="riscv64"):
        seccomp.runtime_default(frozenset(), KERNEL, "riscv64")


NOTIFIED = {"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}
OCI: dict[str, object] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "architectures": ["SCMP_ARCH_X86_64"],
    "syscalls": [{"names": ["read", "not_a_call_of_this_kernel"], "action": "SCMP_ACT_ALLOW"}],
}


def oci_filter(kernel: tuple[int, int] = KERNEL, **changes: object) -> SeccompFilter:
    return seccomp.compile_oci(OCI | changes, kernel=kernel, machine="x86_64", capabilities=frozenset({"CAP_CHOWN"}))


def oci(**changes: object) -> bytes:
    return oci_filter(**changes).program


def answer(program: bytes, name: str, *arguments: int) -> int:
    return run(program, numbers("x86_64")[name], AUDIT["x86_64"], (*arguments, *NO_ARGUMENTS)[:6])


def test_an_oci_profile_allows_what_it_names() -> None:
    program = oci(defaultErrnoRet=13)
    assert (answer(program, "read"), answer(program, "read"), answer(program, "open")) == (ALLOW, ALLOW, ENOSYS)
    both = [{"names": ["read", "openat"], "action": "SCMP_ACT_ALLOW"}]
    assert answer(oci(defaultErrnoRet=13, syscalls=both), "open") == ERRNO | 13


def test_conditions_on_different_arguments_hold_together_and_on_the_same_one_alternatively() -> None:
    def entry(*args: dict[str, object]) -> list[dict[str, object]]:
        return [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": list(args)}]

    one = {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}
    different = oci(syscalls=entry(one, {"index": 1, "value": 2, "op": "SCMP_CMP_EQ"}))
    same = oci(syscalls=entry(one, {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}))
    assert [answer(different, "read", *args) for args in ((1, 2), (1, 3), (2, 2))] == [ALLOW, EPERM, EPERM]
    assert [answer(same, "read", first) for first in (1, 2, 3)] == [ALLOW, ALLOW, EPERM]


@pytest.mark.parametrize(
    ("limits", "applies"),
    [
        ({"includes": {"caps": ["CAP_CHOWN"]}}, True),
        ({"includes": {"caps": ["CAP_CHOWN", "CAP_KILL"]}}, False),
        ({"excludes": {"caps": ["CAP_CHOWN"]}}, False),
        ({"includes": {"arches": ["arm64", "amd64"]}}, True),
        ({"includes": {"arches": ["s390x"]}}, False),
        ({"includes": {"minKernel": "6.1"}, "excludes": {}}, True),
        ({"includes": {"minKernel": "6.10"}}, False),
        ({"excludes": {"arches": ["amd64"]}}, False),
    ],
)
def test_includes_and_excludes_choose_entries(limits: dict[str, object], applies: bool) -> None:
    entry = {"names": ["read"], "action": "SCMP_ACT_ALLOW", **limits}
    last = {"names": ["write"], "action": "SCMP_ACT_LOG"}
    assert answer(oci(syscalls=[entry, last]), "read") == (ALLOW if applies else EPERM)


def test_an_arch_map_adds_the_sub_architectures_of_this_machine() -> None:
    mapped = [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_X32"]},
    ]
    program = oci(architectures=None, archMap=mapped)
    assert run(program, numbers("i386")["read"], AUDIT["i386"]) == ALLOW
    assert run(program, numbers("x32")["read"], AUDIT["x32"]) == ENOSYS


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"defaultAction": "SCMP_ACT_DREAM"}, "defaultAction"),
        ({"defaultAction": None}, "defaultAction"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "defaultAction"),
        ({"defaultErrnoRet": -1}, "defaultErrnoRet"),
        ({"defaultErrnoRet": 70000}, "defaultErrnoRet"),
        ({"architectures": "SCMP_ARCH_X86_64"}, "architectures"),
        ({"archMap": [{"architecture": "SCMP_ARCH_X86_64"}]}, "archMap"),
        ({"architectures": [], "archMap": [1]}, r"archMap\[0\]"),
        ({"flags": ["SECCOMP_FILTER_FLAG_NEW"]}, "flags"),
        ({"flags": "SECCOMP_FILTER_FLAG_LOG"}, "flags"),
        ({"flags": [1]}, "flags"),
        ({"syscalls": [NOTIFIED]}, "listenerPath is empty"),
        ({"listenerPath": 1}, "listenerPath"),
        ({"listenerPath": "run/listener"}, "listenerPath: 'run/listener' is neither an absolute path nor @ and a name"),
        ({"listenerPath": "/" + "x" * 107}, "listenerPath: .* is longer than 107 bytes"),
        ({"listenerMetadata": "x"}, "listenerMetadata: 'x' is given, and no listenerPath"),
        ({"listenerPath": "/l", "listenerMetadata": {}}, "listenerMetadata"),
        ({"syscalls": [{"names": ["write"], "action": "SCMP_ACT_NOTIFY"}]}, r"syscalls\[0\]\.names: 'write' cannot be"),
        ({"syscalls": [{"name": "write", "action": "SCMP_ACT_NOTIFY"}]}, r"syscalls\[0\]\.names: 'write' cannot be"),
        ({"syscalls": {}}, None),
        ({"syscalls": {"a": 1}}, "syscalls"),
        ({"syscalls": [1]}, r"syscalls\[0\]"),
        ({"syscalls": [{"action": "SCMP_ACT_ALLOW"}]}, r"syscalls\[0\]\.names"),
        ({"syscalls": [{"names": [1], "action": "SCMP_ACT_ALLOW"}]}, r"syscalls\[0\]\.names"),
        ({"syscalls": [{"names": ["read"], "name": "open", "action": "SCMP_ACT_ALLOW"}]}, r"syscalls\[0\]\.name"),
        ({"syscalls": [{"names": ["read"], "action": "no"}]}, r"syscalls\[0\]\.action"),
        ({"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "errnoRet": 5}]}, r"syscalls\[0\]\.errnoRet"),
        ({"syscalls": [{"names": ["a"], "action": "SCMP_ACT_ALLOW", "args": [{}]}]}, r"syscalls\[0\]\.args\[0\]\.op"),
        (
            {"syscalls": [{"names": ["a"], "action": "SCMP_ACT_LOG", "args": [{"op": "SCMP_CMP_EQ", "index": 6}]}]},
            r"args\[0\]\.index",
        ),
        (
            {
                "syscalls": [
                    {"names": ["a"], "action": "SCMP_ACT_LOG", "args": [{"op": "SCMP_CMP_EQ", "value": 1 << 64}]}
                ]
            },
            r"args\[0\]\.value",
        ),
        ({"syscalls": [{"names": ["a"], "action": "SCMP_ACT_LOG", "includes": {"minKernel": "x"}}]}, "minKernel"),
        ({"syscalls": [{"names": ["a"], "action": "SCMP_ACT_LOG", "includes": 1}]}, "includes"),
    ],
)
def test_a_faulty_profile_is_refused_by_the_name_of_its_field(changes: dict[str, object], field: str | None) -> None:
    if field is None:
        oci(**changes)
        return
    with pytest.raises(InvalidSpec, match=field):
        oci(**changes)


def test_calls_may_be_left_to_a_listener() -> None:
    found = oci_filter(syscalls=[NOTIFIED], listenerPath="/run/agent.sock", listenerMetadata="told")
    assert answer(found.program, "mkdir") == NOTIFY
    assert found.listener == SeccompListener("/run/agent.sock", "told")
    abstract = oci_filter(syscalls=[NOTIFIED], listenerPath="@agent")
    assert abstract.listener == SeccompListener("@agent")


def test_a_listener_that_no_rule_here_leaves_a_call_to_is_none() -> None:
    elsewhere = NOTIFIED | {"includes": {"arches": ["s390x"]}}
    assert oci_filter(syscalls=[elsewhere], listenerPath="/run/agent.sock").listener is None


def test_flags_are_kept_but_the_one_that_says_nothing_of_one_thread() -> None:
    prefix = "SECCOMP_FILTER_FLAG_"
    listed = [prefix + name for name in ("TSYNC", "LOG", "SPEC_ALLOW", "LOG")]
    assert oci_filter(flags=listed).flags == (prefix + "LOG", prefix + "SPEC_ALLOW")


def test_a_flag_is_refused_with_the_kernel_that_it_needs() -> None:
    flags = ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]
    assert oci_filter(kernel=(5, 19), flags=flags).flags == tuple(flags)
    with pytest.raises(
        InvalidSpec, match=r"'SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV' needs Linux 5\.19, and this is 5\.14"
    ):
        oci_filter(kernel=(5, 14), flags=flags)
