"""Roles of `crishim.images` in a process of their own, for tests that have no zygote."""

from __future__ import annotations

import ast
import asyncio
import os
import sys
from typing import Any

_CHILD = """
import ast, sys
sys.path[:] = ast.literal_eval(sys.argv[1])
from crishim.images import parents, roles, volumes
request, descriptors, name = ast.literal_eval(sys.stdin.read())
sys.stdout.write(repr((vars(roles) | vars(volumes) | vars(parents))[name](request, descriptors)))
"""


class ForkUnpacker:
    """An `Unpacker` that starts an interpreter for each layer, as isolated from the environment as the zygote is."""

    async def unpack(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        return await run_role("unpack", request, fds)

    async def adopt_parents(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        return await run_role("adopt_parents", request, fds)


async def run_role(name: str, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
    """The reply of a role that runs in a child, which is killed when the call is cancelled."""
    path = [entry for entry in sys.path if entry]
    path.insert(0, os.getcwd())
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-S",
        "-E",
        "-c",
        _CHILD,
        repr(path),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        pass_fds=fds,
    )
    try:
        reply, _ = await child.communicate(repr((request, fds, name)).encode())
    except asyncio.CancelledError:
        child.kill()
        await child.wait()
        raise
    assert child.returncode == 0
    answer: dict[str, Any] = ast.literal_eval(reply.decode())
    return answer
