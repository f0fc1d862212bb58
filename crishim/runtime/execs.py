"""ExecSync: a further process in a running container, its output and its exit code.

One fork, and no mount. The output comes through pipes of ours, bounded; a deadline kills every process of the exec by
its own leaf of the container's cgroup. Facts: api.proto ExecSync.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

from crishim.cgroups import effects
from crishim.errors import Exhausted, StartFailed, TimedOut, Unavailable, WrongState
from crishim.executor.client import ExecSpec
from crishim.model.events import Sender
from crishim.model.exec import ExecResult
from crishim.runtime.capture import DRAIN_S, Budget, Capture
from crishim.runtime.executor import ExecProcess, Executor
from crishim.runtime.helper import Helper
from crishim.runtime.live import Live, LiveContainer
from crishim.runtime.observer import Observer
from crishim.runtime.operations import Operation, Operations
from crishim.runtime.settings import Settings
from crishim.runtime.steps import reached
from crishim.runtime.verdict import outcome_of
from crishim.spec.container import exec_namespaces
from crishim.spec.process import exec_process
from crishim.store.store import Store

logger = logging.getLogger(__name__)

_MAX_LEAVES = 4096
#: outputs of full length that are kept at one time
_OUTPUTS = 8
_KILL_ROUNDS = 50


class Execs:
    """The use cases of `cri.use_cases.Execs`."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        live: Live,
        executor: Executor,
        operations: Operations,
        helper: Helper,
        observer: Observer,
    ) -> None:
        self._settings = settings
        self._store = store
        self._live = live
        self._executor = executor
        self._operations = operations
        self._helper = helper
        self._observer = observer
        self._count = 0
        #: a kubelet uses 10 KiB of a probe's output: a pod of many probes must not fill the memory of all
        self._budget = Budget(_OUTPUTS * settings.exec_output_bytes)

    async def exec_sync(self, container_id: str, args: tuple[str, ...], timeout_s: int) -> ExecResult:
        """Output and exit code. timeout_s 0 waits for ever; TimedOut after every process of the exec is dead.

        Ends with its caller: nobody could be told the result of a probe whose call is gone.
        """
        container = self._live.running(self._store.resolve_container(container_id).id)
        self._count += 1
        return await self._operations.run(
            ("ExecSync", container.id, self._count),
            lambda operation: self._exec(container, args, timeout_s, operation),
            stage="exec.leaf",
            cancel_with_last_caller=True,
        )

    async def _exec(
        self, container: LiveContainer, args: tuple[str, ...], timeout_s: int, operation: Operation
    ) -> ExecResult:
        began = time.monotonic()
        outcome = "failed"
        capture = Capture(self._settings.exec_output_bytes, self._budget)
        try:
            async with Leaf(self._executor, self._helper, self._observer, container) as leaf:
                reached("exec.leaf")
                operation.enter("exec.started")
                process = await self._start(container, args, leaf, capture)
                try:
                    reached("exec.started")
                    operation.enter("exec.ended")
                    result = await self._finish(container, process, capture, leaf, timeout_s)
                    reached("exec.ended")
                finally:
                    process.close()
            outcome = "ok" if result.code == 0 else "nonzero"
            return result
        except TimedOut:
            outcome = "timeout"
            raise
        except StartFailed as error:
            self._observer.process_start_failed("exec", outcome_of(str(error)))
            raise
        finally:
            capture.close()
            self._observer.exec_ended(container.id, outcome, time.monotonic() - began)

    async def _start(
        self, container: LiveContainer, args: tuple[str, ...], leaf: Leaf, capture: Capture
    ) -> ExecProcess:
        record = self._store.get_container(container.id)
        sandbox = self._store.get_sandbox(record.sandbox_id)
        if container.pidfd < 0:
            raise WrongState(f"container {container.id} is not running")
        spec = ExecSpec(
            container_id=container.id,
            init_pidfd=container.pidfd,
            process=exec_process(container.spec.process, args),
            cgroup_path=container.spec.cgroup.path,
            leaf=leaf.name,
            namespaces=exec_namespaces(record.config, sandbox),
            stdout=capture.stdout,
            stderr=capture.stderr,
            bundle=container.spec.bundle,
            annotations=container.spec.annotations,
            intel_rdt=container.spec.intel_rdt,
        )
        process = await self._executor.exec(spec)
        capture.hand_over()
        return process

    async def _finish(
        self, container: LiveContainer, process: ExecProcess, capture: Capture, leaf: Leaf, timeout_s: int
    ) -> ExecResult:
        try:
            async with asyncio.timeout(timeout_s or None):
                ended = await process.wait()
        except TimeoutError:
            await leaf.kill(Sender.TIMEOUT)
            raise TimedOut(f"the command in container {container.id} did not end within {timeout_s} s") from None
        except Unavailable:
            await leaf.kill(Sender.RUNTIME)
            raise
        self._observer.process_started("exec", {})
        await capture.drain(DRAIN_S)
        return ExecResult(capture.output(1), capture.output(2), ended.code)


