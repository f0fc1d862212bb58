"""A container's seccomp listener as the executor's processes see it (part of the executor's door)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from crishim.errors import InvalidSpec
from crishim.model.hook import OCI_VERSION
from crishim.model.process import ProcessSpec

#: seccomp(2)
_FLAGS = {
    "SECCOMP_FILTER_FLAG_LOG": 2, "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4, "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 32,
}  # fmt: skip
NEW_LISTENER = 8
WAIT_KILLABLE_RECV = 32
#: how long a listener may take to accept, and to take what it is sent
TAKE_S = 10
#: how long the calls between the filter and execve(2) may wait for their answers, as long as a hook may run
SET_UP_S = 60


def seccomp_flags(process: ProcessSpec) -> int:
    """Flags that the filter is loaded with, 0 without one. InvalidSpec names the field at fault."""
    mask = 0
    for flag in process.seccomp_flags:
        if flag not in _FLAGS:
            raise InvalidSpec(f"seccomp_flags: {flag!r} is not a flag of a filter")
        mask |= _FLAGS[flag]
    listener = process.seccomp_listener
    if process.seccomp is None:
        if mask or listener is not None:
            raise InvalidSpec("seccomp_flags and seccomp_listener: there is no filter")
        return 0
    if listener is None:
        return mask & ~WAIT_KILLABLE_RECV  # of who waits for a listener
    if listener.fault():
        raise InvalidSpec(f"seccomp_listener.path: {listener.path!r} {listener.fault()}")
    return mask | NEW_LISTENER


def listener_value(
    process: ProcessSpec, container_id: str, bundle: str, annotations: Mapping[str, str]
) -> dict[str, object] | None:
    """Of `executor.listener`; None without a listener. What is told about the container, but its pids and status."""
    listener = process.seccomp_listener
    if listener is None:
        return None
    state = {"ociVersion": OCI_VERSION, "id": container_id, "bundle": bundle, "annotations": dict(annotations)}
    told = {"ociVersion": OCI_VERSION, "fds": ["seccompFd"], "metadata": listener.metadata, "state": state}
    # cut after the annotations: pids are known when the process is there
    head = json.dumps(told, separators=(",", ":")).encode("ascii")[:-2]
    return {"path": os.fsencode(listener.path), "head": head, "take_s": TAKE_S, "limit_s": SET_UP_S}
