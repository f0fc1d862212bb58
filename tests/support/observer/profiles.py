"""Seccomp filters as the OCI runtime specification writes them: what the peers get where ours gets compiled bytes."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import crishim.spec

_ARCHITECTURES = {
    "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
}


def runtime_default(capabilities: frozenset[str], machine: str) -> dict[str, Any]:
    """Our RuntimeDefault of a container without CAP_SYS_ADMIN, from the same table as the compiled one."""
    table: dict[str, Any] = json.loads(Path(crishim.spec.__file__).with_name("seccomp-default.json").read_text())
    since = [name for names in table["allow_since_kernel"].values() for name in names]
    extra = [name for capability in capabilities for name in table["allow_with_capability"].get(capability, ())]
    allowed = {*table["allow"], *table["allow_on"][machine], *since, *extra} - {rule[0] for rule in table["deny_when"]}
    conditional = [*table["allow_when"], *table["allow_without_cap_sys_admin_when"]]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": _ARCHITECTURES[machine],
        "syscalls": [
            {"names": sorted(allowed), "action": "SCMP_ACT_ALLOW"},
            *(_when(*rule) for rule in conditional),
            *_families(table["deny_when"]),
            {"names": table["enosys_without_cap_sys_admin"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        ],
    }


def with_arguments(machine: str) -> dict[str, Any]:
    """A filter that allows everything but a few calls, some by their arguments, each answered in its own way."""
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": _ARCHITECTURES[machine],
        "syscalls": [
            {"names": ["kcmp", "acct"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["swapon"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["pivot_root"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["swapoff"], "action": "SCMP_ACT_TRAP"},
            {"names": ["lookup_dcookie"], "action": "SCMP_ACT_LOG"},
            {"names": ["no_such_call"], "action": "SCMP_ACT_ERRNO"},
            _when("unshare", 0, "SCMP_CMP_MASKED_EQ", 0x10000000, 0x10000000) | _refusal(95),
            _when("socket", 0, "SCMP_CMP_GE", 38) | _refusal(97),
            _when("reboot", 1, "SCMP_CMP_EQ", 0) | _refusal(13),
            _when("personality", 0, "SCMP_CMP_NE", 0xFFFFFFFF) | _refusal(1),
        ],
    }


def _refusal(number: int) -> dict[str, Any]:
    return {"action": "SCMP_ACT_ERRNO", "errnoRet": number}


def _when(name: str, index: int, operator: str, value: int, second: int = 0) -> dict[str, Any]:
    argument = {"index": index, "op": operator, "value": value, "valueTwo": second}
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [argument]}


def _families(denied: list[list[Any]]) -> list[dict[str, Any]]:
    """Everything below, between and above the denied values: profiles have no "unless"."""
    name, index = denied[0][:2]
    values = sorted(rule[4] for rule in denied)
    between = [value for low, high in pairwise(values) for value in range(low + 1, high)]
    return [
        _when(name, index, "SCMP_CMP_LT", values[0]),
        *(_when(name, index, "SCMP_CMP_EQ", value) for value in between),
        _when(name, index, "SCMP_CMP_GT", values[-1]),
    ]