class Leaf:
    """A leaf "exec.N" of a container's cgroup for one exec; kept and reused while nothing is in it.

    An exec that is cancelled, also while it starts, ends with all that it has started.
    One that was killed is made anew: since Linux 6.14 clone3 into a cgroup whose cgroup.kill was ever written compares
    the kill counts of two different cgroups (cgroup_css_set_fork, cgroup_post_fork), and the child dies at birth.
    """

    def __init__(self, executor: Executor, helper: Helper, observer: Observer, container: LiveContainer) -> None:
        self._hierarchy = executor.hierarchy
        self._helper = helper
        self._observer = observer
        self._container = container
        self._number = -1
        self.name = ""

    async def __aenter__(self) -> Leaf:
        container = self._container
        for number in range(_MAX_LEAVES):
            if number in container.busy_leaves or not self._renewed(number):
                continue
            if number in container.held_leaves:
                if not effects.is_empty(self._hierarchy, self._path(number)):
                    continue
                container.held_leaves.discard(number)
            break
        else:
            raise Exhausted(f"container {container.id} has {_MAX_LEAVES} execs, or daemons that execs left behind")
        self._number = number
        self.name = f"exec.{number}"
        container.busy_leaves.add(number)
        try:
            effects.exec_leaf(self._hierarchy, container.spec.cgroup.path, number)
        except OSError as error:
            container.busy_leaves.discard(number)
            raise WrongState(f"container {container.id} is not running: {error.strerror}") from error
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is asyncio.CancelledError:
                await self.kill(Sender.RUNTIME)
        finally:
            self._release()

    def _release(self) -> None:
        container = self._container
        container.busy_leaves.discard(self._number)
        with suppress(OSError):
            if not effects.is_empty(self._hierarchy, self._path(self._number)):
                container.held_leaves.add(self._number)  # a daemon of the exec lives on

    def _renewed(self, number: int) -> bool:
        """Whether the leaf may be used: one that was killed has to be gone first."""
        killed = self._container.killed_leaves
        if number in killed and effects.remove(self._hierarchy, self._path(number), tries=1):
            killed.discard(number)
        return number not in killed

    async def kill(self, sender: Sender) -> None:
        """SIGKILL until nothing of the exec is left, daemons included."""
        self._observer.signal_sent("SIGKILL", sender.value)
        self._container.killed_leaves.add(self._number)
        path = self._path(self._number)
        pause = 0.002
        for _ in range(_KILL_ROUNDS):
            try:
                await self._helper.run(effects.kill, self._hierarchy, path)
            except FileNotFoundError:
                return
            except OSError as error:
                logger.warning("the exec leaf %s refuses to be killed: %s", path, error)
            if effects.is_empty(self._hierarchy, path):
                return
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.5)
        logger.error("processes in %s were killed but do not die", path)

    def _path(self, number: int) -> str:
        return f"{self._container.spec.cgroup.path}/exec.{number}"
