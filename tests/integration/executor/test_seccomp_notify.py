"""Filters that leave calls to a listener: it gets the descriptor, its answers count, and nothing waits for ever."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crishim.errors import StartFailed
from crishim.executor import listener_values
from crishim.model.hook import OCI_VERSION, Hook, Hooks
from crishim.model.id_mapping import IdMapping
from crishim.model.process import ProcessSpec
from crishim.spec.seccomp import compile_oci
from tests.support.container import (
    IDLE,
    Container,
    Exec,
    Pod,
    all_capabilities,
    program,
    read_all,
    read_line,
    script,
    wait_until,
)
from tests.support.seccomp_agent import CONTINUE, Agent, Answer, Call

MKDIR = ("mkdir", "mkdirat")
#: what a process needs to come to life, its set-up and its libraries
VITAL = ("read", "close", "openat", "execve", "mmap", "futex", "brk", "chdir", "prctl", "setresuid", "capset", "getcwd")


def filtered(process: ProcessSpec, path: str, names: tuple[str, ...] = MKDIR, **profile: Any) -> ProcessSpec:
    """The process under a filter that leaves the calls named to the listener at `path`."""
    entry = {"names": names, "action": "SCMP_ACT_NOTIFY"}
    listed = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [entry], "listenerPath": path, **profile}
    found = compile_oci(json.loads(json.dumps(listed)))
    return replace(process, seccomp=found.program, seccomp_flags=found.flags, seccomp_listener=found.listener)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "agent.sock")


@pytest.fixture
def make_agent(path: str) -> Iterator[Callable[..., Agent]]:
    agents: list[Agent] = []

    def make(answer: Answer, where: str = path) -> Agent:
        agents.append(Agent(where, answer))
        return agents[-1]

    yield make
    for agent in agents:
        agent.close()


def run_as(pod: Pod, kind: str, process: ProcessSpec) -> tuple[str, int]:
    """Output and code of the process as an init or as an exec."""
    ended = pod.run(process) if kind == "init" else pod.exec(pod.start(program(*IDLE)), process)
    return ended.output, ended.code


both_kinds = pytest.mark.parametrize("kind", ["init", "exec"])
both_modes = pytest.mark.parametrize("nnp", [True, False])


@both_kinds
@both_modes
def test_the_listeners_answer_is_what_the_call_gives(
    pod: Pod, make_agent: Callable[..., Agent], path: str, kind: str, nnp: bool
) -> None:
    agent = make_agent(lambda call: -errno.EDQUOT)
    spec = filtered(script("mkdir /tmp/x; echo $?", no_new_privileges=nnp), path)
    output, _ = run_as(pod, kind, spec)
    assert "quota exceeded" in output.lower() and output.endswith("1\n")
    assert agent.calls.get(timeout=20).name in MKDIR


def test_a_call_may_be_said_to_be_done_or_be_made_by_the_kernel(
    pod: Pod, make_agent: Callable[..., Agent], path: str
) -> None:
    agent = make_agent(lambda call: 0)
    text = "mkdir /tmp/x && ls /tmp | wc -l"
    assert run_as(pod, "init", filtered(script(text), path))[0] == "0\n"
    agent.answer = lambda call: CONTINUE
    assert run_as(pod, "init", filtered(script(text), path))[0] == "1\n"


@both_kinds
@both_modes
def test_every_call_of_the_set_up_and_of_the_libraries_may_be_the_listeners(
    pod: Pod, make_agent: Callable[..., Agent], path: str, kind: str, nnp: bool
) -> None:
    agent = make_agent(lambda call: CONTINUE)
    spec = filtered(script("echo alive; cat /etc/passwd", no_new_privileges=nnp), path, VITAL)
    output, code = run_as(pod, kind, spec)
    assert output.startswith("alive\nroot:") and code == 0
    seen = {agent.calls.get().name for _ in range(agent.calls.qsize())}
    assert {"read", "execve"} <= seen
    assert ("setresuid" in seen) is not nnp, "without no_new_privs the filter is loaded before the user is changed"


def test_send_and_connect_may_be_forbidden_to_the_process(
    pod: Pod, make_agent: Callable[..., Agent], path: str
) -> None:
    """The descriptor is fetched from the process, and sent by another."""
    make_agent(lambda call: 0)
    denied = {"names": ["socket", "connect", "sendmsg", "sendto"], "action": "SCMP_ACT_KILL_PROCESS"}
    notified = {"names": MKDIR, "action": "SCMP_ACT_NOTIFY"}
    spec = filtered(script("mkdir /tmp/x && echo done"), path, syscalls=[denied, notified])
    assert run_as(pod, "init", spec) == ("done\n", 0)
    assert run_as(pod, "exec", spec) == ("done\n", 0)


def test_the_listener_is_told_whose_calls_they_are(pod: Pod, make_agent: Callable[..., Agent], path: str) -> None:
    agent = make_agent(lambda call: CONTINUE)
    spec = filtered(script("read x"), path, listenerMetadata="for all")
    annotations = {"example.com/a": "b"}
    container = pod.start(spec, annotations=annotations, bundle="/the/bundle")
    state = {
        "ociVersion": OCI_VERSION,
        "id": container.id,
        "bundle": "/the/bundle",
        "annotations": annotations,
        "status": "creating",
        "pid": container.pid,
    }
    told = {"ociVersion": OCI_VERSION, "fds": ["seccompFd"], "metadata": "for all", "pid": container.pid, "received": 1}
    assert agent.states.get(timeout=20) == {**told, "state": state}
    container = pod.start(program(*IDLE))
    exec_ = pod.start_exec(container, spec)
    got = agent.states.get(timeout=20)
    assert (got["pid"], got["state"]["pid"], got["state"]["status"]) == (exec_.pid, container.pid, "running")
    assert got["state"]["id"] == container.id
    exec_.process.send_signal(signal.SIGKILL)
    exec_.wait()


def holders(pids: list[int]) -> list[str]:
    """Descriptors of listeners that the processes have."""
    found = []
    for pid in pids:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            try:
                found.append(f"{pid}: {os.readlink(entry.path)}")
            except FileNotFoundError:
                continue
    return [each for each in found if "seccomp" in each]


def test_nobody_but_the_listener_keeps_the_descriptor(pod: Pod, make_agent: Callable[..., Agent], path: str) -> None:
    agent = make_agent(lambda call: CONTINUE)
    container = pod.start(filtered(program(*IDLE), path))
    exec_ = pod.start_exec(container, filtered(program(*IDLE), path))
    for _ in range(2):
        agent.states.get(timeout=20)
    assert holders([pod.monitor.pid, pod.node.executor.pid, container.pid, exec_.pid]) == []
    assert len(holders([os.getpid()])) == 2, "the agent's"
    exec_.process.send_signal(signal.SIGKILL)
    exec_.wait()


@both_kinds
def test_without_its_listener_a_call_is_not_there_and_the_process_goes_on(pod: Pod, path: str, kind: str) -> None:
    container = pod.start(program(*IDLE))
    started: Container | Exec
    spec = filtered(script("echo up; until test -e /tmp/go; do sleep 0.02; done; mkdir /tmp/x"), path)
    with Agent(path, lambda call: CONTINUE) as agent:
        if kind == "init":
            container = started = pod.start(spec)
        else:
            started = pod.start_exec(container, spec)
        assert read_line(started.stdout) == "up"
        agent.states.get(timeout=20)
    assert pod.exec(container, script("echo > /tmp/go")).code == 0
    stdout, started.stdout = started.stdout, -1
    assert "function not implemented" in read_all(stdout).decode().lower()


def test_an_agent_that_dies_during_the_set_up_hangs_nothing(pod: Pod, path: str) -> None:
    """It has taken the descriptor, and ends instead of answering: execve is not there any more."""
    agent = Agent(path, lambda call: None)
    start = pod.node.submit(
        pod.monitor.start_container(spec := pod.spec(filtered(program("/bin/true"), path, ("execve",))))
    )
    assert agent.calls.get(timeout=20).name == "execve"
    agent.close()
    with pytest.raises(StartFailed, match='exec: "/bin/true": function not implemented'):
        start.result(20)
    assert not os.path.exists(os.fsdecode(pod.node.hierarchy.trees()[0]) + spec.cgroup.path)


@both_kinds
def test_a_listener_that_never_answers_is_given_up(
    pod: Pod, make_agent: Callable[..., Agent], path: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_values, "SET_UP_S", 1)
    agent = make_agent(lambda call: None)
    with pytest.raises(StartFailed, match=f'listenerPath "{path}": the listener left a call of the set-up without'):
        run_as(pod, kind, filtered(program("/bin/true"), path, ("execve",)))
    waiting = agent.calls.get(timeout=20)
    wait_until(lambda: not waiting.is_waiting(), "the end of the process that waited")


@both_kinds
def test_a_listener_that_never_reads_is_given_up(
    pod: Pod, path: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_values, "SET_UP_S", 1)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(path)
        deaf.listen(5)
        with pytest.raises(StartFailed, match="the listener left a call of the set-up without answer for 1 s"):
            run_as(pod, kind, filtered(program("/bin/true"), path, ("execve",)))


@both_kinds
def test_a_listener_whose_queue_is_full_is_given_up(
    pod: Pod, path: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_values, "TAKE_S", 1)
    with socket.socket(socket.AF_UNIX) as deaf, socket.socket(socket.AF_UNIX) as other:
        deaf.bind(path)
        deaf.listen(0)
        other.connect(path)
        with pytest.raises(StartFailed, match=f'listenerPath "{path}": the listener did not take it within 1 s'):
            run_as(pod, kind, filtered(program("/bin/true"), path))


def test_a_message_larger_than_a_sockets_buffer_arrives_whole(
    pod: Pod, make_agent: Callable[..., Agent], path: str
) -> None:
    agent = make_agent(lambda call: CONTINUE)
    pod.start(filtered(program(*IDLE), path), annotations={"large": "x" * 1_000_000})
    assert len(agent.states.get(timeout=20)["state"]["annotations"]["large"]) == 1_000_000


@both_kinds
@both_modes
def test_a_listener_that_is_not_there_is_named(pod: Pod, path: str, kind: str, nnp: bool) -> None:
    def refused(where: str) -> str:
        with pytest.raises(StartFailed) as error:
            run_as(pod, kind, filtered(program("/bin/true", no_new_privileges=nnp), where))
        return str(error.value)

    assert refused(path) == f'seccomp listenerPath "{path}": no such file or directory'
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    assert refused(path) == f'seccomp listenerPath "{path}": connection refused'
    assert refused("@nobody-is-here") == 'seccomp listenerPath "@nobody-is-here": connection refused'
    assert refused("/etc/passwd").startswith('seccomp listenerPath "/etc/passwd": ')


@both_kinds
def test_an_abstract_socket_is_that_of_the_host(
    make_pod: Callable[..., Pod], make_agent: Callable[..., Agent], kind: str
) -> None:
    """Also for a pod with a network of its own, in which a container could have taken the name."""
    name = f"@crishim-agent-{os.getpid()}-{kind}"
    agent = make_agent(lambda call: 0, name)
    pod = make_pod(network=True)
    assert run_as(pod, kind, filtered(script("mkdir /tmp/x && echo done"), name)) == ("done\n", 0)
    assert agent.states.get(timeout=20)["received"] == 1


@both_kinds
def test_a_pod_with_users_of_its_own_has_listeners_too(
    make_pod: Callable[..., Pod], make_agent: Callable[..., Agent], path: str, kind: str
) -> None:
    agent = make_agent(lambda call: 0)
    ids = (IdMapping(0, 300_000, 65536),)
    pod = make_pod(network=True, uid_mappings=ids, gid_mappings=ids)
    assert run_as(pod, kind, filtered(script("mkdir /tmp/x && echo done"), path)) == ("done\n", 0)
    assert agent.states.get(timeout=20)["received"] == 1


def test_a_terminal_and_a_listener_go_together(pod: Pod, make_agent: Callable[..., Agent], path: str) -> None:
    make_agent(lambda call: 0)
    container = pod.start(program(*IDLE))
    exec_ = pod.start_exec(container, filtered(script("mkdir /tmp/x && test -t 1 && echo done", terminal=True), path))
    master = pod.node.run(exec_.process.console())
    assert read_line(master) == "done\r"
    assert exec_.wait().code == 0
    os.close(master)


def test_a_hook_inside_is_under_the_listener_as_well(
    pod: Pod, make_agent: Callable[..., Agent], path: str, tmp_path: Path
) -> None:
    agent = make_agent(lambda call: -errno.EDQUOT)
    (tmp_path / "bundle/rootfs").mkdir(parents=True)
    hooks = Hooks(start_container=(Hook("/bin/sh", ("sh", "-c", "mkdir /tmp/x || echo none > /tmp/told")),))
    container = pod.start(filtered(program(*IDLE), path), hooks=hooks, bundle=str(tmp_path / "bundle"))
    assert pod.exec(container, script("cat /tmp/told")).output == "none\n"
    states = [agent.states.get(timeout=20) for _ in range(2)]
    assert [state["state"]["pid"] for state in states] == [container.pid] * 2
    assert states[0]["pid"] != container.pid and states[1]["pid"] == container.pid


def first_wait(pod: Pod, agent: Agent, path: str, *flags: str) -> Call:
    """A chdir of a shell, left without answer, while the shell has got a signal that it wants to handle."""
    text = "trap 'echo caught' TERM; echo up; cd /tmp; echo moved"
    container = pod.start(filtered(script(text), path, ("chdir",), flags=flags))
    assert read_line(container.stdout) == "up"
    call = agent.calls.get(timeout=20)
    container.signal(signal.SIGTERM)
    return call


def test_a_signal_takes_a_call_away_from_its_listener(pod: Pod, make_agent: Callable[..., Agent], path: str) -> None:
    call = first_wait(pod, make_agent(lambda call: None), path)
    wait_until(lambda: not call.is_waiting(), "the signal")


def test_a_call_may_be_one_that_only_a_fatal_signal_takes_away(
    pod: Pod, make_agent: Callable[..., Agent], path: str
) -> None:
    call = first_wait(pod, make_agent(lambda call: None), path, "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV")
    pending = 1 << (signal.SIGTERM - 1)

    def is_pending() -> bool:
        lines = dict(line.split(":\t") for line in pod.containers[0].proc("status").splitlines() if ":\t" in line)
        return bool(int(lines["ShdPnd"], 16) & pending)

    wait_until(is_pending, "the signal")
    assert call.is_waiting()
    pod.containers[0].kill()
    wait_until(lambda: not call.is_waiting(), "the kill")


def test_a_filter_may_be_logged_and_need_no_mitigation(pod: Pod, path: str) -> None:
    flags = ("SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV")
    plain = filtered(program("/bin/true"), path, syscalls=[], flags=flags)
    assert plain.seccomp_listener is None
    assert run_as(pod, "init", plain)[1] == run_as(pod, "exec", plain)[1] == 0


def test_privileges_stay_what_they_were(pod: Pod, make_agent: Callable[..., Agent], path: str) -> None:
    make_agent(lambda call: CONTINUE)
    text = "grep -E 'Seccomp:|NoNewPrivs|CapEff' /proc/self/status"
    for nnp in (True, False):
        with_all = script(text, no_new_privileges=nnp, capabilities=all_capabilities(pod.node))
        told = run_as(pod, "init", filtered(with_all, path))[0].splitlines()
        assert {f"NoNewPrivs:\t{int(nnp)}", "Seccomp:\t2"} <= {*told}
