"""What happens to pods when a monitor, the zygote or the server dies, and who may talk to a monitor."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from glob import glob
from pathlib import Path

import pytest

from crishim.errors import InvalidSpec, NotFound, StartFailed, TimedOut, Unavailable
from crishim.executor import wire
from crishim.executor.client import ExecSpec, Monitor, PodSpec, read_exit_record
from tests.support.container import IDLE, Node, Pod, program, read_all, read_line, script, wait_until

ROLES = "tests.support.zygote_role"


def alive(pid: int) -> bool:
    """Whether there is a process, zombies included: whose parent forgets them grows the table for ever."""
    return os.path.exists(f"/proc/{pid}")


@pytest.fixture
def own_node(tmp_path: Path) -> Iterator[Node]:
    """An executor that this test may break."""
    roles = {name: f"{ROLES}:{name}" for name in ("loaded_modules", "add", "refuse", "hang", "die")}
    node = Node(f"/crishim-executor-test-{os.getpid()}-own", roles)
    yield node
    node.close()


@pytest.fixture
def own_pod(own_node: Node, busybox_root: Path, tmp_path: Path) -> Iterator[Pod]:
    pod = Pod(own_node, busybox_root, tmp_path, "own", PodSpec())
    yield pod
    pod.stop()


def test_a_killed_monitor_is_told_and_its_containers_die_with_it(own_pod: Pod) -> None:
    container = own_pod.start(script("echo up; exec sleep 600"))
    assert read_line(container.stdout) == "up"
    os.kill(own_pod.monitor.pid, signal.SIGKILL)
    assert own_pod.lost.wait(10)
    wait_until(lambda: not alive(container.pid), "the death and reaping of the container")
    with pytest.raises(Unavailable):
        own_pod.node.run(own_pod.monitor.refresh())


def test_a_monitor_that_cannot_write_an_exit_record_tells_of_the_exit_and_lives_on(own_pod: Pod) -> None:
    (own_pod.directory / "exits").write_text("where the records should go")
    container = own_pod.start(script("exit 7"))
    assert container.wait().code == 7
    assert own_pod.run(program("/bin/echo", "alive")).output == "alive\n"


def test_an_exec_into_a_cgroup_that_is_gone_is_refused_with_a_sentence(own_pod: Pod) -> None:
    container = own_pod.start(program(*IDLE))
    spec = ExecSpec(container.id, container.pidfd, program("/bin/true"), cgroup_path="/crishim-no-such-cgroup")
    with pytest.raises(StartFailed, match="crishim-no-such-cgroup"):
        own_pod.node.run(own_pod.node.executor.exec(spec))


def test_an_exec_whose_caller_goes_away_before_the_answer_is_killed(own_pod: Pod) -> None:
    container = own_pod.start(program(*IDLE))
    spec = ExecSpec(
        container.id, container.pidfd, program("/bin/sleep", "4321"), container.spec.cgroup.path,
        namespaces=container.namespaces(),
    )  # fmt: skip

    async def call_and_leave() -> None:
        call = asyncio.ensure_future(own_pod.node.executor.exec(spec))
        while not own_pod.node.executor._execs:  # the request is on its way
            await asyncio.sleep(0)
        wait_until(lambda: running() != [], "an exec whose answer the loop has not seen")
        call.cancel()
        with suppress(asyncio.CancelledError):
            (await call).close()

    def running() -> list[str]:
        found = []
        for path in glob("/proc/[0-9]*/cmdline"):
            with suppress(OSError):
                found += [path] if b"4321" in Path(path).read_bytes() else []
        return found

    own_pod.node.run(call_and_leave())
    wait_until(lambda: not running(), "the death of the execs that nobody waits for")


def test_a_killed_zygote_is_replaced_and_monitors_live_on(own_node: Node, own_pod: Pod) -> None:
    replaced = threading.Event()
    own_node.executor.on_zygote_lost = replaced.set
    container = own_pod.start(program(*IDLE))
    exec_ = own_pod.start_exec(container, script("echo up; exec sleep 600"))
    assert read_line(exec_.stdout) == "up"
    first = own_node.executor.pid
    os.kill(first, signal.SIGKILL)
    assert replaced.wait(10)
    with pytest.raises(Unavailable, match="the zygote died, and the exec with it"):
        exec_.wait()
    wait_until(lambda: not alive(exec_.pid), "the death of the exec")
    assert own_node.executor.pid != first
    assert own_pod.exec(container, program("/bin/echo", "again")).output == "again\n"
    assert own_pod.run(program("/bin/echo", "more")).output == "more\n"
    assert container.kill().signal == signal.SIGKILL


def test_a_new_server_finds_running_containers_by_pidfd_and_gets_their_end(own_pod: Pod) -> None:
    running = own_pod.start(program(*IDLE))
    own_pod.node.call(own_pod.monitor.close)
    adopted = own_pod.node.adopt(own_pod.name, own_pod.directory)
    own_pod.monitor, adopted.on_exit = adopted, own_pod._exited
    found = adopted.containers[running.id]
    assert (found.pid, found.exit, found.started_at_ns) == (running.pid, None, running.started.started_at_ns)
    assert found.pidfd is not None
    signal.pidfd_send_signal(found.pidfd, signal.SIGKILL)
    os.close(found.pidfd)
    assert running.wait().signal == signal.SIGKILL


def test_an_end_while_no_server_was_there_is_found_later(own_pod: Pod) -> None:
    container = own_pod.start(script("trap 'exit 7' TERM; echo up; while :; do sleep 0.005; done"))
    assert read_line(container.stdout) == "up"
    own_pod.node.call(own_pod.monitor.close)
    container.signal(signal.SIGTERM)
    wait_until(lambda: read_exit_record(own_pod.directory, container.id), "the record")
    adopted = own_pod.node.adopt(own_pod.name, own_pod.directory)
    own_pod.monitor, adopted.on_exit = adopted, own_pod._exited
    found = adopted.containers[container.id]
    assert found.pidfd is None and found.exit is not None
    assert found.exit == read_exit_record(own_pod.directory, container.id)
    assert (found.exit.code, found.exit.signal, found.exit.pid) == (7, None, container.pid)
    own_pod.exits[container.id].set_result(found.exit)


def test_a_forgotten_container_leaves_no_record(pod: Pod) -> None:
    container = pod.start(program("/bin/true"))
    record = container.wait()
    assert read_exit_record(pod.directory, container.id) == record
    pod.node.run(pod.monitor.forget(container.id))
    pod.node.run(pod.monitor.forget("never-there"))
    assert read_exit_record(pod.directory, container.id) is None
    pod.node.run(pod.monitor.refresh())
    assert pod.monitor.containers == {}


def test_a_monitor_does_not_stop_while_a_container_runs(pod: Pod) -> None:
    container = pod.start(program(*IDLE))
    with pytest.raises(StartFailed, match=f"1 containers still run, {container.id} among them"):
        pod.node.run(pod.monitor.stop())
    assert pod.exec(container, program("/bin/true")).code == 0


def test_an_id_cannot_be_started_twice(pod: Pod) -> None:
    container = pod.start(program(*IDLE))
    with pytest.raises(StartFailed, match="is already started"):
        pod.node.run(pod.monitor.start_container(container.spec))
    assert alive(container.pid), "the refusal must not undo the first start"
    assert pod.exec(container, program("/bin/true")).code == 0


def test_a_sandbox_without_monitor_is_not_found(node: Node, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="sandbox gone has no monitor"):
        node.adopt("gone", tmp_path)


def _connect_as(uid: int, directory: Path) -> bytes:
    """What the monitor answers to a thread with this effective uid; credentials belong to a thread in the kernel."""
    place = os.open(directory, os.O_PATH)
    libc = ctypes.CDLL(None, use_errno=True)
    setresuid = {"x86_64": 117, "aarch64": 147}[os.uname().machine]

    def body() -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.settimeout(10)
            assert libc.syscall(setresuid, -1, uid, -1) == 0
            client.connect(f"/proc/self/fd/{place}/monitor.sock")
            try:
                wire.send(client, wire.STATE, 1, b"", {})
                return client.recv(1 << 16)
            except OSError:
                return b""

    try:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(body).result()
    finally:
        os.close(place)


def test_only_our_own_user_may_talk_to_a_monitor(pod: Pod) -> None:
    """The socket is not writable for others; with that out of the way, the peer's credentials are looked at."""
    with pytest.raises(PermissionError):
        _connect_as(65534, pod.directory)
    (pod.directory / "monitor.sock").chmod(0o777)
    assert _connect_as(0, pod.directory)
    assert _connect_as(65534, pod.directory) == b""


