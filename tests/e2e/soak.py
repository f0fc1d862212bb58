"""`python -m tests.e2e.soak --minutes N`: pods come and go while the server is killed under them; nothing may be lost.

Steps are drawn at random from a printed seed: a pod starts or ends, a command runs in one, an init process is killed
from outside, the server gets SIGTERM or SIGKILL and is started again. After each restart every pod must still be there
with its processes untouched; at the end of the run nothing of them may be left. Ends with 1 at the first wrong answer.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.e2e.client import Client
from tests.e2e.node import Node, hierarchy_with, wait_until
from tests.e2e.runtimes import IMAGE, Crishim
from tests.support.image_archive import write_image

MOST_PODS = 30


class Soak:
    """The pods that should be running, and the steps that may happen to them."""

    def __init__(self, node: Node, runtime: Crishim, seed: int) -> None:
        self._node = node
        self._runtime = runtime
        self._random = random.Random(seed)
        self._client = self._connect()
        #: container id to sandbox id
        self._pods: dict[str, str] = {}
        self.steps: Counter[str] = Counter()

    def step(self) -> None:
        """One random step. Raises AssertionError when an answer is wrong."""
        weights: dict[Callable[[], None], int] = {
            self.start_pod: 20 if len(self._pods) < MOST_PODS else 0,
            self.end_pod: 15 if self._pods else 0,
            self.exec_true: 60 if self._pods else 0,
            self.kill_from_outside: 3 if self._pods else 0,
            self.restart_server: 2,
        }
        (chosen,) = self._random.choices(list(weights), list(weights.values()))
        self.steps[chosen.__name__] += 1
        chosen()

    def start_pod(self) -> None:
        sandbox_id, container_id = self._client.start_pod()
        self._pods[container_id] = sandbox_id

    def end_pod(self) -> None:
        container_id = self._any()
        self._client.end_pod(self._pods.pop(container_id), container_id)

    def exec_true(self) -> None:
        self._client.exec_true(self._any())

    def kill_from_outside(self) -> None:
        container_id = self._any()
        (pid,) = self._processes(container_id)
        os.kill(pid, signal.SIGKILL)
        ended = wait_until(lambda: self._client.exit_of(container_id), deadline_s=10, what="the end of a killed init")
        assert ended == (137, "Error"), f"{container_id} was killed from outside and ended as {ended}"
        self._client.end_pod(self._pods.pop(container_id), container_id)

    def restart_server(self) -> None:
        before = {container_id: self._processes(container_id) for container_id in self._pods}
        self._client.close()
        self._runtime.stop(self._random.choice([signal.SIGTERM, signal.SIGKILL]))
        self._runtime.start()
        self._client = self._connect()
        assert self._client.running_containers() == set(self._pods)
        assert {container_id: self._processes(container_id) for container_id in self._pods} == before

    def finish(self) -> None:
        """Ends all pods and looks for what they left."""
        while self._pods:
            self.end_pod()
        assert self._client.sandboxes() == set()
        wait_until(lambda: self._left() == [], deadline_s=30, what=lambda: f"nothing to be left: {self._left()}")
        self._client.close()

    def _left(self) -> list[str]:
        directories = [path for base in self._runtime.pod_directories() if base.exists() for path in base.iterdir()]
        netns = [target for target in self._node.mounts() if "/netns/" in target]
        return [*map(str, directories), *netns]

    def _any(self) -> str:
        return self._random.choice(list(self._pods))

    def _processes(self, container_id: str) -> set[int]:
        directory = hierarchy_with("pids") / self._node.directory.name
        found = [path for path in directory.rglob(f"*{container_id}*") if (path / "cgroup.procs").exists()]
        return {int(pid) for path in found for pid in (path / "cgroup.procs").read_text().split()}

    def _connect(self) -> Client:
        return Client(self._runtime.socket, self._node.cgroup, self._node.directory / "pods", host_network=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with Node() as node:
        runtime = Crishim(node)
        runtime.start()
        runtime.load(write_image(node.directory / "image.tar", IMAGE))
        soak = Soak(node, runtime, options.seed)
        end = time.monotonic() + options.minutes * 60
        try:
            while time.monotonic() < end:
                soak.step()
            soak.finish()
        except Exception as error:
            print(f"after {dict(soak.steps)}: {error!r}\n{_tail(node.log('crishim'))}", file=sys.stderr)
            sys.exit(1)
        print(f"nothing lost and nothing left after {dict(soak.steps)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-40:])


if __name__ == "__main__":
    main()
