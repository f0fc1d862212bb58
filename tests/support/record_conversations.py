"""`python -m tests.support.record_conversations`: run every scenario and write what is said to tests/wire/vVERSION.

To be run as root for a version that has no files yet, or when a scenario is added; files of a released version stay.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crishim.executor import wire
from crishim.executor.client import PodSpec
from crishim.model.process import LogTarget
from tests.support import conversations
from tests.support.container import IDLE, Container, Node, Pod, make_busybox_root, program, script, wait_until
from tests.support.conversations import DIRECTORY, Conversation, Done, Said, kind_of, translate, unfold
from tests.support.scenarios import children, freeze, thaw

ROLES = {"add": "tests.support.zygote_role:add"}


class Recorder:
    """Writes down what goes through `wire.send` and `wire.receive` of this process."""

    def __init__(self, conversation: Conversation, words: dict[str, str], zygote: Any) -> None:
        self.conversation = conversation
        self._words = words
        self._zygote = zygote
        self._asked = ""

    @contextmanager
    def listening(self) -> Iterator[None]:
        send, receive = wire.send, wire.receive

        def sending(sock: Any, kind: int, seq: int, sandbox_id: bytes, body: Any, fds: Any = (), *rest: Any) -> None:
            self._note("server", self._peer(sock), kind, seq, list(fds), body)
            self._asked = conversations.KINDS[kind]
            send(sock, kind, seq, sandbox_id, body, fds, *rest)

        def receiving(sock: Any) -> Any:
            message = receive(sock)
            if message is not None:
                self._note(self._peer(sock), "server", message.kind, message.seq, message.fds, message.body)
            return message

        wire.send, wire.receive = sending, receiving
        try:
            yield
        finally:
            wire.send, wire.receive = send, receive

    def _peer(self, sock: Any) -> str:
        if sock is self._zygote:
            return "zygote"
        return "role" if self._asked == "RUN_ROLE" else "monitor"

    def _note(self, sender: str, receiver: str, kind: int, seq: int, fds: list[int], body: Any) -> None:
        kinds = tuple(translate(kind_of(fd), self._words) for fd in fds)
        body = translate(unfold(body), self._words)
        self.conversation.events.append(Said(sender, receiver, conversations.KINDS[kind], seq, kinds, body))

    def does(self, act: str) -> None:
        """The server is about to do what is no message."""
        self.conversation.events.append(Done(act))


class Stage:
    """What a scenario plays on."""

    def __init__(self, node: Node, root: Path, home: Path, recorder: Recorder) -> None:
        self.node = node
        self.root = root
        self.home = home
        self.recorder = recorder

    def pod(self, **fields: Any) -> Pod:
        return Pod(self.node, self.root, self.home, "recorded", PodSpec(**fields))

    def kill(self, container: Container) -> None:
        self.recorder.does(f"kill {container.id}")
        container.kill()

    def reconnect(self, pod: Pod) -> None:
        self.node.call(pod.monitor.close)
        self.recorder.does("reconnect")
        adopted = self.node.adopt(pod.name, pod.directory)
        adopted.on_exit = pod._exited
        for each in adopted.containers.values():
            if each.pidfd is not None:
                os.close(each.pidfd)
        pod.monitor = adopted

    def logged(self, pod: Pod, text: str, **changes: Any) -> Container:
        """A container with a log."""
        return pod.start(script(text), log=LogTarget(str(self.home), "log"), **changes)


def pod_comes_and_goes(stage: Stage) -> None:
    pod = stage.pod(hostname="recorded", sysctls={"kernel.shm_rmid_forced": "1"})
    os.close(stage.node.run(pod.monitor.open_netns()))
    os.close(stage.node.run(pod.monitor.open_socket(2, 1, 0)))
    pod.stop()


def container_ends(stage: Stage) -> None:
    pod = stage.pod()
    container = stage.logged(pod, "echo out; echo err >&2; exit 7")
    container.wait()
    stage.node.run(pod.monitor.forget(container.id))
    pod.stop()


def container_is_killed(stage: Stage) -> None:
    pod = stage.pod()
    container = pod.start(program(*IDLE))
    try:
        stage.node.run(pod.monitor.stop())
    except Exception as error:
        assert "still run" in str(error), error
    stage.kill(container)
    pod.stop()


def start_fails(stage: Stage) -> None:
    pod = stage.pod()
    spec = pod.spec(program("/no/such/program"))
    try:
        stage.node.run(pod.monitor.start_container(spec))
    except Exception as error:
        assert "/no/such/program" in str(error), error
    stage.node.run(pod.monitor.cancel_start(spec.id))
    pod.stop()


def exec_runs(stage: Stage) -> None:
    pod = stage.pod()
    container = pod.start(program(*IDLE))
    assert pod.exec(container, script("echo x; exit 3"), leaf=True).code == 3
    stage.kill(container)
    pod.stop()


def attach_and_rotation(stage: Stage) -> None:
    pod = stage.pod()
    container = stage.logged(pod, "exec cat", stdin=True)
    os.close(stage.node.run(pod.monitor.attach(container.id)))
    stage.recorder.does("rotate")
    os.rename(stage.home / "log", stage.home / "log.1")
    stage.node.run(pod.monitor.reopen_log(container.id))
    assert (stage.home / "log").exists()
    stage.kill(container)
    pod.stop()


def next_server_adopts(stage: Stage) -> None:
    pod = stage.pod()
    running = pod.start(program(*IDLE))
    ended = pod.start(script("exit 9"))
    ended.wait()
    stage.reconnect(pod)
    stage.kill(running)
    pod.stop()


def start_ends_at_the_next_server(stage: Stage) -> None:
    pod = stage.pod()
    spec = pod.spec(program(*IDLE))
    monitor = pod.monitor
    stage.recorder.does("freeze")
    freeze(monitor.pid)
    started: list[Any] = []
    try:
        asking = stage.node.submit(monitor.start_container(spec))
        wait_until(lambda: any(_starts(event) for event in stage.recorder.conversation.events), "the request")
    finally:
        stage.recorder.does("thaw after reconnecting")
    stage.node.call(monitor.close)
    assert asking.exception(10) is not None
    pod.exits[spec.id] = _future()

    async def adopt() -> Any:
        adopting = stage.node.executor.adopt_monitor(pod.name, pod.directory)
        thaw(monitor.pid)
        adopted = await adopting
        adopted.on_exit, adopted.on_started = pod._exited, started.append
        return adopted

    pod.monitor = stage.node.run(adopt())
    wait_until(lambda: started, "the container that was started")
    found = started[0]
    stage.recorder.does(f"kill {found.id}")
    os.kill(found.pid, 9)
    pod.exits[spec.id].result(10)
    os.close(found.pidfd)
    pod.stop()


def pod_init_dies(stage: Stage) -> None:
    pod = stage.pod(shared_pid=True)
    (init,) = children(pod.monitor.pid)
    died: list[bool] = []
    pod.monitor.on_pod_init_exited = lambda: died.append(True)
    stage.recorder.does("kill pod init")
    os.kill(init, 9)
    wait_until(lambda: died, "news of the death of the pod's init")
    pod.stop()


def role_answers(stage: Stage) -> None:
    reading, writing = os.pipe()
    assert stage.node.run(stage.node.executor.run_role("add", {"numbers": [1, 2]}, [writing])) == {"sum": 3}
    os.close(reading)
    os.close(writing)


SCENARIOS: tuple[Callable[[Stage], None], ...] = (
    pod_comes_and_goes, container_ends, container_is_killed, start_fails, exec_runs, attach_and_rotation,
    next_server_adopts, start_ends_at_the_next_server, pod_init_dies, role_answers,
)  # fmt: skip


def _starts(event: Said | Done) -> bool:
    return isinstance(event, Said) and event.kind == "START_CONTAINER"


def _future() -> Any:
    from concurrent.futures import Future

    return Future()


def record(scenario: Callable[[Stage], None], home: Path) -> Conversation:
    """What is said in a scenario that is played now."""
    root = home / "root"
    root.mkdir()
    make_busybox_root(root)
    cgroup = f"/crishim-recorder-{os.getpid()}"
    node = Node(cgroup, ROLES)
    try:
        title = scenario.__name__.replace("_", " ")
        conversation = Conversation(title, wire.VERSION, str(node.hierarchy.to_value()["mode"]))
        assert node.executor._connection is not None
        zygote = node.executor._connection._sock
        recorder = Recorder(conversation, {str(home): "{home}", cgroup: "{cgroup}"}, zygote)
        with recorder.listening():
            scenario(Stage(node, root, home, recorder))
        return conversation
    finally:
        node.close()


def main() -> None:
    target = DIRECTORY / f"v{wire.VERSION}"
    target.mkdir(parents=True, exist_ok=True)
    for scenario in SCENARIOS:
        with tempfile.TemporaryDirectory(prefix="crishim-recorder-") as home:
            conversation = record(scenario, Path(home))
        path = target / f"{scenario.__name__}.txt"
        path.write_text(conversation.text())
        print(path.name, len(conversation.events), "events")


if __name__ == "__main__":
    main()
