"""Device rules as the kernel wants them: exception lists for v1, an eBPF program for v2. Pure.

Rules are applied in order, as v1 does, and give a default and its exceptions; both outputs are made from these, so
that both kinds of node decide alike. Rules start from "deny all", and the devices that every container may use are
allowed last. Sources: cgroup-v1/devices.rst; linux/bpf.h, struct bpf_cgroup_dev_ctx; bpf instruction set.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from crishim.errors import InvalidSpec
from crishim.model.process import DeviceRule

_READ, _WRITE, _MKNOD = 2, 4, 1
_BITS = {"r": _READ, "w": _WRITE, "m": _MKNOD}
_ALL = _READ | _WRITE | _MKNOD
_KERNEL_KIND = {"b": 1, "c": 2}

#: allowed to every container: making any node (opening it is another question), and the nodes of a usual /dev
ALWAYS_ALLOWED = (
    DeviceRule(True, "c", None, None, "m"),
    DeviceRule(True, "b", None, None, "m"),
    DeviceRule(True, "c", 1, 3),  # null
    DeviceRule(True, "c", 1, 5),  # zero
    DeviceRule(True, "c", 1, 7),  # full
    DeviceRule(True, "c", 1, 8),  # random
    DeviceRule(True, "c", 1, 9),  # urandom
    DeviceRule(True, "c", 5, 0),  # tty
    DeviceRule(True, "c", 5, 2),  # ptmx
    DeviceRule(True, "c", 136, None),  # terminals of devpts
)

#: (kind "b" or "c", major, minor), None is any
Key = tuple[str, int | None, int | None]


class DeviceTable:
    """What a list of rules amounts to: a default for all devices and the accesses that differ from it."""

    __slots__ = ("allow", "exceptions")

    def __init__(self, rules: Iterable[DeviceRule] = ()) -> None:
        self.allow = False
        #: accesses (bits) allowed when the default denies, denied when it allows; never 0
        self.exceptions: dict[Key, int] = {}
        for rule in rules:
            self._apply(rule)

    def _apply(self, rule: DeviceRule) -> None:
        access = _access_bits(rule)
        if rule.kind == "a":
            if access == _ALL and rule.major is None and rule.minor is None:
                self.allow = rule.allow
                self.exceptions.clear()
                return
            kinds = ["b", "c"]
        elif rule.kind in _KERNEL_KIND:
            kinds = [rule.kind]
        else:
            raise InvalidSpec(f"device rule kind {rule.kind!r} is not a, b or c")
        for kind in kinds:
            key = (kind, rule.major, rule.minor)
            if rule.allow == self.allow:
                self._remove(key, access)
            else:
                self.exceptions[key] = self.exceptions.get(key, 0) | access

    def _remove(self, key: Key, access: int) -> None:
        """Take the accesses back from the exceptions inside `key`; InvalidSpec when it lies inside a wider one."""
        for other, bits in list(self.exceptions.items()):
            if _covers(key, other):
                self.exceptions[other] = bits & ~access
                if not self.exceptions[other]:
                    del self.exceptions[other]
            elif _overlap(key, other) and bits & access:
                raise InvalidSpec(f"device rule {_line(key, access)!r} would punch a hole in {_line(other, bits)!r}")

    def v1_writes(self) -> list[tuple[str, str]]:
        """(file, line) in the order of writing; for a cgroup without children (else EINVAL)."""
        first, others = ("allow", "deny") if self.allow else ("deny", "allow")
        return [(f"devices.{first}", "a")] + [
            (f"devices.{others}", _line(key, access)) for key, access in self.exceptions.items()
        ]

    def program(self) -> bytes | None:
        """eBPF of kind CGROUP_DEVICE, None when everything is allowed and no program is needed."""
        if self.allow and not self.exceptions:
            return None
        code = _LOAD_REQUEST
        for key, access in self.exceptions.items():
            code += _exception(key, access, allow=not self.allow)
        return code + _answer(self.allow)


def device_table(rules: Iterable[DeviceRule]) -> DeviceTable:
    """The table of a container: its rules, then what every container may use. InvalidSpec names the rule at fault."""
    return DeviceTable((*rules, *ALWAYS_ALLOWED))


def _access_bits(rule: DeviceRule) -> int:
    unknown = set(rule.access) - set(_BITS)
    if unknown or not rule.access:
        raise InvalidSpec(f"device rule access {rule.access!r} is not a subset of rwm")
    for number in (rule.major, rule.minor):
        if number is not None and not 0 <= number < 1 << 20:
            raise InvalidSpec(f"device rule number {number} is out of range")
    return sum(_BITS[letter] for letter in set(rule.access))


def _covers(wide: Key, narrow: Key) -> bool:
    return wide[0] == narrow[0] and all(w is None or w == n for w, n in zip(wide[1:], narrow[1:]))


def _overlap(one: Key, other: Key) -> bool:
    return one[0] == other[0] and all(a is None or b is None or a == b for a, b in zip(one[1:], other[1:]))


def _line(key: Key, access: int) -> str:
    kind, major, minor = key
    letters = "".join(letter for letter, bit in _BITS.items() if access & bit)
    return f"{kind} {'*' if major is None else major}:{'*' if minor is None else minor} {letters}"


def _instruction(code: int, to: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """struct bpf_insn, little endian: registers are r0..r10."""
    return struct.pack("<BBhi", code, source << 4 | to, offset, value)


_LOAD_U32 = 0x61  # to = *(u32 *)(source + offset)
_MOVE, _MOVE_VALUE = 0xBF, 0xB7
_AND_VALUE, _SHIFT_RIGHT_VALUE = 0x57, 0x77
_JUMP_NOT_VALUE, _JUMP_NOT, _JUMP_EQUAL_VALUE = 0x55, 0x5D, 0x15
_EXIT = 0x95

#: r2 kind, r3 access, r4 major, r5 minor, from the context in r1 (access << 16 | kind, major, minor)
_LOAD_REQUEST = (
    _instruction(_LOAD_U32, 2, 1, 0)
    + _instruction(_MOVE, 3, 2)
    + _instruction(_AND_VALUE, 2, value=0xFFFF)
    + _instruction(_SHIFT_RIGHT_VALUE, 3, value=16)
    + _instruction(_LOAD_U32, 4, 1, 4)
    + _instruction(_LOAD_U32, 5, 1, 8)
)


def _answer(allow: bool) -> bytes:
    return _instruction(_MOVE_VALUE, 0, value=int(allow)) + _instruction(_EXIT)


def _exception(key: Key, access: int, allow: bool) -> bytes:
    """Answer `allow` when the request is the exception's, else go on.

    An allowing exception must cover all that is asked for; a denying one needs a single access in common.
    """
    kind, major, minor = key
    tests = [(_JUMP_NOT_VALUE, 2, 0, _KERNEL_KIND[kind])]
    tests += [(_JUMP_NOT_VALUE, register, 0, n) for register, n in ((4, major), (5, minor)) if n is not None]
    # r0 is free until the answer: it holds the part of the request that the exception speaks of
    prepare = b""
    if access != _ALL:
        prepare = _instruction(_MOVE, 0, 3) + _instruction(_AND_VALUE, 0, value=access)
        tests.append((_JUMP_NOT, 0, 3, 0) if allow else (_JUMP_EQUAL_VALUE, 0, 0, 0))
    answer = _answer(allow)
    length = len(prepare) // 8 + len(tests) + len(answer) // 8
    code, position = prepare, len(prepare) // 8
    for operation, register, source, value in tests:
        position += 1
        code += _instruction(operation, register, source, length - position, value)
    return code + answer
