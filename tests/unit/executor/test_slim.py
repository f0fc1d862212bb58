"""What the zygote loads: every module costs each monitor memory, and some of them install fork hooks or threads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
HEAVY = {
    *("logging", "threading", "random", "inspect", "asyncio", "dataclasses", "typing", "re", "selectors"),
    *("tempfile", "subprocess", "socket", "hashlib", "traceback", "weakref", "json", "grpc"),
}


def test_the_zygote_loads_nothing_heavy() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import crishim.executor.zygote; "
        "loaded = sorted(sys.modules); import json; print(json.dumps(loaded))"
    )
    shown = subprocess.run([sys.executable, "-I", "-S", "-E", "-c", code], capture_output=True, check=True)
    assert HEAVY & set(json.loads(shown.stdout)) == set()
