"""Pods through the CRI socket of a real server: what a kubelet relies on."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crishim.cgroups import effects
from crishim.cgroups.hierarchy import detect
from crishim.cgroups.planned import CgroupPlan
from crishim.cri.client import Client
from crishim.cri.client import messages as m
from crishim.errors import CrishimError
from tests.support.faults import counter, monitor_of, server_with_image
from tests.support.server import NEEDS_SERVER, Server, cgroup_directories, container_config, pod_config, wait_until

pytestmark = pytest.mark.skipif(not NEEDS_SERVER, reason="a server needs root, nsenter and ip")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server_with_image(tmp_path_factory.mktemp("pods") / "node") as server:
        yield server


@pytest.fixture(scope="module")
def pod(server: Server) -> tuple[str, Any]:
    return server.run_pod("shared")


def memory_limited(name: str, script: str, limit: int) -> Any:
    config = container_config("sh", "-c", script, name=name)
    config.linux.resources.memory_limit_in_bytes = limit
    return config


def test_the_reason_of_an_end_is_the_true_one(server: Server, pod: tuple[str, Any]) -> None:
    cases = {
        "zero": ("exit 0", 0, "Completed"),
        "code": ("exit 3", 3, "Error"),
        "own137": ("exit 137", 137, "Error"),
        "abort": ("ulimit -c 0; sh -c 'kill -ABRT $$'; exit $?", 134, "Error"),
    }
    for name, (script, code, reason) in cases.items():
        container = server.started(*pod, "sh", "-c", script, name=name)
        status = server.exited(container)
        assert (name, status.exit_code, status.reason) == (name, code, reason)
        assert status.started_at > 0 and status.finished_at >= status.started_at
        server.remove(container)


def test_init_killed_for_memory_is_oom_killed(server: Server, pod: tuple[str, Any]) -> None:
    before = counter(server, "crishim_oom_kills_total")
    config = memory_limited("oom", "exec dd if=/dev/zero of=/dev/null bs=64M count=1", 16 << 20)
    container = server.create_config(*pod, config)
    server.start_container(container)
    status = server.exited(container)
    assert (status.exit_code, status.reason) == (137, "OOMKilled"), status
    server.remove(container)
    assert counter(server, "crishim_oom_kills_total") > before


def test_a_killed_child_that_init_survives_is_no_oom_of_the_container(server: Server, pod: tuple[str, Any]) -> None:
    script = "dd if=/dev/zero of=/dev/null bs=64M count=1; echo child ended with $?; exit 5"
    container = server.create_config(*pod, memory_limited("oomchild", script, 16 << 20))
    server.start_container(container)
    status = server.exited(container)
    assert (status.exit_code, status.reason) == (5, "Error"), status
    assert "child ended with 137" in (server.logs / "shared/oomchild/0.log").read_text()
    server.remove(container)


def test_our_own_kill_after_a_childs_oom_is_not_called_oom(server: Server, pod: tuple[str, Any]) -> None:
    script = "dd if=/dev/zero of=/dev/null bs=64M count=1; touch /tmp/done; sleep 1000"
    container = server.create_config(*pod, memory_limited("oomthenstop", script, 16 << 20))
    server.start_container(container)
    wait_until(lambda: server.exec(container, "test", "-e", "/tmp/done").exit_code == 0, "the child's end")
    server.stop(container, timeout=0)
    status = server.status(container)
    assert (status.exit_code, status.reason) == (137, "Error"), status
    server.remove(container)


def test_the_stop_signal_of_the_container_is_sent_first(server: Server, pod: tuple[str, Any]) -> None:
    script = "trap 'exit 42' USR1; touch /tmp/up; while :; do sleep 0.1; done"
    container = server.started(*pod, "sh", "-c", script, name="usr1", stop_signal=m.Signal.Value("SIGNAL_SIGUSR1"))
    wait_until(lambda: server.exec(container, "test", "-e", "/tmp/up").exit_code == 0, "the trap")
    server.stop(container, timeout=10)
    status = server.status(container)
    assert (status.state, status.exit_code) == (m.CONTAINER_EXITED, 42)
    server.remove(container)


def test_a_later_stop_brings_the_kill_forward(server: Server, pod: tuple[str, Any]) -> None:
    container = server.started(*pod, "sleep", "1000", name="stubborn")  # process 1 without a handler ignores SIGTERM
    patient = threading.Thread(target=server.stop, args=(container, 60))
    patient.start()
    wait_until(lambda: counter(server, 'crishim_operations_in_flight{stage="stop_container.signalled"}'), "the stop")
    began = time.monotonic()
    server.stop(container, timeout=0)
    patient.join(20)
    assert not patient.is_alive() and time.monotonic() - began < 10
    assert server.status(container).exit_code == 137
    server.remove(container)


def test_stopping_a_sandbox_ends_its_containers_and_everything_below_them(server: Server) -> None:
    sandbox, config = server.run_pod("family")
    container = server.started(sandbox, config, "sh", "-c", "setsid sh -c 'sleep 333 & sleep 333' & sleep 333")
    wait_until(lambda: server.sh(container, "ps -o args").count("sleep 333\n") >= 3, "the family")
    server.stop_pod(sandbox)
    server.stop_pod(sandbox)
    status = server.client.runtime("PodSandboxStatus", m.PodSandboxStatusRequest(pod_sandbox_id=sandbox)).status
    assert status.state == m.SANDBOX_NOTREADY
    assert server.status(container).state == m.CONTAINER_EXITED
    server.remove_pod(sandbox)
    assert not [path for path in server.left_behind() if sandbox in path]


def test_a_cgroup_parent_made_for_a_pod_goes_with_it_and_a_kubelets_stays(server: Server) -> None:
    hierarchy = detect()
    parent = f"/crishim-test-{server.instance}"
    try:
        effects.create(hierarchy, CgroupPlan(f"{parent}/kubelets", []))
        for name in ("kubelets", "ours"):
            config = pod_config(name, server.logs)
            config.linux.cgroup_parent = f"{parent}/{name}"
            sandbox = server.run_pod_config(config)
            container = server.started(sandbox, config)
            assert f"{parent}/{name}/{container}" in _cgroups_of(server, container)
            server.remove_pod(sandbox)
        (_, first), *_ = effects.directories(hierarchy, parent)
        assert [path.name for path in Path(os.fsdecode(first)).glob("*/")] == ["kubelets"]
    finally:
        effects.remove(hierarchy, parent)


def _cgroups_of(server: Server, container: str) -> str:
    """/proc/PID/cgroup of its init, as the host sees it."""
    found = [
        pid
        for tree in cgroup_directories(f"/crishim-test-{server.instance}")
        for procs in tree.glob(f"*/{container}/cgroup.procs")
        for pid in procs.read_text().split()
    ]
    return Path(f"/proc/{found[0]}/cgroup").read_text()


def test_a_pod_has_its_own_network_name_and_resolver(server: Server) -> None:
    dns = m.DNSConfig(servers=["10.0.0.10"], searches=["svc.example", "example"], options=["ndots:5"])
    sandbox, config = server.run_pod("named", dns_config=dns)
    status = server.client.runtime("PodSandboxStatus", m.PodSandboxStatusRequest(pod_sandbox_id=sandbox)).status
    container = server.started(sandbox, config)
    seen = server.sh(container, "hostname; cat /etc/resolv.conf /etc/hosts; ip -o addr show eth0; echo $HOSTNAME")
    assert seen.startswith("named\nsearch svc.example example\nnameserver 10.0.0.10\noptions ndots:5\n")
    assert f"inet {status.network.ip}/" in seen and f"{status.network.ip}\tnamed" in seen
    assert seen.endswith("named\n")
    server.remove_pod(sandbox)


def test_two_pods_reach_each_other(server: Server) -> None:
    first, config = server.run_pod("one")
    second, other = server.run_pod("two")
    ip = server.client.runtime("PodSandboxStatus", m.PodSandboxStatusRequest(pod_sandbox_id=first)).status.network.ip
    listener = server.started(first, config, "sh", "-c", "echo hello | nc -l -p 7000", name="listener")
    caller = server.started(second, other, name="caller")
    script = f"nc {ip} 7000 </dev/null"
    answer = wait_until(
        lambda: said.stdout if (said := server.exec(caller, "sh", "-c", script)).exit_code == 0 else b"", "an answer"
    )
    assert answer == b"hello\n"
    assert server.exited(listener).exit_code == 0
    server.remove_pod(first)
    server.remove_pod(second)


def test_a_pod_on_the_host_network_has_no_ip_and_the_hosts_name(server: Server) -> None:
    sandbox, config = server.run_pod("hostnet", host_network=True)
    status = server.client.runtime("PodSandboxStatus", m.PodSandboxStatusRequest(pod_sandbox_id=sandbox)).status
    assert status.network.ip == "" and status.linux.namespaces.options.network == m.NODE
    container = server.started(sandbox, config)
    assert server.sh(container, "hostname").strip() == Path("/proc/sys/kernel/hostname").read_text().strip()
    server.remove_pod(sandbox)


def test_a_pod_whose_shared_pid_namespace_lost_its_init_is_not_ready(server: Server) -> None:
    config = pod_config("orphaned", server.logs)
    config.linux.security_context.namespace_options.pid = m.POD
    sandbox = server.run_pod_config(config)
    container = container_config("sleep", "1000")
    container.linux.security_context.namespace_options.pid = m.POD
    running = server.create_config(sandbox, config, container)
    server.start_container(running)
    monitor = monitor_of(server, sandbox)
    children = Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split()
    (init,) = [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text() == "crishim-podinit\n"]
    os.kill(init, signal.SIGKILL)
    assert server.exited(running).exit_code == 137

    def state() -> int:
        status = server.client.runtime("PodSandboxStatus", m.PodSandboxStatusRequest(pod_sandbox_id=sandbox)).status
        return int(status.state)

    wait_until(lambda: state() == m.SANDBOX_NOTREADY, "a pod that is not ready")
    server.remove_pod(sandbox)


def test_containers_of_a_shared_pid_namespace_see_each_other(server: Server) -> None:
    config = pod_config("sharedpid", server.logs)
    config.linux.security_context.namespace_options.pid = m.POD
    sandbox = server.run_pod_config(config)
    ids = []
    for name in ("left", "right"):
        container = container_config("sleep", f"77{len(ids)}", name=name)
        container.linux.security_context.namespace_options.pid = m.POD
        ids.append(server.create_config(sandbox, config, container))
        server.start_container(ids[-1])
    seen = server.sh(ids[0], "ps -o pid,args")
    assert "sleep 770" in seen and "sleep 771" in seen
    assert not re.search(r"^\s*1 sleep", seen, re.MULTILINE), "process 1 is not one of the containers"
    server.stop(ids[0], timeout=0)
    assert "sleep 770" not in server.sh(ids[1], "ps -o args")
    server.remove_pod(sandbox)


def test_a_debug_container_joins_the_processes_of_its_target(server: Server, pod: tuple[str, Any]) -> None:
    target = server.started(*pod, "sleep", "555", name="target")
    debug = container_config(name="debug")
    options = debug.linux.security_context.namespace_options
    options.pid, options.target_id = m.TARGET, target
    container = server.create_config(*pod, debug)
    server.start_container(container)
    assert "sleep 555" in server.sh(container, "ps -o args")
    for each in (container, target):
        server.stop(each, timeout=0)
        server.remove(each)


def test_shared_memory_is_the_pods(server: Server, pod: tuple[str, Any]) -> None:
    first = server.started(*pod, name="shm1")
    second = server.started(*pod, name="shm2")
    server.sh(first, "echo shared > /dev/shm/x")
    assert server.sh(second, "cat /dev/shm/x") == "shared\n"
    for each in (first, second):
        server.stop(each, timeout=0)
        server.remove(each)


def test_a_rotated_log_is_reopened(server: Server, pod: tuple[str, Any]) -> None:
    script = "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done"
    container = server.started(*pod, "sh", "-c", script, name="rotate")
    log = server.logs / "shared/rotate/0.log"
    wait_until(lambda: log.read_text().count("\n") > 3, "some lines")
    old = log.with_name("0.log.old")
    log.rename(old)
    server.client.runtime("ReopenContainerLog", m.ReopenContainerLogRequest(container_id=container))
    assert log.exists()
    size = old.stat().st_size
    wait_until(lambda: log.read_text().count("\n") > 3, "lines in the new file")
    assert old.stat().st_size == size
    numbers = [int(line.rsplit(" ", 1)[1]) for line in (old.read_text() + log.read_text()).splitlines()]
    assert numbers == list(range(len(numbers)))
    server.stop(container, timeout=0)
    server.remove(container)


def test_lists_follow_and_filter(server: Server) -> None:
    sandbox, config = server.run_pod("listed")
    container = server.create(sandbox, config, labels={"app": "x"})
    request = m.ListContainersRequest(filter=m.ContainerFilter(pod_sandbox_id=sandbox))
    (item,) = server.client.runtime("ListContainers", request).containers
    assert (item.id, item.state, item.labels["app"]) == (container, m.CONTAINER_CREATED, "x")
    server.start_container(container)
    (item,) = server.client.runtime("ListContainers", request).containers
    assert item.state == m.CONTAINER_RUNNING
    wanted = m.PodSandboxFilter(label_selector={"io.kubernetes.pod.uid": "uid-listed"})
    (found,) = server.client.runtime("ListPodSandbox", m.ListPodSandboxRequest(filter=wanted)).items
    assert found.id == sandbox
    server.remove_pod(sandbox)
    assert server.client.runtime("ListContainers", request).containers == []


def test_stats_tell_what_a_container_uses(server: Server, pod: tuple[str, Any]) -> None:
    busy = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; dd if=/dev/zero of=/big bs=1M count=3; sleep 1000"
    container = server.started(*pod, "sh", "-c", busy, name="stats")
    wait_until(lambda: "3+0 records out" in (server.logs / "shared/stats/0.log").read_text(), "the work")
    stats = server.client.runtime("ContainerStats", m.ContainerStatsRequest(container_id=container)).stats
    assert stats.attributes.id == container and stats.cpu.usage_core_nano_seconds.value > 1_000_000
    assert stats.memory.working_set_bytes.value > 0 and stats.memory.timestamp > 0
    assert stats.writable_layer.used_bytes.value >= 3 << 20
    assert Path(stats.writable_layer.fs_id.mountpoint).is_dir()
    listed = server.client.runtime("ListContainerStats", m.ListContainerStatsRequest()).stats
    assert container in {each.attributes.id for each in listed}
    assert 'crishim_container_memory_working_set_bytes{namespace="tests",pod="shared"' in server.metrics()
    server.stop(container, timeout=0)
    server.remove(container)
    assert container not in server.metrics()


def test_status_is_ready_and_tells_the_driver(server: Server) -> None:
    answer = server.client.runtime("Status", m.StatusRequest(verbose=True))
    assert {each.type: each.status for each in answer.status.conditions} == {"RuntimeReady": True, "NetworkReady": True}
    assert '"stateDir"' in answer.info["config"]
    driver = server.client.runtime("RuntimeConfig", m.RuntimeConfigRequest()).linux.cgroup_driver
    assert m.CgroupDriver.Name(driver) == "CGROUPFS"


def test_a_retry_gets_the_sandbox_that_its_first_caller_did_not_wait_for(server: Server) -> None:
    config = pod_config("impatient", server.logs)
    with Client(server.address) as client:
        try:
            client.runtime("RunPodSandbox", m.RunPodSandboxRequest(config=config), timeout_s=0.004)
        except CrishimError:
            pass
    listed = wait_until(
        lambda: (
            [
                each.id
                for each in server.client.runtime("ListPodSandbox", m.ListPodSandboxRequest()).items
                if each.metadata.name == "impatient"
            ]
            or server.run_pod_config(config)
        ),
        "the sandbox",
    )
    sandbox = listed if isinstance(listed, str) else server.run_pod_config(config)
    items = server.client.runtime("ListPodSandbox", m.ListPodSandboxRequest()).items
    assert [each.id for each in items if each.metadata.name == "impatient"] == [sandbox]
    server.remove_pod(sandbox)


def test_ten_calls_for_one_sandbox_make_one(server: Server) -> None:
    config = pod_config("crowd", server.logs)
    found: list[str] = []
    callers = [threading.Thread(target=lambda: found.append(server.run_pod_config(config))) for _ in range(10)]
    refusals: list[BaseException] = []
    threading.excepthook = lambda failure: refusals.append(failure.exc_value)  # type: ignore[arg-type, assignment]
    try:
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    finally:
        threading.excepthook = threading.__excepthook__
    # who comes after the end is told the name is taken; who comes before it joins
    assert len(set(found)) == 1 and len(found) + len(refusals) == 10
    server.remove_pod(found[0])
