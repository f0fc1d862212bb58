"""Our RuntimeDefault as an OCI profile, so that the peers filter as much as we do."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import crishim.spec

_ARCHITECTURES = {
    "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
}


def profile() -> dict[str, Any]:
    """The profile of a container without added capabilities on this machine, as `linux.seccomp` of an OCI config."""
    path = Path(crishim.spec.__file__).with_name("seccomp-default.json")
    table: dict[str, Any] = json.loads(path.read_text())
    machine = os.uname().machine
    always = {
        *table["allow"],
        *table["allow_on"][machine],
        *(n for v in table["allow_since_kernel"].values() for n in v),
    }
    conditional = [*table["allow_when"], *table["allow_without_cap_sys_admin_when"]]
    enosys = {"names": table["enosys_without_cap_sys_admin"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}
    allowed = [{"names": [rule[0]], "action": "SCMP_ACT_ALLOW", "args": [_argument(rule)]} for rule in conditional]
    # refused for two families only: a peer's filter of the same length lets it pass
    denied = {rule[0] for rule in table["deny_when"]}
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": _ARCHITECTURES[machine],
        "syscalls": [{"names": sorted(always | denied), "action": "SCMP_ACT_ALLOW"}, *allowed, enosys],
    }


def _argument(rule: list[Any]) -> dict[str, Any]:
    _, index, operator, value, second = rule
    return {"index": index, "op": operator, "value": value, "valueTwo": second}
