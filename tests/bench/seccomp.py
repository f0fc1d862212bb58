"""The system calls that our RuntimeDefault allows, for a profile of the peers that filters as much as ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import crishim.spec


def allowed_syscalls() -> list[str]:
    """Names of the calls that are allowed whatever their arguments."""
    path = Path(crishim.spec.__file__).with_name("seccomp-default.json")
    table: dict[str, Any] = json.loads(path.read_text())
    return sorted(table["allow"])