def test_garbage_closes_the_connection_and_nothing_else(pod: Pod) -> None:
    container = pod.start(program(*IDLE))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(10)
        place = os.open(pod.directory, os.O_PATH)
        client.connect(f"/proc/self/fd/{place}/monitor.sock")
        os.close(place)
        client.send(b"no message of ours")
        assert client.recv(100) == b""
    pod.node.run(pod.monitor.refresh())
    (entry,) = pod.monitor.containers.values()
    assert entry.pid == container.pid and entry.pidfd is not None
    os.close(entry.pidfd)


def test_a_hostile_request_does_not_end_the_monitor(pod: Pod) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(10)
        place = os.open(pod.directory, os.O_PATH)
        client.connect(f"/proc/self/fd/{place}/monitor.sock")
        os.close(place)
        for body in ({}, {"id": []}, {"id": b"x", "process": 3}, {"id": {"a": 1}}):
            for kind in (wire.START_CONTAINER, wire.FORGET, wire.OPEN_SOCKET, wire.REOPEN_LOG, 999):
                wire.send(client, kind, 5, b"", body)  # type: ignore[arg-type]
                answer = wire.receive(client)
                assert answer is not None and (answer.kind, answer.seq) == (wire.ERROR, 5)
    assert pod.run(program("/bin/true")).code == 0


