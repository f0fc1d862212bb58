"""From a seccomp profile to the BPF program that a process loads. Pure; compiled once and cached by the server.

The program looks at the architecture, finds the call's number in a binary tree of ranges, and checks arguments where
rules have conditions. No libseccomp: it takes longer to build a filter than a container to start. Sources:
seccomp(2), linux/seccomp.h (struct seccomp_data), linux/bpf_common.h.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from functools import lru_cache

from crishim.errors import InvalidSpec
from crishim.model.process import SeccompFilter
from crishim.spec.seccomp_notify import flags_of, listener_of
from crishim.spec.seccomp_profile import (
    ENOSYS,
    ERRNO,
    KILL_PROCESS,
    X32_BIT,
    Condition,
    Profile,
    Rule,
    architectures_of,
    from_oci,
    numbers,
    runtime_default_profile,
)

MAX_INSTRUCTIONS = 4096
_LOAD, _JUMP = 0x20, 0x05  # A = word at k; go on k instructions further
_JUMP_EQUAL, _JUMP_GREATER, _JUMP_GREATER_EQUAL = 0x15, 0x25, 0x35
_AND, _RETURN = 0x54, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_LOW = 0xFFFFFFFF

_AUDIT_ARCHITECTURE = {"x86_64": 0xC000003E, "x32": 0xC000003E, "i386": 0x40000003, "aarch64": 0xC00000B7}
_PERMISSIVE = (0x7FF00000, 0x7FFC0000, 0x7FFF0000)  # TRACE, LOG, ALLOW

#: a place in a program: the count of instructions from it to the end
Label = int


class _Program:
    """Instructions put down from the last to the first, so that every target of a jump is already there."""

    def __init__(self) -> None:
        self._reversed: list[tuple[int, int, int, int]] = []
        self._returns: dict[int, Label] = {}

    def _put(self, code: int, true: int = 0, false: int = 0, value: int = 0) -> Label:
        self._reversed.append((code, true, false, value))
        return len(self._reversed)

    def answer(self, action: int) -> Label:
        """Return `action`; one within reach of a conditional jump is used again."""
        label = self._returns.get(action)
        if label is None or len(self._reversed) - label > 200:
            label = self._returns[action] = self._put(_RETURN, value=action)
        return label

    def load(self, offset: int) -> Label:
        return self._put(_LOAD, value=offset)

    def mask(self, bits: int) -> Label:
        return self._put(_AND, value=bits)

    def jump(self, code: int, value: int, true: Label, false: Label) -> Label:
        """A conditional jump. Its targets may be 255 instructions away; what is further gets a long jump in between."""
        if len(self._reversed) - true > 254:  # one less, as the other long jump may come between
            true = self._near(true)
        if len(self._reversed) - false > 254:
            false = self._near(false)
        here = len(self._reversed)
        return self._put(code, here - true, here - false, value)

    def _near(self, label: Label) -> Label:
        return self._put(_JUMP, value=len(self._reversed) - label)

    def go(self, label: Label) -> None:
        """Make the next instruction put down flow into `label`."""
        if label != len(self._reversed):
            self._near(label)

    def to_bytes(self) -> bytes:
        """The program as an array of struct sock_filter; InvalidSpec when it is longer than the kernel takes."""
        if len(self._reversed) > MAX_INSTRUCTIONS:
            raise InvalidSpec(f"seccomp: {len(self._reversed)} instructions, and a filter may have {MAX_INSTRUCTIONS}")
        return b"".join(struct.pack("=HBBI", *instruction) for instruction in reversed(self._reversed))


def compile(profile: Profile, *, arch: str) -> bytes:
    """The filter (array of struct sock_filter) of a profile on a machine ("x86_64", "aarch64").

    Numbers above the largest that the profile names get ENOSYS when the default refuses: they may be newer than the
    profile, and libraries fall back on that answer alone. Raises InvalidSpec when it does not fit into a filter.
    """
    native = architectures_of(arch)
    program = _Program()
    start = program.answer(KILL_PROCESS)  # a foreign architecture, whose numbers mean other calls
    audit = {_AUDIT_ARCHITECTURE[name]: name for name in native if name in profile.architectures and name != "x32"}
    for value, name in reversed(audit.items()):
        groups = [name] + (["x32"] if name == "x86_64" and "x32" in profile.architectures else [])
        program.go(_tree(program, _ranges(profile, groups), profile.default))
        body = program.load(_NUMBER_AT)
        start = program.jump(_JUMP_EQUAL, value, body, start)
    program.go(start)
    program.load(_ARCHITECTURE_AT)
    return program.to_bytes()


@lru_cache(maxsize=256)
def runtime_default(capabilities: frozenset[str], kernel: tuple[int, int], machine: str) -> bytes:
    """The RuntimeDefault filter of a container with this bounding set of names ("CAP_CHOWN")."""
    return compile(runtime_default_profile(capabilities, kernel, machine), arch=machine)


def compile_oci(
    profile: Mapping[str, object],
    *,
    capabilities: frozenset[str] = frozenset(),
    kernel: tuple[int, int] | None = None,
    machine: str | None = None,
) -> SeccompFilter:
    """The filter of a profile in OCI's JSON, decoded; kernel and machine are this node's when not given.

    Raises InvalidSpec naming the field at fault.
    """
    uname = os.uname()
    machine = machine or uname.machine
    if kernel is None:
        major, minor = uname.release.split(".")[:2]
        kernel = int(major), int("".join(digit for digit in minor if digit.isdigit()))
    rules = from_oci(profile, capabilities, kernel, machine)
    return SeccompFilter(compile(rules, arch=machine), flags_of(profile, kernel), listener_of(profile, rules))


#: first number of a range, and the rules of all numbers in it in order of trial
_Range = tuple[int, tuple[Rule, ...]]


def _ranges(profile: Profile, groups: list[str]) -> list[_Range]:
    """The numbers 0..2^32-1 in ranges of equal answers. groups: an architecture, and x32 in the upper numbers."""
    unknown = _unknown(profile.default)
    ranges: list[_Range] = []
    for group in groups:
        rules = _by_number(profile, group)
        base = X32_BIT if group == "x32" else 0
        following = base
        for number, answers in sorted(rules.items()):
            if number > following:
                ranges.append((following, ()))
            ranges.append((number, answers))
            following = number + 1
        ranges.append((following, unknown if rules else ()))  # nothing named, so nothing is newer
    return [pair for i, pair in enumerate(ranges) if i == 0 or pair[1] != ranges[i - 1][1]]


def _unknown(default: int) -> tuple[Rule, ...]:
    if default & ~0xFFFF in _PERMISSIVE or default == ERRNO | ENOSYS:
        return ()
    return (Rule((), ERRNO | ENOSYS),)


def _by_number(profile: Profile, architecture: str) -> dict[int, tuple[Rule, ...]]:
    """Rules of each number: those with conditions in order, then the first without. Names are left out of them."""
    table = numbers(architecture)
    found: dict[int, tuple[Rule, ...]] = {}
    for conditional in (True, False):
        for rule in profile.rules:
            if bool(rule.conditions) is not conditional:
                continue
            bare = Rule((), rule.action, rule.conditions)
            for name in rule.names:
                number = table.get(name)
                if number is None:
                    continue
                before = found.get(number, ())
                if not before or before[-1].conditions:
                    found[number] = (*before, bare)
    return found


def _tree(program: _Program, ranges: list[_Range], default: int) -> Label:
    """A binary search for the range of the number in A."""
    if len(ranges) == 1:
        return _leaf(program, ranges[0][1], default)
    middle = len(ranges) // 2
    upper = _tree(program, ranges[middle:], default)
    lower = _tree(program, ranges[:middle], default)
    return program.jump(_JUMP_GREATER_EQUAL, ranges[middle][0], upper, lower)


def _leaf(program: _Program, rules: tuple[Rule, ...], default: int) -> Label:
    label = program.answer(default) if not rules or rules[-1].conditions else program.answer(rules[-1].action)
    for rule in reversed(rules):
        if rule.conditions:
            otherwise, label = label, program.answer(rule.action)
            for condition in reversed(rule.conditions):
                label = _check(program, condition, label, otherwise)
    return label


def _check(program: _Program, condition: Condition, yes: Label, no: Label) -> Label:
    """Compare a 64-bit argument in its halves. Little endian: the low word comes first."""
    op, value = condition.op.removeprefix("SCMP_CMP_"), condition.value
    if op in ("NE", "LT", "LE"):
        op = {"NE": "EQ", "LT": "GE", "LE": "GT"}[op]
        yes, no = no, yes
    low_at = _ARGUMENTS_AT + 8 * condition.index
    if op == "MASKED_EQ":
        mask, value = value, condition.value_two
    final = {"EQ": _JUMP_EQUAL, "MASKED_EQ": _JUMP_EQUAL, "GE": _JUMP_GREATER_EQUAL, "GT": _JUMP_GREATER}[op]
    low = program.jump(final, value & _LOW, yes, no)
    if op == "MASKED_EQ":
        low = program.mask(mask & _LOW)
    low = program.load(low_at)
    high = program.jump(_JUMP_EQUAL, value >> 32, low, no)
    if op in ("GE", "GT"):
        high = program.jump(_JUMP_GREATER, value >> 32, yes, high)
    if op == "MASKED_EQ":
        high = program.mask(mask >> 32)
    return program.load(low_at + 4)
