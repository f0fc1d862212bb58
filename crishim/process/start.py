"""What a start adds to the caller's process: defaults, descriptors, and what its sockets are sent."""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from crishim.errors import InvalidSpec, StartFailed, Unsupported
from crishim.executor import wire
from crishim.executor.client import ERROR, ExecProcess, log_level
from crishim.model.process import Capabilities, ContainerSpec, ProcessSpec
from crishim.process.handle import ExitStatus, Process
from crishim.spec.bundle import ROOT, oci_config
from crishim.spec.capabilities import DEFAULT as DEFAULT_CAPABILITIES
from crishim.spec.process import DEFAULT_PATH


def with_defaults(process: ProcessSpec) -> ProcessSpec:
    """PATH and HOME when the caller gave none, and the default capabilities."""
    names = {entry.partition("=")[0] for entry in process.env}
    env = process.env
    if "PATH" not in names:
        env = (*env, f"PATH={DEFAULT_PATH}")
    if "HOME" not in names:
        env = (*env, "HOME=/root" if process.user.uid == 0 else "HOME=/")
    capabilities = process.capabilities
    if capabilities is None:
        keep = DEFAULT_CAPABILITIES
        held = keep if process.user.uid == 0 else frozenset()
        capabilities = Capabilities(bounding=keep, effective=held, permitted=held)
    return replace(process, env=env, capabilities=capabilities)


def check_exec(process: ProcessSpec) -> None:
    """Unsupported for what an exec cannot have: it would be dropped in silence."""
    if process.extra_files:
        raise Unsupported("extra_files: only an init process can have them")
    if process.terminal and process.console_socket is None:
        raise InvalidSpec("terminal: an exec needs a console_socket that takes the pty master")


async def send_handles(process: ProcessSpec, started: ExecProcess) -> None:
    """The pty master and the pidfd to the sockets of the caller, with libcontainer's payloads."""
    if process.terminal and process.console_socket is not None:
        master = await started.console()
        try:
            wire.hand_over(process.console_socket, master, b"console")
        finally:
            os.close(master)
    if process.pidfd_socket is not None:
        wire.hand_over(process.pidfd_socket, started.pidfd, b"setns")


def log_failure(process: ProcessSpec, error: StartFailed) -> None:
    """Tell the process's log why its set-up failed."""
    if process.log_fd is not None and log_level(process) >= ERROR:
        with suppress(OSError):
            os.write(process.log_fd, json.dumps({"level": "error", "msg": str(error)}).encode() + b"\n")


async def exec_status(process: ProcessSpec, started: ExecProcess) -> ExitStatus:
    """How an exec ended; StartFailed when it never reached execve(2)."""
    try:
        ended = await started.wait()
    except StartFailed as error:
        log_failure(process, error)
        raise
    finally:
        started.close()
    return ExitStatus(ended.code, ended.signal)


def given_stdio(process: Process) -> tuple[int | None, ...]:
    """stdin, stdout, stderr as the caller gave them; None is the container's /dev/null.

    The host's /dev/null becomes the container's: who holds a descriptor of it may change its mode and owner.
    """
    if process.spec.terminal:
        return (None, None, None)
    return tuple(None if fd is None or _is_null(fd) else fd for fd in process.stdio)


def _is_null(fd: int) -> bool:
    status = os.fstat(fd)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3)


def make_bundle(directory: Path, spec: ContainerSpec) -> str:
    """A directory below `directory` for a container's hooks: its configuration, and where its root will be mounted."""
    bundle = directory / "bundle"
    (bundle / ROOT).mkdir(parents=True)
    (bundle / "config.json").write_text(json.dumps(oci_config(spec)))
    return str(bundle)
