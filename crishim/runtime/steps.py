"""The steps of each operation, by name: what is shown while one lasts, and where a test can have the server die.

A step is named after its effect, and `reached` is called right after that effect or commit. With CRISHIM_CRASH_AT set
to a name the server ends there by SIGKILL: recovery has to cope with every one of them.
"""

from __future__ import annotations

import os
import signal

RUN_SANDBOX = (
    "run_sandbox.reserved",
    "run_sandbox.directory",
    "run_sandbox.monitor",
    "run_sandbox.network",
    "run_sandbox.status",
)
STOP_SANDBOX = (
    "stop_sandbox.status",
    "stop_sandbox.killed",
    "stop_sandbox.network",
    "stop_sandbox.monitor",
)
REMOVE_SANDBOX = (
    "remove_sandbox.containers",
    "remove_sandbox.cgroup",
    "remove_sandbox.status",
    "remove_sandbox.directory",
    "remove_sandbox.released",
)
CREATE_CONTAINER = (
    "create_container.reserved",
    "create_container.rootfs",
    "create_container.spec",
    "create_container.status",
)
START_CONTAINER = ("start_container.started", "start_container.status")
STOP_CONTAINER = ("stop_container.noted", "stop_container.signalled", "stop_container.killed")
REMOVE_CONTAINER = (
    "remove_container.killed",
    "remove_container.forgotten",
    "remove_container.rootfs",
    "remove_container.status",
)
UPDATE_CONTAINER = ("update_container.applied", "update_container.status")
EXEC = ("exec.leaf", "exec.started", "exec.ended")
PULL = ("pull.done",)

#: every point at which the server can be made to die
POINTS = (
    *RUN_SANDBOX,
    *CREATE_CONTAINER,
    *START_CONTAINER,
    *UPDATE_CONTAINER,
    *EXEC,
    *STOP_CONTAINER,
    *REMOVE_CONTAINER,
    *STOP_SANDBOX,
    *REMOVE_SANDBOX,
    *PULL,
)

#: what an operation waits for in a stage, when it is more than our own work
WAITS = {
    "run_sandbox.monitor": "the pod's monitor, which makes the namespaces",
    "run_sandbox.network": "the pod network (its plugin, or the kernel)",
    "create_container.rootfs": "the disk of the image store",
    "create_container.spec": "the users and devices of the node and the image",
    "create_container.relabel": "the file systems of the volumes, whose files are labelled",
    "start_container.started": "the pod's monitor, which mounts and executes",
    "stop_container.signalled": "the container, which has its grace period",
    "stop_container.killed": "the kernel: the processes were killed and are not gone yet",
    "stop_sandbox.killed": "the containers, which are being stopped",
    "stop_sandbox.network": "the pod network (its plugin, or the kernel)",
    "stop_sandbox.monitor": "the pod's monitor, which ends",
    "remove_container.killed": "the container, which is being killed",
    "remove_container.forgotten": "the pod's monitor",
    "remove_container.rootfs": "the disk of the container's root",
    "remove_sandbox.containers": "the containers, which are being removed",
    "exec.started": "the zygote, which executes",
    "exec.ended": "the command",
    "pull.done": "the registry",
    "garbage.look": "the kernel and the disks, which are looked at",
    "garbage.free": "what is being freed: processes, networks, disks",
}

_crash_at = os.environ.get("CRISHIM_CRASH_AT")


def reached(point: str) -> None:
    """An effect of an operation is done; `point` is one of POINTS."""
    if point == _crash_at:
        os.kill(os.getpid(), signal.SIGKILL)
