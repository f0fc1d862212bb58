"""The container and its exec under our executor, used as a library."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import replace

from crishim.model.id_mapping import IdMapping
from crishim.model.process import Namespace, NamespaceKind, ProcessSpec
from crishim.process import Container, Process
from tests.support.observer import normal
from tests.support.observer.containers import Observed
from tests.support.observer.oci import COUNT
from tests.support.observer.program import read_observation


def observe(observed: Observed) -> dict[str, dict[str, str]]:
    """What the program says as "init" and as "exec", and what the host sees of it."""
    seen = {}
    spec = observed.spec
    maps = (IdMapping(0, observed.host_id, COUNT),) if observed.host_id else ()
    if maps:
        users = Namespace(NamespaceKind.USER)
        spec = replace(spec, namespaces=(*spec.namespaces, users), uid_mappings=maps, gid_mappings=maps)
    with Container(spec) as container:
        init = 0
        for role in ("init", "exec"):
            process, fd = _start(container, replace(spec.process, init=role == "init"))
            try:
                said = read_observation(fd)
                init = init or process.pid
                seen[role] = said | normal.outside(process.pid, init)
                if role == "exec":
                    process.signal(signal.SIGKILL)
                    process.wait()
            finally:
                os.close(fd)
    return seen


def _start(container: Container, spec: ProcessSpec) -> tuple[Process, int]:
    """The started process, and the descriptor on which it speaks."""
    if spec.terminal:
        near, far = socket.socketpair()
        with near, far:
            process = Process(replace(spec, console_socket=far.fileno()))
            container.start(process)
            _, descriptors, _, _ = socket.recv_fds(near, 64, 1)
        return process, descriptors[0]
    reading, writing = os.pipe()
    try:
        process = Process(spec, stdout=writing, stderr=writing)
        container.start(process)
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return process, reading
