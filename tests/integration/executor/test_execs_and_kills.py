"""Execs that differ from their init, kills in every kind of PID namespace, and many starts at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from crishim.cgroups import effects
from crishim.model.process import MountSpec, Namespace, NamespaceKind, User
from tests.support.container import (
    IDLE,
    MOUNTS,
    NAMESPACES,
    Container,
    Pod,
    all_capabilities,
    program,
    read_line,
    script,
    wait_until,
)

DAEMONS = "(setsid sh -c 'sh -c \"exec sleep 601\" & exec sleep 602' </dev/null >/dev/null 2>&1 &); "
WITHOUT_PID = tuple(namespace for namespace in NAMESPACES if namespace.kind is not NamespaceKind.PID)


def inside(container: Container) -> list[int]:
    """Pids of the processes in a container's cgroup that are no zombies."""
    pids = effects.pids(container.pod.node.hierarchy, container.spec.cgroup.path)
    return [pid for pid in pids if _alive(pid)]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


# -- execs


def test_an_exec_has_its_own_user_environment_directory_and_mask(pod: Pod) -> None:
    container = pod.start(program(*IDLE, env=("PATH=/bin", "OF=init"), cwd="/etc", user=User(uid=5, gid=6)))
    who = User(uid=7, gid=8, additional_groups=(8, 9), umask=0o027)
    text = "id; pwd; env | sort; umask; > /tmp/made; stat -c %a:%u:%g /tmp/made"
    show = script(text, env=("OF=exec",), cwd="/tmp", user=who)
    shown = pod.exec(container, show).output
    assert shown.startswith("uid=7 gid=8") and "groups=8,9\n" in shown, shown
    assert "/tmp\n" in shown and "OF=exec\n" in shown and "OF=init" not in shown
    assert shown.splitlines()[-2:] == ["0027", "640:7:8"]


def test_an_exec_without_a_user_is_root_whoever_the_init_is(pod: Pod) -> None:
    container = pod.start(program(*IDLE, user=User(uid=1000, gid=1000)))
    assert pod.exec(container, program("/bin/id", "-u")).output == "0\n"


def test_the_parent_of_an_exec_is_outside_and_the_init_is_not_its(pod: Pod) -> None:
    container = pod.start(program(*IDLE))
    fields = pod.exec(container, program("/bin/cat", "/proc/self/stat")).output.rpartition(")")[2].split()
    assert fields[1] == "0"
    assert pod.exec(container, script("cat /proc/1/comm")).output == "sleep\n"


def test_an_exec_does_not_outlive_its_container(pod: Pod) -> None:
    container = pod.start(program(*IDLE))
    exec_ = pod.start_exec(container, script("trap '' TERM; echo up; sleep 600; sleep 600"))
    assert read_line(exec_.stdout) == "up"
    container.kill()
    assert exec_.wait().signal == signal.SIGKILL


def test_an_exec_sees_what_was_mounted_after_the_start(pod: Pod, tmp_path: Path) -> None:
    """It joins the namespaces of the init as they are now, not the ones that the init was started in."""
    (tmp_path / "content").write_text("here")
    mount = script("mount -o bind /data /tmp && echo mounted; exec sleep 600", capabilities=all_capabilities(pod.node))
    container = pod.start(mount, mounts=(*MOUNTS, MountSpec("/data", source=str(tmp_path))))
    assert read_line(container.stdout) == "mounted"
    assert pod.exec(container, program("/bin/cat", "/tmp/content")).output == "here"


def test_fifty_execs_at_once_are_told_apart(pod: Pod) -> None:
    container = pod.start(program(*IDLE))
    running = [pod.start_exec(container, script(f"echo {number}; exit {number}")) for number in range(50)]
    for number, exec_ in enumerate(running):
        assert read_line(exec_.stdout) == str(number)
        assert exec_.wait().code == number


# -- kills


def test_an_init_without_a_handler_ignores_what_it_may_and_not_a_kill(pod: Pod) -> None:
    """pid_namespaces(7): only SIGKILL and SIGSTOP reach process 1 from outside unless it has a handler."""
    container = pod.start(script("echo up; while :; do read x; sleep 1; done"))
    assert read_line(container.stdout) == "up"
    container.signal(signal.SIGTERM)
    assert pod.exec(container, program("/bin/true")).code == 0
    assert container.kill().signal == signal.SIGKILL


def test_a_stopped_container_can_be_killed(pod: Pod) -> None:
    container = pod.start(script("echo up; exec sleep 600"))
    assert read_line(container.stdout) == "up"
    container.signal(signal.SIGSTOP)
    wait_until(lambda: container.proc("stat").rpartition(")")[2].split()[0] == "T", "a stopped process")
    assert container.kill().signal == signal.SIGKILL


@pytest.mark.parametrize("namespace", ["own", "host", "pod"])
@pytest.mark.parametrize("how", ["kill", "exit"])
def test_nothing_is_left_of_a_container_whose_init_has_ended(
    make_pod: Callable[..., Pod], namespace: str, how: str
) -> None:
    """Its daemons die with it, also where the kernel does not see to that, and nobody else's do."""
    pod = make_pod(shared_pid=namespace == "pod")
    kinds = {"own": NAMESPACES, "host": (Namespace(NamespaceKind.MOUNT),), "pod": WITHOUT_PID}[namespace]
    target = "pod" if namespace == "pod" else None
    neighbour = pod.start(program(*IDLE), namespaces=kinds, pid_target=target)
    text = DAEMONS + "echo up; until [ -e /tmp/end ]; do sleep 0.01; done; exit 7"
    container = pod.start(script(text), namespaces=kinds, pid_target=target)
    assert read_line(container.stdout) == "up"
    wait_until(lambda: len(inside(container)) >= 3, "the daemons")
    pids = inside(container)
    if how == "kill":
        assert container.kill().signal == signal.SIGKILL
    else:
        assert pod.exec(container, program("/bin/touch", "/tmp/end")).code == 0
        assert container.wait().code == 7
    wait_until(lambda: not any(_alive(pid) for pid in pids), "the death of the daemons")
    assert _alive(neighbour.pid)


def test_a_signal_to_an_ended_container_is_no_signal_to_another_process(pod: Pod) -> None:
    container = pod.start(program("/bin/true"))
    container.wait()
    with pytest.raises(ProcessLookupError):
        container.signal(signal.SIGKILL)


# -- many at once


def test_fifty_containers_start_at_once(pod: Pod) -> None:
    began = time.monotonic()
    containers = [start.result(60) for start in [pod.submit(program(*IDLE)) for _ in range(50)]]
    assert time.monotonic() - began < 60
    assert len({container.pid for container in containers}) == 50
    assert all(Path(f"/proc/{container.pid}/comm").read_text() == "sleep\n" for container in containers)
    for container in containers:
        container.signal(signal.SIGKILL)
    assert {container.wait().signal for container in containers} == {signal.SIGKILL}
    assert not any(os.path.exists(f"/proc/{container.pid}") for container in containers)
