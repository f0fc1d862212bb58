"""What a library caller is handed of a process: its pty, its pidfd, its descriptors; and what it cannot ask for."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crishim import Container, Process, ProcessSpec, isolated
from crishim.cgroups import effects
from crishim.errors import InvalidSpec, NotFound, StartFailed, Unsupported, WrongState
from crishim.model.id_mapping import IdMapping
from crishim.model.process import CpuAffinity, Namespace, NamespaceKind
from crishim.process import open_engine
from tests.support.container import read_all, read_line, wait_until

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.usefixtures("engine")]

IDLE = ProcessSpec(args=("sleep", "1000"), init=True)


@pytest.fixture
def container(root: Path) -> Iterator[Container]:
    with Container(isolated(root, id=f"handles-{os.getpid()}")) as container:
        yield container


def start_with_socket(container: Container, field: str, spec: ProcessSpec) -> tuple[Process, bytes, int]:
    """The process, and payload and descriptor that came over the socket given as `field`."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = Process(replace(spec, **{field: theirs.fileno()}))  # type: ignore[arg-type]
        container.start(process)
        payload, fds, _, _ = socket.recv_fds(ours, 64, 1)
    return process, payload, fds[0]


@pytest.mark.parametrize("init", [True, False])
def test_a_console_socket_gets_the_master_of_a_terminal(container: Container, init: bool) -> None:
    if not init:
        container.start(Process(IDLE))
    spec = ProcessSpec(
        args=("sh", "-c", "test -t 0 && stty size"), terminal=True, console_width=90, console_height=30, init=init
    )
    process, payload, master = start_with_socket(container, "console_socket", spec)
    assert payload == b"console"
    assert read_line(master) == "30 90\r"
    assert process.wait(20).code == 0
    os.close(master)


@pytest.mark.parametrize(("init", "payload"), [(True, b"standard"), (False, b"setns")])
def test_a_pidfd_socket_gets_a_pidfd_of_the_process(container: Container, init: bool, payload: bytes) -> None:
    if not init:
        container.start(Process(IDLE))
    process, got, pidfd = start_with_socket(container, "pidfd_socket", replace(IDLE, init=init))
    assert got == payload
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)
    assert process.wait(20).signal == signal.SIGKILL


def test_extra_files_are_the_descriptors_from_three_on(container: Container) -> None:
    first, second = os.pipe(), os.pipe()
    script = "echo one >&3; echo two >&4; ls /proc/self/fd | wc -l"
    out = os.pipe()
    init = Process(ProcessSpec(args=("sh", "-c", script), extra_files=(first[1], second[1]), init=True), stdout=out[1])
    container.start(init)
    for _, end in (first, second, out):
        os.close(end)
    assert [read_all(fd) for fd, _ in (first, second)] == [b"one\n", b"two\n"]
    assert read_all(out[0]) == b"6\n", "three, two more, and the directory that ls reads"
    assert init.wait(20).code == 0


def test_what_an_exec_cannot_have_is_refused(container: Container) -> None:
    container.start(Process(IDLE))
    plain = ProcessSpec(args=("true",))
    with pytest.raises(Unsupported, match="extra_files"):
        container.start(Process(replace(plain, extra_files=(0,))))
    with pytest.raises(StartFailed, match=r"sub_cgroup_paths\[''\]: 'below' does not exist"):
        container.start(Process(replace(plain, sub_cgroup_paths={"": "below"})))
    with pytest.raises(InvalidSpec, match="console_socket"):
        container.start(Process(replace(plain, terminal=True)))


def test_an_exec_may_run_below_the_containers_cgroup(container: Container) -> None:
    with pytest.raises(InvalidSpec, match="sub_cgroup_paths: an init process"):
        container.start(Process(replace(IDLE, sub_cgroup_paths={"": "below"})))
    container.start(Process(IDLE))
    hierarchy = open_engine({}).executor.hierarchy
    controller = "" if hierarchy.mode == "v2" else "memory"
    tree = hierarchy.mount if hierarchy.mode == "v2" else hierarchy.controllers["memory"]
    below = os.fsdecode(tree) + container.spec.cgroup.path + "/below"
    os.mkdir(below)
    exec_ = Process(replace(IDLE, init=False, sub_cgroup_paths={controller: "below"}))
    container.start(exec_)
    wait_until(lambda: Path(below, "cgroup.procs").read_text().split() == [str(exec_.pid)], "the exec's move")
    exec_.signal(signal.SIGKILL)
    exec_.wait(20)


