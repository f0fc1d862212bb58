"""The server is killed by SIGKILL after every commit and every effect of a pod's life, and started again.

The client does what a kubelet does: it repeats the call. At the end of each life nothing is left.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crishim.cri.client import messages as m
from crishim.errors import Unavailable
from crishim.images.demo import build_demo_image
from crishim.runtime import steps
from tests.support.server import NEEDS_SERVER, Server, load_demo_image, pod_config, wait_until

pytestmark = pytest.mark.skipif(not NEEDS_SERVER, reason="a server needs root, nsenter and ip")

#: reached by a pull from a registry, which `test_server_registry.py` runs
ELSEWHERE = {"pull.done"}
#: reached only when a container without a stop signal handler has to be killed
KILLED = "stop_container.killed"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "demo.tar"
    build_demo_image(path)
    return path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "node")
    try:
        yield server
    finally:
        server.close()


class Life:
    """One pod from its run to its removal, on a server that dies once on the way."""

    def __init__(self, server: Server, archive: Path) -> None:
        self.server = server
        self.archive = archive
        self.crashed = False

    def do(self, call: Callable[[], str | None]) -> str:
        """The call's result; when the server dies of it, that of the same call to the next server."""
        try:
            return call() or ""
        except Unavailable:
            assert self.server.wait_ended() == -signal.SIGKILL, self.server.errors.read_text()
            self.crashed = True
            self.server.start()
            return call() or ""

    def run(self) -> None:
        """The whole life."""
        server = self.server
        pod = pod_config("pod", server.logs)
        sandbox = self.do(lambda: server.run_pod_config(pod))
        container = self.do(lambda: server.create(sandbox, pod, "sh", "-c", "echo here; exec sleep 1000"))
        self.do(lambda: self._start(container))
        pid = wait_until(lambda: self._pid_of_sleep(container), "the program")
        update = m.UpdateContainerResourcesRequest(
            container_id=container, linux=m.LinuxContainerResources(memory_limit_in_bytes=96 << 20)
        )
        self.do(lambda: server.client.runtime("UpdateContainerResources", update) and None)
        self.do(lambda: server.sh(container, "echo exec"))
        assert self._pid_of_sleep(container) == pid, "the container did not survive the crash untouched"
        log = (server.logs / "pod/main/0.log").read_text()
        assert log.count(" stdout F here\n") == 1, log
        self.do(lambda: server.stop(container, timeout=1))
        status = server.exited(container)
        assert (status.exit_code, status.reason) == (137, "Error"), status
        self.do(lambda: server.remove(container))
        self.do(lambda: server.stop_pod(sandbox))
        self.do(lambda: server.remove_pod(sandbox))

    def _start(self, container: str) -> None:
        """As a kubelet, which looks at the state before it starts a container again."""
        if self.server.status(container).state == m.CONTAINER_CREATED:
            self.server.start_container(container)

    def _pid_of_sleep(self, container: str) -> int:
        for directory in self.server.container_cgroups(container):
            for pid in (directory / "cgroup.procs").read_text().split():
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep\0"):
                    return int(pid)
        return 0


@pytest.mark.parametrize("point", [point for point in steps.POINTS if point not in ELSEWHERE])
def test_a_pod_lives_through_a_server_killed_at(point: str, server: Server, archive: Path) -> None:
    server.start({"CRISHIM_CRASH_AT": point})
    load_demo_image(server, archive)
    life = Life(server, archive)
    life.run()
    if not life.crashed:  # the last answer may have been on its way when the server died
        assert server.wait_ended() == -signal.SIGKILL, f"the server never came to {point}"
        server.start()
    assert wait_until(lambda: not server.left_behind(), f"an end of {server.left_behind()}")
    assert server.client.runtime("ListPodSandbox", m.ListPodSandboxRequest()).items == []


def test_every_point_of_the_runtime_is_listed() -> None:
    reached = set()
    for path in Path(steps.__file__).parent.glob("*.py"):
        for line in path.read_text().splitlines():
            if 'reached("' in line:
                reached.add(line.split('reached("')[1].split('"')[0])
    assert reached == set(steps.POINTS)
