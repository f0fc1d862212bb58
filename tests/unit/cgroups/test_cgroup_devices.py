"""Device rules: the eBPF program, run by a small interpreter, decides as the v1 lines of the same table do."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.cgroups.devices import DeviceTable, device_table
from crishim.errors import InvalidSpec
from crishim.model.process import DeviceRule

BITS = {"m": 1, "r": 2, "w": 4}
KINDS = {"b": 1, "c": 2}


def run(program: bytes, kind: str, access: int, major: int, minor: int) -> bool:
    """What a CGROUP_DEVICE program answers, as the kernel's eBPF machine has it."""
    context = struct.pack("<III", access << 16 | KINDS[kind], major, minor)
    code = list(struct.iter_unpack("<BBhi", program))
    registers, at = [0] * 11, 0
    for _ in range(len(code) + 1):
        operation, pair, offset, value = code[at]
        to, source = pair & 15, pair >> 4
        at += 1
        if operation == 0x61:
            registers[to] = struct.unpack_from("<I", context, offset)[0]
        elif operation == 0xBF:
            registers[to] = registers[source]
        elif operation == 0xB7:
            registers[to] = value
        elif operation == 0x57:
            registers[to] &= value
        elif operation == 0x77:
            registers[to] >>= value
        elif operation == 0x55:
            at += offset if registers[to] != value else 0
        elif operation == 0x15:
            at += offset if registers[to] == value else 0
        elif operation == 0x5D:
            at += offset if registers[to] != registers[source] else 0
        elif operation == 0x95:
            return bool(registers[0])
        else:
            raise AssertionError(f"instruction {operation:#x} is not one that we put down")
    raise AssertionError("the program does not end")


def as_v1(lines: Sequence[tuple[str, str]], kind: str, access: int, major: int, minor: int) -> bool:
    """What the v1 controller decides after these lines (cgroup-v1/devices.rst)."""
    default = lines[0] == ("devices.allow", "a")
    for _, line in lines[1:]:
        line_kind, numbers, letters = line.split()
        wanted = zip(numbers.split(":"), (major, minor))
        if line_kind != kind or any(want not in ("*", str(have)) for want, have in wanted):
            continue
        bits = sum(BITS[letter] for letter in letters)
        if not default and access & ~bits == 0:
            return True
        if default and access & bits:
            return False
    return default


numbers = st.sampled_from([None, 0, 1, 5, 136])
rules = st.lists(
    st.builds(
        DeviceRule,
        st.booleans(),
        st.sampled_from("abc"),
        numbers,
        numbers,
        st.sampled_from(["r", "w", "m", "rw", "rwm"]),
    ),
    max_size=6,
)


@given(rules, st.sampled_from("bc"), st.integers(1, 7), st.sampled_from([0, 1, 5, 7]), st.sampled_from([0, 1, 3, 5]))
def test_both_kinds_of_node_decide_alike(
    rule_list: list[DeviceRule], kind: str, access: int, major: int, minor: int
) -> None:
    try:
        table = DeviceTable(rule_list)
    except InvalidSpec:
        return
    program = table.program()
    allowed = True if program is None else run(program, kind, access, major, minor)
    assert allowed == as_v1(table.v1_writes(), kind, access, major, minor)


def allowed(rule_list: list[DeviceRule], kind: str, access: str, major: int, minor: int) -> bool:
    program = device_table(rule_list).program()
    return program is None or run(program, kind, sum(BITS[letter] for letter in access), major, minor)


def test_no_rules_allow_only_what_every_container_has() -> None:
    assert allowed([], "c", "rw", 1, 3)
    assert allowed([], "c", "rw", 136, 42)
    assert allowed([], "b", "m", 8, 0), "making a node is not opening it"
    assert not allowed([], "b", "r", 8, 0)
    assert not allowed([], "c", "r", 1, 1)
    assert not allowed([], "b", "rw", 1, 3), "a block device with the numbers of null"


def test_a_rule_allows_what_it_names_and_no_more() -> None:
    rule_list = [DeviceRule(False), DeviceRule(True, "b", 8, 0, "r")]
    assert allowed(rule_list, "b", "r", 8, 0)
    assert not allowed(rule_list, "b", "rw", 8, 0)
    assert not allowed(rule_list, "b", "r", 8, 1)


def test_a_privileged_container_needs_no_program() -> None:
    table = device_table([DeviceRule(True)])
    assert table.program() is None
    assert table.v1_writes() == [("devices.allow", "a")]


def test_a_later_rule_takes_back_what_an_earlier_one_gave() -> None:
    rule_list = [DeviceRule(True, "b", 8, None), DeviceRule(True, "b", 9, 1), DeviceRule(False, "b", None, None, "w")]
    assert allowed(rule_list, "b", "r", 8, 3)
    assert not allowed(rule_list, "b", "w", 8, 3)
    assert not allowed(rule_list, "b", "w", 9, 1)


def test_denied_accesses_of_an_open_table_are_denied_in_any_company() -> None:
    rule_list = [DeviceRule(True), DeviceRule(False, "b", 8, 0, "w")]
    assert allowed(rule_list, "b", "r", 8, 0)
    assert not allowed(rule_list, "b", "rw", 8, 0)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (DeviceRule(True, "x"), "kind 'x'"),
        (DeviceRule(True, "c", 1, 1, "rx"), "access 'rx'"),
        (DeviceRule(True, "c", 1, 1, ""), "access ''"),
        (DeviceRule(True, "c", -1, 1), "-1"),
    ],
)
def test_a_faulty_rule_is_named(rule: DeviceRule, words: str) -> None:
    with pytest.raises(InvalidSpec, match=words):
        device_table([rule])


def test_a_hole_in_a_wider_rule_is_refused_since_v1_cannot_say_it() -> None:
    with pytest.raises(InvalidSpec, match=r"'b 8:1 rw' would punch a hole in 'b 8:\* rwm'"):
        device_table([DeviceRule(True, "b", 8), DeviceRule(False, "b", 8, 1, "rw")])