def test_methods_need_a_start_and_a_signal_needs_a_process(container: Container) -> None:
    init = Process(IDLE)
    for use in (lambda: init.pid, lambda: init.pidfd, init.wait, lambda: init.signal(0)):
        with pytest.raises(WrongState, match="was not started"):
            use()
    with pytest.raises(WrongState, match="is not running"):
        container.start(Process(replace(IDLE, init=False)))
    container.start(init)
    with pytest.raises(WrongState, match="already has an init"):
        container.start(Process(IDLE))
    with pytest.raises(TimeoutError):
        init.wait(0.01)
    container.signal(signal.SIGKILL)
    assert init.wait(20).code == 128 + signal.SIGKILL
    with pytest.raises(NotFound, match="has ended"):
        init.signal(signal.SIGTERM)


@pytest.mark.parametrize("init", [True, False])
def test_the_hosts_null_device_never_gets_inside(container: Container, init: bool) -> None:
    """Root in a container could change the mode and the owner of the node that every program of the host opens."""
    if not init:
        container.start(Process(IDLE))
    spec = ProcessSpec(args=("stat", "-L", "-c", "%d:%i", "/dev/null", "/proc/self/fd/0"), init=init)
    reading, writing = os.pipe()
    with open("/dev/null") as null:
        process = Process(spec, stdin=null.fileno(), stdout=writing)
        container.start(process)
    os.close(writing)
    inside = read_all(reading).split()
    assert len(set(inside)) == 1 and len(inside) == 2
    assert process.wait(20).code == 0


def test_the_names_of_the_container_are_set(container: Container) -> None:
    container.spec = replace(container.spec, hostname="box", domainname="example.test")
    reading, writing = os.pipe()
    names = ("/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname")
    process = Process(ProcessSpec(args=("cat", *names), init=True), stdout=writing)
    container.start(process)
    os.close(writing)
    assert read_all(reading) == b"box\nexample.test\n"


def test_network_devices_need_a_network_of_the_containers_own(container: Container) -> None:
    kinds = tuple(ns for ns in container.spec.namespaces if ns.kind is not NamespaceKind.NETWORK)
    container.spec = replace(container.spec, net_devices={"nosuchdev": ""})
    with pytest.raises(StartFailed, match=r'net_devices\["nosuchdev"\]: no such device on the host'):
        container.start(Process(IDLE))
    container.spec = replace(container.spec, namespaces=kinds)
    with pytest.raises(InvalidSpec, match="net_devices: the container has the host's network"):
        container.start(Process(IDLE))


def test_a_container_may_have_a_user_namespace_of_its_own(container: Container) -> None:
    maps = (IdMapping(0, 200_000, 65536),)
    users = (*container.spec.namespaces, Namespace(NamespaceKind.USER))
    with pytest.raises(InvalidSpec, match="uid_mappings: a new user namespace needs both"):
        Container(replace(container.spec, namespaces=users, uid_mappings=maps)).start(Process(IDLE))
    with pytest.raises(InvalidSpec, match="uid_mappings: they need a new user namespace"):
        Container(replace(container.spec, uid_mappings=maps, gid_mappings=maps)).start(Process(IDLE))
    with Container(replace(container.spec, namespaces=users, uid_mappings=maps, gid_mappings=maps)) as mapped:
        init = Process(IDLE)
        mapped.start(init)
        reading, writing = os.pipe()
        shell = Process(
            ProcessSpec(args=("sh", "-c", "id -u; stat -c %u /bin; echo again > /dev/stdout")), stdout=writing
        )
        mapped.start(shell)
        os.close(writing)
        assert read_all(reading).split() == [b"0", b"0", b"again"]
        assert "\nUid:\t200000\t200000\t200000\t200000\n" in Path(f"/proc/{init.pid}/status").read_text()


