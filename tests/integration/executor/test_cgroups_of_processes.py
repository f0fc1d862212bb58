"""Where a process is in the cgroup trees, what dies together, and how the kernel's OOM kills are told."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from crishim.cgroups import effects
from crishim.errors import StartFailed
from crishim.model.process import Namespace, NamespaceKind
from crishim.model.resources import Resources
from tests.support.container import IDLE, Container, Pod, program, read_line, script, wait_until


def memberships(pid: int) -> set[str]:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return {line.split(":", 2)[2] for line in lines}


def populated(container: Container) -> list[int]:
    return effects.pids(container.pod.node.hierarchy, container.spec.cgroup.path)


def test_init_is_in_its_cgroup_in_every_tree(pod: Pod) -> None:
    container = pod.start(program(*IDLE))
    assert memberships(container.pid) == {container.spec.cgroup.path}


def test_an_exec_is_in_the_containers_cgroup_in_every_tree(pod: Pod) -> None:
    container = pod.start(program(*IDLE))
    exec_ = pod.start_exec(container, program(*IDLE))
    wait_until(lambda: memberships(exec_.pid) == {container.spec.cgroup.path}, "the exec's move")
    exec_.process.send_signal(signal.SIGKILL)
    exec_.wait()


def test_an_exec_leaf_is_below_in_one_tree_alone(pod: Pod) -> None:
    container = pod.start(program(*IDLE))
    exec_ = pod.start_exec(container, script("echo up; exec sleep 600"), leaf=True)
    assert read_line(exec_.stdout) == "up"
    path = container.spec.cgroup.path
    hierarchy = pod.node.hierarchy
    expected = {path + "/exec.0"} if hierarchy.mode == "v2" else {path, path + "/exec.0"}
    assert memberships(exec_.pid) == expected
    assert exec_.pid in effects.pids(hierarchy, path + "/exec.0")
    assert container.pid not in effects.pids(hierarchy, path + "/exec.0")
    exec_.process.send_signal(signal.SIGKILL)
    exec_.wait()


def test_monitors_and_zygote_are_in_their_own_cgroup(pod: Pod) -> None:
    home = f"{pod.node.cgroup}/monitors"
    assert memberships(pod.monitor.pid) == memberships(pod.node.executor.pid) == {home}


def test_the_cgroup_is_gone_with_the_container(pod: Pod) -> None:
    container = pod.start(program(*IDLE))
    container.kill()
    for tree in pod.node.hierarchy.trees():
        assert not os.path.exists(os.fsdecode(tree) + container.spec.cgroup.path)


def test_a_failed_start_leaves_no_cgroup_and_the_same_id_may_start(pod: Pod) -> None:
    spec = pod.spec(program("/no/such"))
    for _ in range(2):
        with pytest.raises(StartFailed):
            pod.start_spec(spec)
    for tree in pod.node.hierarchy.trees():
        assert not os.path.exists(os.fsdecode(tree) + spec.cgroup.path)


def test_a_memory_limit_kills_the_container_and_the_record_says_so(pod: Pod) -> None:
    # a shell that makes its own variable larger and larger: init itself is the victim
    eat = script("x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done")
    container = pod.start(eat, resources=Resources(memory_limit_bytes=16 << 20, memory_swap_limit_bytes=16 << 20))
    record = container.wait()
    assert (record.code, record.signal) == (137, signal.SIGKILL)
    assert record.oom_kills >= 1


def test_an_oom_kill_of_a_child_is_counted_and_the_container_ends_as_it_wants(pod: Pod) -> None:
    eat = script("(x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done); exit 3")
    container = pod.start(eat, resources=Resources(memory_limit_bytes=16 << 20, memory_swap_limit_bytes=16 << 20))
    record = container.wait()
    assert (record.code, record.signal) == (3, None)
    assert record.oom_kills >= 1


def test_without_an_oom_kill_none_is_told(pod: Pod) -> None:
    container = pod.start(program(*IDLE), resources=Resources(memory_limit_bytes=16 << 20))
    assert container.kill().oom_kills == 0


@pytest.mark.parametrize("code", [0, 1, 42, 127, 255])
def test_exit_codes(pod: Pod, code: int) -> None:
    container = pod.start(script(f"exit {code}"))
    record = container.wait()
    assert (record.code, record.signal, record.pid) == (code, None, container.pid)
    ended = pod.exec(pod.start(program(*IDLE)), script(f"exit {code}"))
    assert (ended.code, ended.signal) == (code, None)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_ends_by_signal(pod: Pod, number: signal.Signals) -> None:
    # as init of a PID namespace only SIGKILL from outside would work on a program without handlers
    namespaces = (Namespace(NamespaceKind.MOUNT),)
    container = pod.start(program(*IDLE), namespaces=namespaces)
    exec_ = pod.start_exec(container, script("echo up; exec sleep 600"))
    assert read_line(exec_.stdout) == "up"
    exec_.process.send_signal(number)
    ended = exec_.wait()
    assert (ended.code, ended.signal) == (128 + number, number)
    container.signal(number)
    record = container.wait()
    assert (record.code, record.signal) == (128 + number, number)


def test_times_of_a_record_are_in_order(pod: Pod) -> None:
    before = time.time_ns()
    container = pod.start(program("/bin/sleep", "0.02"))
    record = container.wait()
    assert before < record.started_at_ns == container.started.started_at_ns < record.ended_at_ns < time.time_ns()


DAEMON = "(setsid sh -c 'sh -c \"exec sleep 601\" & exec sleep 602' </dev/null >/dev/null 2>&1 &); "


def test_a_whole_tree_dies_with_init_when_it_has_a_pid_namespace(pod: Pod) -> None:
    container = pod.start(script(DAEMON + "echo up; exec sleep 600"))
    assert read_line(container.stdout) == "up"
    wait_until(lambda: len(populated(container)) >= 3, "the daemons")
    pids = populated(container)
    container.kill()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_a_whole_tree_dies_with_init_in_the_hosts_pid_namespace(pod: Pod) -> None:
    container = pod.start(
        script(DAEMON + "echo up; exec sleep 600"),
        namespaces=(Namespace(NamespaceKind.MOUNT),),
    )
    assert read_line(container.stdout) == "up"
    wait_until(lambda: len(populated(container)) >= 3, "the daemons")
    pids = populated(container)
    container.kill()
    wait_until(lambda: not any(_alive(pid) for pid in pids), "the death of the daemons")
    assert effects.is_empty(pod.node.hierarchy, container.spec.cgroup.path)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_timed_out_exec_dies_with_all_that_it_started_and_nothing_else(pod: Pod) -> None:
    container = pod.start(program(*IDLE))
    exec_ = pod.start_exec(container, script(DAEMON + "echo up; exec sleep 600"), leaf=True)
    assert read_line(exec_.stdout) == "up"
    leaf = container.spec.cgroup.path + "/exec.0"
    hierarchy = pod.node.hierarchy
    wait_until(lambda: len(effects.pids(hierarchy, leaf)) >= 3, "the daemons")
    pids = effects.pids(hierarchy, leaf)
    effects.kill(hierarchy, leaf)
    assert exec_.wait().signal == signal.SIGKILL
    wait_until(lambda: effects.is_empty(hierarchy, leaf), "an empty leaf")
    assert not any(_alive(pid) for pid in pids)
    assert _alive(container.pid)


def test_an_exec_leaf_is_used_again(pod: Pod) -> None:
    container = pod.start(program(*IDLE))
    for _ in range(3):
        assert pod.exec(container, program("/bin/true"), leaf=True).code == 0
    assert effects.is_empty(pod.node.hierarchy, container.spec.cgroup.path + "/exec.0")


def test_an_exec_into_an_ended_container_is_a_sentence(pod: Pod) -> None:
    container = pod.start(program(*IDLE))
    container.kill()
    with pytest.raises((StartFailed, OSError)):
        pod.exec(container, program("/bin/true"))


def test_starts_of_several_pods_at_once(make_pod: Callable[..., Pod]) -> None:
    pods = [make_pod() for _ in range(4)]
    for pod, container in [(pod, pod.submit(program("/bin/true"))) for pod in pods for _ in range(3)]:
        assert container.result(20).pod is pod
    assert [pod.exits[container.id].result(20).code for pod in pods for container in pod.containers] == [0] * 12