def test_starts_and_execs_leave_no_descriptor_behind(make_pod: Callable[..., Pod]) -> None:
    pod = make_pod()
    container = pod.start(program(*IDLE))

    def count() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{pod.monitor.pid}/fd"))

    pod.node.run(pod.monitor.forget("nobody"))  # once it answers this, it is done with the start
    before = count()
    for _ in range(30):
        assert pod.exec(container, program("/bin/true")).code == 0
        assert pod.run(program("/bin/true")).code == 0
        ended = pod.containers.pop()
        os.close(ended.pidfd)
        pod.node.run(pod.monitor.forget(ended.id))
    wait_until(lambda: count() == before, "the same number of descriptors as before")


# -- the zygote and its roles --


def test_the_zygote_holds_no_heavy_modules(own_node: Node) -> None:
    answer = own_node.run(own_node.executor.run_role("loaded_modules", {}))
    loaded = answer["modules"]
    assert isinstance(loaded, list) and "crishim.executor.zygote" in loaded
    heavy = {"logging", "threading", "random", "inspect", "asyncio", "dataclasses", "typing", "re", "grpc", "selectors"}
    assert heavy & {*loaded} == set()


def test_zygote_and_monitor_have_one_thread_and_the_sealed_interpreter(pod: Pod) -> None:
    for pid in (pod.node.executor.pid, pod.monitor.pid):
        assert os.listdir(f"/proc/{pid}/task") == [str(pid)]
        assert os.readlink(f"/proc/{pid}/exe").startswith("/memfd:crishim")


def test_a_role_answers_and_gets_its_descriptors(own_node: Node) -> None:
    reading, writing = os.pipe()
    answer = own_node.run(own_node.executor.run_role("add", {"numbers": [1, 2, 3]}, [writing]))
    os.close(writing)
    assert answer == {"sum": 6}
    assert read_all(reading) == b"6"


def test_a_role_that_refuses_dies_or_is_unknown_is_an_error_and_the_zygote_lives(own_node: Node) -> None:
    run_role = own_node.executor.run_role
    with pytest.raises(InvalidSpec, match="the disk is full"):
        own_node.run(run_role("refuse", {}))
    with pytest.raises(Unavailable, match="die died"):
        own_node.run(run_role("die", {}))
    with pytest.raises(InvalidSpec, match="nonsense"):
        own_node.run(run_role("nonsense", {}))
    assert own_node.run(run_role("loaded_modules", {}))


def test_a_role_beyond_its_time_is_killed(own_node: Node) -> None:
    reading, writing = os.pipe()
    silent, keep = os.pipe()
    with pytest.raises(TimedOut, match=r"hang did not end within 0.05 s"):
        own_node.run(own_node.executor.run_role("hang", {}, [writing, silent], timeout_s=0.05))
    os.close(writing)
    assert read_all(reading) == b"", "the writing end in the role is closed by its death"
    os.close(silent)
    os.close(keep)


def test_a_monitor_that_cannot_be_set_up_is_a_sentence_and_leaves_nothing(node: Node, tmp_path: Path) -> None:
    pin = tmp_path / "taken"
    pin.write_text("somebody's")
    with pytest.raises(StartFailed, match="setting the pod up: file exists"):
        node.run(node.executor.start_monitor("x", tmp_path, PodSpec(network=True, netns_path=str(pin))))
    assert pin.read_text() == "somebody's"
    assert not (tmp_path / "monitor.sock").exists()
    with pytest.raises(StartFailed, match="setting the pod up: "):
        node.run(node.executor.start_monitor("x", tmp_path, PodSpec(sysctls={"kernel.no_such": "1"})))
    assert not (tmp_path / "monitor.sock").exists()


def test_a_monitor_hands_out_sockets_and_the_netns_of_its_pod(make_pod: Callable[..., Pod]) -> None:
    pod = make_pod(network=True)
    monitor: Monitor = pod.monitor
    container = pod.start(program(*IDLE))
    netns = pod.node.run(monitor.open_netns())
    assert os.fstat(netns).st_ino == os.stat(f"/proc/{container.pid}/ns/net").st_ino
    os.close(netns)
    with socket.socket(fileno=pod.node.run(monitor.open_socket(socket.AF_INET, socket.SOCK_STREAM, 0))) as listener:
        listener.bind(("127.0.0.1", 4321))
        listener.listen()
        assert ":10E1" in pod.exec(container, program("/bin/cat", "/proc/net/tcp")).output
    assert ":10E1 " not in Path("/proc/net/tcp").read_text()