def test_an_exec_that_cannot_run_tells_why_at_its_wait(container: Container) -> None:
    container.start(Process(IDLE))
    lost = Process(ProcessSpec(args=("nosuch",)))
    container.start(lost)
    with pytest.raises(StartFailed, match='exec: "nosuch": executable file not found'):
        lost.wait(20)


def test_the_pipes_of_initialize_io_belong_to_the_ids_given(container: Container) -> None:
    init = Process(ProcessSpec(args=("cat",), init=True))
    io = init.initialize_io(1234, 567)
    assert {(os.fstat(fd).st_uid, os.fstat(fd).st_gid) for fd in (io.stdin, io.stdout, io.stderr)} == {(1234, 567)}
    container.start(init)
    os.write(io.stdin, b"through\n")
    os.close(io.stdin)
    assert (read_all(io.stdout), read_all(io.stderr)) == (b"through\n", b"")
    assert init.wait(20).code == 0


@pytest.mark.parametrize("init", [True, False])
def test_a_log_is_told_of_the_set_up_and_not_seen_by_the_process(container: Container, init: bool) -> None:
    if not init:
        container.start(Process(IDLE))
    ours, theirs = os.pipe()
    out = os.pipe()
    script = "ls /proc/self/fd | wc -l"
    spec = ProcessSpec(args=("sh", "-c", script), log_level="debug", log_fd=theirs, init=init)
    process = Process(spec, stdout=out[1])
    container.start(process)
    for fd in (theirs, out[1]):
        os.close(fd)
    lines = [json.loads(line) for line in read_all(ours).splitlines()]
    assert {line["level"] for line in lines} == {"debug"}
    told = [line["msg"] for line in lines]
    assert told[0] == "set dumpable" and told[-1] == "execute sh"
    assert ("mount filesystem /proc" in told) is init
    assert read_all(out[0]) == b"4\n", "three, and the directory that ls reads"
    assert process.wait(20).code == 0


@pytest.mark.parametrize("init", [True, False])
def test_a_log_is_told_why_a_process_could_not_be_started(container: Container, init: bool) -> None:
    if not init:
        container.start(Process(IDLE))
    ours, theirs = os.pipe()
    process = Process(ProcessSpec(args=("nosuch",), log_level="error", log_fd=theirs, init=init))
    with pytest.raises(StartFailed):
        container.start(process)
        process.wait(20)
    os.close(theirs)
    (line,) = read_all(ours).splitlines()
    assert json.loads(line) == {"level": "error", "msg": 'exec: "nosuch": executable file not found in $PATH'}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
@pytest.mark.parametrize("init", [True, False])
@pytest.mark.parametrize(
    ("affinity", "allowed"), [(CpuAffinity(initial="0", final="1"), "1"), (CpuAffinity(final="0"), "0")]
)
def test_the_final_affinity_is_what_the_process_has(
    container: Container, init: bool, affinity: CpuAffinity, allowed: str
) -> None:
    if not init:
        container.start(Process(IDLE))
    out = os.pipe()
    command = ("grep", "Cpus_allowed_list", "/proc/self/status")
    process = Process(ProcessSpec(args=command, cpu_affinity=affinity, init=init), stdout=out[1])
    container.start(process)
    os.close(out[1])
    assert read_all(out[0]).split()[1].decode() == allowed
    assert process.wait(20).code == 0
    hierarchy = open_engine({}).executor.hierarchy
    assert effects.is_empty(hierarchy, container.spec.cgroup.path) is init


def test_a_process_with_an_initial_affinity_is_in_the_cgroup(container: Container) -> None:
    container.start(Process(IDLE))
    sleeper = Process(ProcessSpec(args=("sleep", "1000"), cpu_affinity=CpuAffinity(initial="0")))
    container.start(sleeper)
    hierarchy = open_engine({}).executor.hierarchy
    wait_until(lambda: sleeper.pid in effects.pids(hierarchy, container.spec.cgroup.path))
    sleeper.signal(signal.SIGKILL)
    sleeper.wait(20)
