"""Real-time policies of an init in a user namespace, and why the kernel refuses one.

Only the host's root may give them, so nobody inside can; a starter cannot take one for its child to inherit either: it
may not fork with SCHED_DEADLINE, and with cgroup v1 the monitors' cgroup gives real-time tasks no time. So a companion
that stayed outside gives it to the child, when that is nearly done: a deadline's budget may be microseconds.
"""

from __future__ import annotations

import errno
import os

from crishim.executor import sentences
from crishim.executor.companion import Companion
from crishim.executor.prepare import StepFailed
from crishim.linux import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crishim.executor.plan import Step
    from crishim.executor.wire import Message

_FIFO, _RR = 1, 2


def make_companion(step: Step, task_files: list[bytes]) -> Companion:
    """A companion that takes the step "set_scheduler" for the process whose pid it is asked with (as its number)."""

    def work(message: Message) -> None:
        try:
            process.sched_setattr(*step[1:], pid=message.seq)  # type: ignore[arg-type]
        except OSError as error:
            code = error.errno or 0
            raise StepFailed(sentences.describe(step, code, b"") + cause(step, code, task_files)) from None

    return Companion(work, {})


def cause(step: Step, code: int, task_files: list[bytes]) -> str:
    """Why a policy may have been refused, to be put behind the sentence; "" when it was something else.

    task_files: of the container's cgroup in the trees of v1.
    """
    if step[0] != "set_scheduler" or code != errno.EPERM or step[1] not in (_FIFO, _RR):
        return ""
    for file in task_files:
        directory = os.path.dirname(file)
        try:
            fd = os.open(directory + b"/cpu.rt_runtime_us", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # another controller's
            continue
        try:
            if os.read(fd, 32).strip() == b"0":
                where = directory.decode("utf-8", "replace")
                return f" (cpu.rt_runtime_us of the cgroup {where} is 0, so it has no time for real-time tasks)"
        finally:
            os.close(fd)
    return ""
