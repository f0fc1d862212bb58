"""Which namespaces a process is in, and what is set in them; /proc/PID/ns is compared by inode."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from crishim.errors import InvalidSpec, StartFailed
from crishim.model.process import ClockOffset, Namespace, NamespaceKind
from tests.integration.conftest import Run
from tests.support.container import IDLE, NAMESPACES, Container, Pod, program, script, wait_until

KINDS = ("mnt", "pid", "net", "ipc", "uts", "cgroup", "user", "time")
PRIVATE = frozenset({"mnt", "pid", "cgroup"})


def namespaces(pid: int | str) -> dict[str, str]:
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in KINDS}


def own(container: Container) -> set[str]:
    """The kinds that a container does not share with the host."""
    host = namespaces("self")
    return {kind for kind, inode in namespaces(container.pid).items() if inode != host[kind]}


def test_a_container_has_its_own_and_the_pods_namespaces(make_pod: Callable[..., Pod]) -> None:
    pod = make_pod(network=True)
    first, second = pod.start(program(*IDLE)), pod.start(program(*IDLE))
    assert own(first) == own(second) == PRIVATE | {"net", "ipc", "uts"}
    one, two = namespaces(first.pid), namespaces(second.pid)
    assert {kind for kind in KINDS if one[kind] != two[kind]} == PRIVATE


def test_host_namespaces_are_the_hosts(make_pod: Callable[..., Pod]) -> None:
    pod = make_pod(ipc=False, uts=False)
    container = pod.start(program(*IDLE), namespaces=(Namespace(NamespaceKind.MOUNT),), mounts=())
    assert own(container) == {"mnt"}


def test_an_exec_is_where_the_init_is(make_pod: Callable[..., Pod]) -> None:
    pod = make_pod(network=True)
    container = pod.start(program(*IDLE))
    exec_ = pod.start_exec(container, program(*IDLE))
    wait_until(lambda: Path(f"/proc/{exec_.pid}/comm").read_text() == "sleep\n", "execve of the exec")
    assert namespaces(exec_.pid) == namespaces(container.pid)
    exec_.process.send_signal(9)
    assert exec_.wait().signal == 9


def test_a_target_container_lends_its_pid_namespace(pod: Pod) -> None:
    target = pod.start(program(*IDLE))
    without_pid = tuple(ns for ns in NAMESPACES if ns.kind is not NamespaceKind.PID)
    guest = pod.start(program(*IDLE), namespaces=without_pid, pid_target=target.id)
    assert namespaces(guest.pid)["pid"] == namespaces(target.pid)["pid"]
    assert namespaces(guest.pid)["mnt"] != namespaces(target.pid)["mnt"]


def test_a_target_that_is_gone_is_a_sentence(pod: Pod) -> None:
    target = pod.start(program(*IDLE))
    target.kill()
    with pytest.raises(StartFailed, match=f"target container {target.id} does not run"):
        pod.start(program(*IDLE), pid_target=target.id)


def test_a_pod_may_share_a_pid_namespace_with_a_reaping_init(make_pod: Callable[..., Pod]) -> None:
    pod = make_pod(shared_pid=True)
    without_pid = tuple(ns for ns in NAMESPACES if ns.kind is not NamespaceKind.PID)
    first = pod.start(program(*IDLE), namespaces=without_pid, pid_target="pod")
    second = pod.start(script("(sleep 0.01 &); exec sleep 600"), namespaces=without_pid, pid_target="pod")
    assert namespaces(first.pid)["pid"] == namespaces(second.pid)["pid"] != namespaces("self")["pid"]
    own_pid = first.proc("status").partition("NSpid:")[2].split()[1]
    assert own_pid != "1", "process 1 is the pod's"


def test_a_joined_namespace_is_the_one_at_its_path(pod: Pod, make_pod: Callable[..., Pod]) -> None:
    other = make_pod(network=True).start(program(*IDLE))
    joined = Namespace(NamespaceKind.NETWORK, f"/proc/{other.pid}/ns/net")
    container = pod.start(program(*IDLE), namespaces=(*NAMESPACES, joined))
    assert namespaces(container.pid)["net"] == namespaces(other.pid)["net"]


def test_a_namespace_path_that_is_missing_is_a_sentence(pod: Pod) -> None:
    joined = Namespace(NamespaceKind.NETWORK, "/no/such/netns")
    with pytest.raises(StartFailed, match='net namespace "/no/such/netns": no such file or directory'):
        pod.start(program(*IDLE), namespaces=(*NAMESPACES, joined))


def test_the_pods_hostname_is_seen_inside_and_not_outside(make_pod: Callable[..., Pod]) -> None:
    before = socket.gethostname()
    pod = make_pod(hostname="pod-name")
    assert pod.run(program("/bin/hostname")).output == "pod-name\n"
    assert socket.gethostname() == before


def test_a_container_with_its_own_uts_namespace_has_its_own_names(pod: Pod) -> None:
    show = script("hostname; cat /proc/sys/kernel/domainname")
    uts = (*NAMESPACES, Namespace(NamespaceKind.UTS))
    ended = pod.run(show, namespaces=uts, hostname="box", domainname="example")
    assert ended.lines == ["box", "example"]


def test_sysctls_of_the_pod_are_seen_in_its_containers(make_pod: Callable[..., Pod]) -> None:
    pod = make_pod(network=True, sysctls={"net.ipv4.ip_unprivileged_port_start": "7", "kernel.shmmni": "33"})
    show = program("/bin/cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/kernel/shmmni")
    assert pod.run(show).lines == ["7", "33"]
    assert Path("/proc/sys/kernel/shmmni").read_text() != "33\n"


def test_sysctls_of_a_container_are_written_in_its_namespaces(make_pod: Callable[..., Pod]) -> None:
    pod = make_pod(network=True)
    key = "net.ipv4.ip_local_port_range"
    ended = pod.run(program("/bin/cat", "/proc/sys/net/ipv4/ip_local_port_range"), sysctls={key: "2000 3000"})
    assert ended.output.split() == ["2000", "3000"]


def test_a_sysctl_that_the_kernel_refuses_is_a_sentence(make_pod: Callable[..., Pod]) -> None:
    with pytest.raises(StartFailed, match=r"writing a sysctl: invalid argument \(net.ipv4.ip_local_port_range\)"):
        make_pod(network=True).run(program("/bin/true"), sysctls={"net.ipv4.ip_local_port_range": "nonsense"})


def test_the_pods_network_is_pinned_and_its_loopback_up(make_pod: Callable[..., Pod], tmp_path: Path) -> None:
    pin = tmp_path / "netns" / "pinned"
    pod = make_pod(network=True, netns_path=str(pin))
    container = pod.start(program(*IDLE))
    inode = int(namespaces(container.pid)["net"].strip("net:[]"))
    assert os.stat(pin).st_ino == inode
    assert "LOOPBACK,UP" in pod.exec(container, program("/bin/ip", "link", "show", "lo")).output
    pod.stop()
    assert not pin.exists()


def test_containers_of_a_pod_share_shm_and_message_queues(pod: Pod) -> None:
    writer = pod.start(script("echo hello > /dev/shm/x; echo done; exec sleep 600"))
    assert os.read(writer.stdout, 10) == b"done\n"
    assert pod.run(script("cat /dev/shm/x; touch /dev/mqueue/q && ls /dev/mqueue")).lines == ["hello", "q"]


def test_shm_has_the_size_asked_for(make_pod: Callable[..., Pod]) -> None:
    pod = make_pod(shm_bytes=1 << 20)
    ended = pod.run(script("dd if=/dev/zero of=/dev/shm/x bs=64k count=64 2>/dev/null; stat -c %s /dev/shm/x"))
    assert ended.output == f"{1 << 20}\n"


def test_a_pod_init_does_nothing_but_reap(make_pod: Callable[..., Pod]) -> None:
    pod = make_pod(shared_pid=True)
    without_pid = tuple(ns for ns in NAMESPACES if ns.kind is not NamespaceKind.PID)
    container = pod.start(
        script("(sleep 0.02 & exec true); sleep 0.1; cat /proc/1/comm; ls /proc | grep -c '^[0-9]'"),
        namespaces=without_pid,
        pid_target="pod",
    )
    stdout, container.stdout = container.stdout, -1
    with open(stdout) as output:
        name, count = output.read().split()
    assert name == "crishim-podinit"
    # process 1, the shell, its pipe's two: no zombie of the daemon
    assert int(count) <= 4


def test_clocks_of_a_time_namespace_are_moved(pod: Pod) -> None:
    spaces = (*NAMESPACES, Namespace(NamespaceKind.TIME))
    offsets = {"boottime": ClockOffset(1_000_000), "monotonic": ClockOffset(-1, 5)}
    container = pod.start(program(*IDLE), namespaces=spaces, clock_offsets=offsets)
    assert own(container) == PRIVATE | {"ipc", "uts", "time"}
    read = script("cat /proc/uptime; cat /proc/self/timens_offsets")
    for ended in (pod.exec(container, read), pod.run(read, namespaces=spaces, clock_offsets=offsets)):
        assert float(ended.lines[0].split()[0]) > 1_000_000
        assert [line.split() for line in ended.lines[1:]] == [["monotonic", "-1", "5"], ["boottime", "1000000", "0"]]


def test_offsets_without_a_time_namespace_are_refused(pod: Pod) -> None:
    with pytest.raises(InvalidSpec, match="clock_offsets: they need a new time namespace"):
        pod.start(program(*IDLE), clock_offsets={"monotonic": ClockOffset(1)})
    spaces = (*NAMESPACES, Namespace(NamespaceKind.TIME))
    with pytest.raises(InvalidSpec, match="clock_offsets: 'realtime' is neither monotonic nor boottime"):
        pod.start(program(*IDLE), namespaces=spaces, clock_offsets={"realtime": ClockOffset(1)})
    with pytest.raises(StartFailed, match="setting the clocks"):
        pod.start(program(*IDLE), namespaces=spaces, clock_offsets={"boottime": ClockOffset(-(2**40))})


def test_names_do_not_leak_between_execs_and_the_host(run: Run) -> None:
    assert run(program("/bin/readlink", "/proc/self/ns/user")).output.strip() == os.readlink("/proc/self/ns/user")
