"""Runs one plugin: a program of the search path that reads JSON from stdin and answers on stdout.

The three streams are memory files, not pipes: a daemon that a plugin leaves behind with its stdout cannot make us wait,
and a plugin that does not read cannot block us. At the deadline the plugin's whole session is killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from crishim.errors import Unavailable
from crishim.network.cni.result import describe_failure

_MOST_BYTES = 4 << 20


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
            _kill_session(process.pid)
            await process.wait()
            raise
        answer = os.pread(output, _MOST_BYTES, 0)
        if code != 0:
            said = describe_failure(answer, os.pread(diagnostics, _MOST_BYTES, 0), code)
            raise Unavailable(f"CNI plugin {path.name!r} refused {environment['CNI_COMMAND']}: {said}")
        return answer


def _kill_session(leader: int) -> None:
    # not reaped yet, so the number is still its own
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        pass


@contextmanager
def _memory_file(name: str) -> Iterator[int]:
    descriptor = os.memfd_create(f"cni-{name}", os.MFD_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
