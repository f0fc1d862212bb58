"""Generates `crishim/cri/pb/` from the protocol definitions: `python -m crishim.cri.generate` (`make proto`).

Needs grpcio-tools, a dependency of development only. The definitions are given to protoc under the path of the
package, so that the generated modules import each other by their full names and the descriptor pool sees no
generic file name such as "api.proto".
"""

from __future__ import annotations

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
_DEFINITIONS = (REPOSITORY / "api/cri/v1/api.proto", REPOSITORY / "crishim/cri/control.proto")


def generate(output: Path) -> None:
    """Write the modules below `output`/crishim/cri/pb, which must exist; RuntimeError when protoc refuses."""
    from grpc_tools import protoc  # type: ignore[import-untyped]  # not installed where crishim only runs

    arguments = [
        "protoc",
        *(f"-Icrishim/cri/pb={definition.parent}" for definition in _DEFINITIONS),
        f"--python_out={output}",
        f"--pyi_out={output}",
        f"--grpc_python_out={output}",
        *map(str, _DEFINITIONS),
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc refused the definitions, see above")


if __name__ == "__main__":
    generate(REPOSITORY)
    print("generated", REPOSITORY / "crishim/cri/pb", file=sys.stderr)
