"""Servers of other versions on the same pods: the next one takes over, this one takes back, a stranger refuses."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import crishim
from crishim.cri.client import messages as m
from crishim.images.demo import build_demo_image
from tests.support.server import NEEDS_SERVER, Server, load_demo_image, wait_until
from tests.support.versions import other_version

pytestmark = pytest.mark.skipif(not NEEDS_SERVER, reason="a server needs root, nsenter and ip")

COUNTER = "trap 'echo end $i; exit 7' TERM; i=0; while :; do echo line $i; i=$((i+1)); sleep 0.05; done"
ECHO = """
import sys
from websockets.sync.client import connect
with connect(sys.argv[1], subprotocols=["v5.channel.k8s.io"]) as attached:
    attached.send(b"\\0" + sys.argv[2].encode() + b"\\n")
    while not (message := attached.recv(timeout=20))[1:]:
        pass
    assert message == b"\\1" + sys.argv[2].encode() + b"\\n", message
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    build_demo_image(tmp_path / "demo.tar")
    server = Server(tmp_path / "node")
    try:
        yield server
    finally:
        server.close()


class Pod:
    """A pod with one container that counts and one that gives back what it is told."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name
        self.sandbox, config = server.run_pod(name)
        self.counter = server.started(self.sandbox, config, "sh", "-c", COUNTER, name="counter")
        self.echo = server.started(self.sandbox, config, "cat", name="echo", stdin=True)
        wait_until(self.lines, "the first line")

    def lines(self) -> list[str]:
        directory = self.server.logs / self.name / "counter"
        text = "".join(path.read_text() for path in sorted(directory.glob("0.log*"), reverse=True))
        return [line.split(" ", 3)[3] for line in text.splitlines()]

    def works(self) -> None:
        """Exec, log, rotation and attach, by whatever server there is now."""
        assert self.server.sh(self.counter, "echo works") == "works\n"
        log = self.server.logs / self.name / "counter/0.log"
        log.rename(log.with_name(f"0.log.{9 - len(list(log.parent.iterdir()))}"))
        request = m.ReopenContainerLogRequest(container_id=self.counter)
        self.server.client.runtime("ReopenContainerLog", request)
        wait_until(log.read_text, "a line after the rotation")
        attach = m.AttachRequest(container_id=self.echo, stdin=True, stdout=True)
        url = self.server.client.runtime("Attach", attach).url.replace("http://", "ws://")
        self.server.in_netns(sys.executable, "-c", ECHO, url, "echo")

    def ends(self) -> None:
        """With its own exit code and every line."""
        self.server.stop(self.counter)
        assert self.server.exited(self.counter).exit_code == 7
        lines = self.lines()
        assert lines[:-1] == [f"line {number}" for number in range(len(lines) - 1)] and lines[-1].startswith("end ")
        self.server.remove_pod(self.sandbox)


def monitor_versions(server: Server) -> dict[str, tuple[str, int]]:
    return {each.pod_sandbox_id: (each.version, each.wire_version) for each in server.client.monitors()}


def server_version(server: Server) -> str:
    return str(server.client.runtime("Version", m.VersionRequest()).runtime_version)


def test_the_next_version_takes_pods_over_and_this_one_takes_them_back(server: Server, tmp_path: Path) -> None:
    following = other_version(tmp_path / "next", "99.0.0", wire=2, accepted=(1, 2))
    this = crishim.__version__
    server.start()
    load_demo_image(server, tmp_path / "demo.tar")
    old = Pod(server, "old")

    server.terminate()
    server.start(package=following)
    assert (server_version(server), monitor_versions(server)) == ("99.0.0", {old.sandbox: (this, 1)})
    old.works()
    new = Pod(server, "new")
    new.works()
    assert monitor_versions(server)[new.sandbox] == ("99.0.0", 2)

    server.kill()
    server.start()
    assert server_version(server) == this
    assert monitor_versions(server) == {old.sandbox: (this, 1), new.sandbox: ("99.0.0", 2)}
    for pod in (old, new):
        pod.works()
        pod.ends()
    wait_until(lambda: not server.left_behind(), "an empty node")


@pytest.mark.parametrize("downgrade", [True, False], ids=["a newer monitor", "an older monitor"])
def test_a_monitor_of_an_unknown_version_is_refused_and_its_pod_lives(
    downgrade: bool, server: Server, tmp_path: Path
) -> None:
    stranger = other_version(tmp_path / "stranger", "99.0.0", wire=9, accepted=(9,))
    owner, other = (stranger, None) if downgrade else (None, stranger)
    server.start(package=owner)
    load_demo_image(server, tmp_path / "demo.tar")
    pod = Pod(server, "stranger")
    (monitor,) = server.monitors()

    server.kill()
    server.start(package=other)
    log = server.errors.read_text()
    known, spoken = (1, 9) if downgrade else (9, 1)
    sentence = f"version {spoken} of the messages is not understood, only {known}; its pod is left as it is"
    assert f"the monitor of sandbox {pod.sandbox} is of another crishim: {sentence}" in log, log
    assert monitor_versions(server) == {}
    assert server.status(pod.counter).state == m.CONTAINER_RUNNING
    count = len(pod.lines())
    wait_until(lambda: len(pod.lines()) > count, "more lines of the pod that is left alone")

    server.kill()
    server.start(package=owner)
    assert server.monitors() == [monitor]
    pod.works()
    pod.ends()


def test_a_pod_whose_monitor_is_refused_can_be_removed(server: Server, tmp_path: Path) -> None:
    stranger = other_version(tmp_path / "stranger", "99.0.0", wire=9, accepted=(9,))
    server.start(package=stranger)
    load_demo_image(server, tmp_path / "demo.tar")
    pod = Pod(server, "stranger")
    server.kill()
    server.start()
    server.stop(pod.counter, timeout=0)
    assert server.exited(pod.counter).exit_code == 137
    server.remove_pod(pod.sandbox)
    wait_until(lambda: not server.left_behind(), "an empty node")
    assert not os.listdir(server.state / "sandboxes")
