"""Seccomp profiles as values: the RuntimeDefault table, and Localhost files in the format of the OCI runtime spec.

A profile names system calls; `seccomp` turns it into a filter. Which rules hold may depend on the capabilities of the
container, the kernel and the machine: that is decided here. Sources: OCI runtime spec (config-linux.md, "Seccomp"),
seccomp(2), linux/seccomp.h, linux/audit.h.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from crishim.errors import InvalidSpec, Unsupported

EPERM, ENOSYS = 1, 38
KILL_PROCESS = 0x80000000
ERRNO = 0x00050000
NOTIFY = 0x7FC00000
ALLOW = 0x7FFF0000
X32_BIT = 1 << 30

_ACTIONS = {
    "SCMP_ACT_KILL": 0,
    "SCMP_ACT_KILL_THREAD": 0,
    "SCMP_ACT_KILL_PROCESS": KILL_PROCESS,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": ERRNO,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_NOTIFY": NOTIFY,
    "SCMP_ACT_ALLOW": ALLOW,
}
_WITH_ERRNO = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
OPERATORS = frozenset(f"SCMP_CMP_{name}" for name in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"))

#: architectures whose programs a machine runs, the native one first; those of other names are unknown here
_ARCHITECTURES = {"x86_64": ("x86_64", "i386", "x32"), "aarch64": ("aarch64",)}
_OCI_ARCHITECTURES = {
    "SCMP_ARCH_X86_64": "x86_64",
    "SCMP_ARCH_X86": "i386",
    "SCMP_ARCH_X32": "x32",
    "SCMP_ARCH_AARCH64": "aarch64",
}
#: as `includes.arches` of a profile calls them
_GO_NAMES = {"x86_64": ("amd64", "x86_64"), "aarch64": ("arm64", "aarch64")}


@dataclass(frozen=True, slots=True)
class Condition:
    """Argument `index` (0..5, 64 bits) against `value`; MASKED_EQ: (argument & value) == value_two."""

    index: int
    op: str
    value: int
    value_two: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """What to answer (a SECCOMP_RET value) to calls of these names when all conditions hold."""

    names: tuple[str, ...]
    action: int
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class Profile:
    """A filter by names. For one call, rules with conditions come first, in order, then those without, then `default`.

    architectures: of _ARCHITECTURES; programs of any other are killed.
    """

    default: int
    rules: tuple[Rule, ...]
    architectures: tuple[str, ...]


@cache
def _data() -> Mapping[str, object]:
    loaded: dict[str, object] = json.loads((Path(__file__).parent / "seccomp-default.json").read_text())
    return loaded


@cache
def numbers(architecture: str) -> Mapping[str, int]:
    """Name to number of every system call of an architecture, as the filter sees it (x32 with bit 30)."""
    table = _data()["numbers"]
    assert isinstance(table, dict)
    if architecture != "x32":
        found: dict[str, int] = table[architecture]
        return found
    own = _data()["x32_numbers"]
    assert isinstance(own, dict)
    return {name: number | X32_BIT for name, number in (table["x86_64"] | own).items()}


def architectures_of(machine: str) -> tuple[str, ...]:
    """Architectures of a machine (`os.uname().machine`), the native one first; Unsupported for one without table."""
    if machine not in _ARCHITECTURES:
        raise Unsupported(f"seccomp: no table of system calls for {machine}")
    return _ARCHITECTURES[machine]


def runtime_default_profile(capabilities: frozenset[str], kernel: tuple[int, int], machine: str) -> Profile:
    """The RuntimeDefault profile of a container with this bounding set ("CAP_CHOWN") on this kernel."""
    data = _data()
    architectures = architectures_of(machine)
    names = [*_names(data["allow"])]
    for since, more in _items(data["allow_since_kernel"]):
        if kernel >= _version(since, "allow_since_kernel"):
            names += _names(more)
    for capability, more in _items(data["allow_with_capability"]):
        if capability in capabilities:
            names += _names(more)
    for architecture, more in _items(data["allow_on"]):
        if architecture in architectures:
            names += _names(more)
    deny, allow = ERRNO | EPERM, ALLOW
    rules = [Rule(tuple(dict.fromkeys(names)), allow)]
    rules += _conditional(data["deny_when"], deny)
    rules += _conditional(data["allow_when"], allow)
    if "CAP_SYS_ADMIN" not in capabilities:
        rules += _conditional(data["allow_without_cap_sys_admin_when"], allow)
        # its flags are behind a pointer that a filter cannot follow; after ENOSYS libc takes clone
        rules.append(Rule(tuple(_names(data["enosys_without_cap_sys_admin"])), ERRNO | ENOSYS))
    return Profile(deny, tuple(rules), architectures)


def from_oci(
    profile: Mapping[str, object], capabilities: frozenset[str], kernel: tuple[int, int], machine: str
) -> Profile:
    """A profile in OCI's JSON, decoded. InvalidSpec names the field.

    includes and excludes (caps, arches, minKernel) and archMap, which Docker's profiles have, are understood; unknown
    names of system calls are skipped, as they may belong to another kernel. Two conditions on the same argument in one
    entry are alternatives, not both: runc does so and profiles rely on it.
    """
    known = architectures_of(machine)
    listed = {_OCI_ARCHITECTURES.get(name) for name in _listed_architectures(profile, machine)}
    architectures = tuple(name for name in known if name in listed or name == known[0])
    default = _action(profile, "defaultAction", "defaultErrnoRet", "")
    if default == NOTIFY:
        raise InvalidSpec("seccomp: defaultAction: SCMP_ACT_NOTIFY would leave the calls of the set-up to a listener")
    rules: list[Rule] = []
    for index, entry in enumerate(_list(profile, "syscalls", "")):
        where = f"syscalls[{index}]."
        if not isinstance(entry, dict):
            raise InvalidSpec(f"seccomp: syscalls[{index}] is not an object")
        if _applies(entry, where, capabilities, kernel, machine):
            rules += _rules_of(entry, where)
    return Profile(default, tuple(rules), architectures)


def _conditional(table: object, action: int) -> list[Rule]:
    assert isinstance(table, list)
    return [Rule((name,), action, (Condition(index, op, one, two),)) for name, index, op, one, two in table]


def _names(value: object) -> list[str]:
    assert isinstance(value, list)
    return value


def _items(value: object) -> Iterable[tuple[str, object]]:
    assert isinstance(value, dict)
    return value.items()


def _listed_architectures(profile: Mapping[str, object], machine: str) -> list[str]:
    plain, mapped = _strings(profile, "architectures", ""), _list(profile, "archMap", "")
    if plain and mapped:
        raise InvalidSpec("seccomp: architectures and archMap are both given")
    native = "SCMP_ARCH_" + machine.upper()
    for index, entry in enumerate(mapped):
        if not isinstance(entry, dict):
            raise InvalidSpec(f"seccomp: archMap[{index}] is not an object")
        if entry.get("architecture") == native:
            plain += _strings(entry, "subArchitectures", f"archMap[{index}].")
    return plain


def _applies(
    entry: Mapping[str, object], where: str, capabilities: frozenset[str], kernel: tuple[int, int], machine: str
) -> bool:
    def holds(part: str, name: str) -> list[bool]:
        """One answer for each requirement of a filter object."""
        filter_ = entry.get(part) or {}
        if not isinstance(filter_, dict):
            raise InvalidSpec(f"seccomp: {where}{part} is not an object")
        if name == "minKernel":
            least = filter_.get(name) or ""
            return [kernel >= _version(least, f"{where}{part}.{name}")] if least else []
        wanted = _strings(filter_, name, f"{where}{part}.")
        return [item in capabilities if name == "caps" else item in _GO_NAMES[machine] for item in wanted]

    arches = holds("includes", "arches")
    included = all(holds("includes", "caps") + holds("includes", "minKernel")) and (not arches or any(arches))
    return included and not any(
        answer for name in ("caps", "arches", "minKernel") for answer in holds("excludes", name)
    )


def _rules_of(entry: Mapping[str, object], where: str) -> list[Rule]:
    names = _strings(entry, "names", where)
    single = entry.get("name")
    if single:
        if names or not isinstance(single, str):
            raise InvalidSpec(f"seccomp: {where}name must be a string, and not beside names")
        names = [single]
    if not names:
        raise InvalidSpec(f"seccomp: {where}names is empty")
    action = _action(entry, "action", "errnoRet", where)
    if action == NOTIFY and "write" in names:
        # as libcontainer has it: the process tells by a write that it has a listener
        raise InvalidSpec(f"seccomp: {where}names: 'write' cannot be SCMP_ACT_NOTIFY: nobody would have its listener")
    conditions = [_condition(arg, f"{where}args[{i}]") for i, arg in enumerate(_list(entry, "args", where))]
    if len({condition.index for condition in conditions}) < len(conditions):
        return [Rule(tuple(names), action, (condition,)) for condition in conditions]
    return [Rule(tuple(names), action, tuple(conditions))]


def _condition(arg: object, where: str) -> Condition:
    if not isinstance(arg, dict):
        raise InvalidSpec(f"seccomp: {where} is not an object")
    op = arg.get("op")
    if op not in OPERATORS:
        raise InvalidSpec(f"seccomp: {where}.op: {op!r} is not an operator")
    return Condition(
        _integer(arg, "index", where + ".", 5),
        op,
        _integer(arg, "value", where + ".", (1 << 64) - 1),
        _integer(arg, "valueTwo", where + ".", (1 << 64) - 1),
    )


def _action(entry: Mapping[str, object], key: str, errno_key: str, where: str) -> int:
    name = entry.get(key)
    if not isinstance(name, str) or name not in _ACTIONS:
        raise InvalidSpec(f"seccomp: {where}{key}: {name!r} is not a supported action")
    if entry.get(errno_key) is None:
        return _ACTIONS[name] | (EPERM if name in _WITH_ERRNO else 0)
    number = _integer(entry, errno_key, where, 0xFFFF)
    if number and name not in _WITH_ERRNO:
        raise InvalidSpec(f"seccomp: {where}{errno_key}: {name} takes no number")
    return _ACTIONS[name] | number


def _integer(entry: Mapping[str, object], key: str, where: str, most: int) -> int:
    value = entry.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise InvalidSpec(f"seccomp: {where}{key}: {value!r} is not a number from 0 to {most}")
    return value


def _list(entry: Mapping[str, object], key: str, where: str) -> list[object]:
    value = entry.get(key) or []
    if not isinstance(value, list):
        raise InvalidSpec(f"seccomp: {where}{key} is not a list")
    return value


def _strings(entry: Mapping[str, object], key: str, where: str) -> list[str]:
    value = _list(entry, key, where)
    found = [item for item in value if isinstance(item, str)]
    if len(found) < len(value):
        raise InvalidSpec(f"seccomp: {where}{key} holds something that is not a string")
    return found


def _version(text: object, where: str) -> tuple[int, int]:
    parts = str(text).split(".")
    if len(parts) < 2 or not (parts[0].isdigit() and parts[1].isdigit()):
        raise InvalidSpec(f"seccomp: {where}: {text!r} is not a kernel version like 4.8")
    return int(parts[0]), int(parts[1])
