"""Runs one plugin: a program of the search path that reads JSON from stdin and answers on stdout.

The three streams are memory files, not pipes: a daemon that a plugin leaves behind with its stdout cannot make us wait,
and a plugin that does not read cannot block us. At the deadline the plugin's process group is killed:
the plugin and what it started, but for those that made a group of their own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from crishim.errors import Unavailable
from crishim.network.cni.result import describe_failure

logger = logging.getLogger(__name__)

_MOST_BYTES = 4 << 20
#: from SIGKILL to the end of a process, unless a system call of it cannot be interrupted
_REAP_S = 5.0


def find_plugin(name: str, directories: Sequence[Path]) -> Path:
    """The first program of that name; Unavailable names the directories."""
    for directory in directories:
        path = directory / name
        if path.is_file() and os.access(path, os.X_OK):
            return path
    raise Unavailable(f"CNI plugin {name!r} is not in {', '.join(map(str, directories))}")


async def run_plugin(path: Path, environment: Mapping[str, str], request: bytes) -> bytes:
    """What it wrote on stdout. Unavailable with its own words when it fails. The caller's timeout ends it."""
    with (
        _memory_file("answer") as output,
        _memory_file("diagnostics") as diagnostics,
        _memory_file("request") as input_,
    ):
        os.write(input_, request)
        os.lseek(input_, 0, os.SEEK_SET)
        try:
            process = await asyncio.create_subprocess_exec(
                path,
                stdin=input_,
                stdout=output,
                stderr=diagnostics,
                env={**os.environ, **environment},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise Unavailable(f"CNI plugin {path} cannot be run: {error.strerror}") from error
        try:
            code = await process.wait()
        except BaseException:
            await _kill(process, path)
            raise
        answer = os.pread(output, _MOST_BYTES, 0)
        if code != 0:
            said = describe_failure(answer, os.pread(diagnostics, _MOST_BYTES, 0), code)
            raise Unavailable(f"CNI plugin {path.name!r} refused {environment['CNI_COMMAND']}: {said}")
        return answer


async def _kill(process: asyncio.subprocess.Process, path: Path) -> None:
    """The plugin and its group. One that hangs in the kernel dies when that lets it; nobody waits for it longer."""
    if process.returncode is not None:
        return  # reaped, so the number may be that of somebody else
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        async with asyncio.timeout(_REAP_S):
            await process.wait()
    except TimeoutError:
        logger.error("CNI plugin %s, process %d, did not die of SIGKILL within %g s", path, process.pid, _REAP_S)


@contextmanager
def _memory_file(name: str) -> Iterator[int]:
    descriptor = os.memfd_create(f"cni-{name}", os.MFD_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
