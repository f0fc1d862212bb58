"""What a node does to a runtime: frozen processes, dead file systems, full disks, killed processes of ours.

Each fault stays where it is: calls about anything else are answered, and the pod it happened to can be removed.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from crishim.cgroups import effects
from crishim.cgroups.hierarchy import detect
from crishim.cgroups.planned import CgroupPlan
from crishim.cri.client import Client
from crishim.cri.client import messages as m
from crishim.errors import CrishimError, TimedOut, Unavailable
from tests.support.dead_mount import cannot_mount, dead_mount
from tests.support.fault_checks import ANSWER_S, assert_reads_are_answered, gone, in_background, under_way
from tests.support.faults import PATIENCE_S, counter, pids_of, server_with_image, why
from tests.support.server import NEEDS_SERVER, Server, container_config, pod_config, wait_until

pytestmark = pytest.mark.skipif(not NEEDS_SERVER, reason="a server needs root, nsenter and ip")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server_with_image(tmp_path_factory.mktemp("faults") / "node") as server:
        yield server


@pytest.mark.parametrize("freezer", ["cgroup.freeze", "freezer.state"])
def test_frozen_containers_hold_up_nobody_and_can_be_stopped(freezer: str, server: Server) -> None:
    value = "1" if freezer == "cgroup.freeze" else "FROZEN"
    sandbox, pod = server.run_pod(freezer)
    frozen = [server.started(sandbox, pod, name=f"frozen{number}") for number in range(10)]
    awake = server.started(sandbox, pod, name="awake")
    directories = [directory for each in frozen for directory in server.container_cgroups(each)]
    files = [directory / freezer for directory in directories if (directory / freezer).exists()]
    if not files:
        pytest.skip(f"this host has no pure cgroup v2 or v1: {freezer}")
    for file in files:
        file.write_text(value)
    assert_reads_are_answered(server, sandbox, frozen[0])
    assert server.exec(awake, "echo", "here").stdout == b"here\n"
    for each in frozen[:5]:
        server.stop(each, timeout=0)
        status = server.status(each)
        assert (status.state, status.exit_code, status.reason) == (m.CONTAINER_EXITED, 137, "Error")
        assert why(server, each)["sender"] == "stop"
    server.remove_pod(sandbox)
    assert gone(server, sandbox)


def test_an_exec_into_a_frozen_container_ends_in_time(server: Server) -> None:
    sandbox, pod = server.run_pod("frozenexec")
    container = server.started(sandbox, pod)
    effects.freeze(detect(), _path(server, container))
    with pytest.raises(TimedOut):
        server.exec(container, "true", timeout=1)
    effects.thaw(detect(), _path(server, container))
    assert server.exec(container, "echo", "again").stdout == b"again\n"
    server.remove_pod(sandbox)
    assert gone(server, sandbox)


def _path(server: Server, container: str) -> str:
    directory = str(server.container_cgroups(container)[0])
    return directory[directory.index(f"{server.pods_cgroup}/") :]


@pytest.mark.skipif(bool(cannot_mount()), reason=cannot_mount())
def test_a_start_on_a_dead_file_system_hangs_alone_and_a_stop_ends_it(server: Server, tmp_path: Path) -> None:
    sandbox, pod = server.run_pod("dead")
    script = "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.05; done"
    neighbour = server.started(sandbox, pod, "sh", "-c", script, name="neighbour")
    with dead_mount(tmp_path / "mount") as dead:
        config = container_config(name="hangs")
        config.mounts.append(m.Mount(container_path="/data", host_path=str(dead / "volume")))
        container = server.create_config(sandbox, pod, config)
        with Client(server.address) as client:
            start = m.StartContainerRequest(container_id=container)
            with in_background(lambda: client.runtime("StartContainer", start)) as ends:
                wait_until(lambda: under_way(server), "the start", PATIENCE_S)
                assert_reads_are_answered(server, sandbox, container)
                (shown,) = [each for each in under_way(server) if container in each["operation"]]
                assert shown["stage"] == "start_container.started" and "monitor" in shown["waits_for"]
                log = server.logs / "dead/neighbour/0.log"
                written = log.stat().st_size
                wait_until(lambda: log.stat().st_size > written, "more lines of the neighbour", PATIENCE_S)
                assert server.exec(neighbour, "echo", "here").stdout == b"here\n"
                other, config = server.run_pod("elsewhere")
                server.started(other, config)
                server.remove_pod(other)
                assert not ends
                server.stop_pod(sandbox)
        assert "hung" in str(ends[0])
        status = server.status(container)
        assert (status.state, status.reason) == (m.CONTAINER_EXITED, "StartError") and "hung" in status.message
        assert server.status(neighbour).state == m.CONTAINER_EXITED
        server.remove_pod(sandbox)
        assert gone(server, sandbox)


@pytest.mark.skipif(bool(cannot_mount()), reason=cannot_mount())
def test_a_start_that_hangs_is_ended_by_the_next_server_too(tmp_path: Path) -> None:
    with server_with_image(tmp_path / "node") as server:
        sandbox, pod = server.run_pod("dead")
        with dead_mount(tmp_path / "mount") as dead:
            config = container_config(name="hangs")
            config.mounts.append(m.Mount(container_path="/data", host_path=str(dead / "volume")))
            container = server.create_config(sandbox, pod, config)
            with pytest.raises(CrishimError):
                start = m.StartContainerRequest(container_id=container)
                server.client.runtime("StartContainer", start, timeout_s=1.0)
            server.kill()
            server.start()
            server.stop_pod(sandbox)
            server.remove_pod(sandbox)
            assert gone(server, sandbox)


@pytest.mark.skipif(bool(cannot_mount()), reason=cannot_mount())
def test_a_process_that_waits_for_a_dead_file_system_can_be_stopped(server: Server, tmp_path: Path) -> None:
    sandbox, pod = server.run_pod("waits")
    shelf = tmp_path / "shelf"  # healthy itself, so that the start has no trouble
    shelf.mkdir()
    with dead_mount(shelf / "dead"):
        config = container_config("sh", "-c", "echo up; exec cat /data/dead/file", name="waits")
        config.mounts.append(m.Mount(container_path="/data", host_path=str(shelf)))
        container = server.create_config(sandbox, pod, config)
        server.start_container(container)
        log = server.logs / "waits/waits/0.log"
        wait_until(lambda: " F up\n" in log.read_text(), "the program", PATIENCE_S)
        assert_reads_are_answered(server, sandbox, container)
        server.stop(container, timeout=0)
        assert server.status(container).exit_code == 137
        server.remove_pod(sandbox)
        assert gone(server, sandbox)


def fill(ballast: Path) -> None:
    """Until its file system has no page left."""
    with open(ballast, "ab", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))


def test_a_full_state_directory_keeps_no_container_from_being_stopped(tmp_path: Path) -> None:
    node = tmp_path / "node"
    state = node / "state"
    state.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "crishim-state", state], check=True)
    try:
        with server_with_image(node) as server:
            sandbox, pod = server.run_pod("fullstate")
            stopped = server.started(sandbox, pod, "sleep", "1000", name="stopped")
            killed = server.started(sandbox, pod, "sleep", "1000", name="killed")
            (pid,) = pids_of(server, killed)
            fill(state / "ballast")
            with pytest.raises(CrishimError, match=r"cannot be (written|made)"):
                server.run_pod("more")
            fill(state / "ballast")  # a record that replaced another meanwhile, or was taken back, has left room
            with pytest.raises(Unavailable):
                server.stop(stopped, timeout=0)
            fill(state / "ballast")
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not pids_of(server, stopped) | pids_of(server, killed), "their end", PATIENCE_S)
            assert server.status(killed).state == m.CONTAINER_RUNNING
            (state / "ballast").unlink()
            for each in (stopped, killed):
                status = server.exited(each)
                assert (status.exit_code, status.reason) == (137, "Error")
            server.remove_pod(sandbox)
            assert not [path for path in state.rglob("*") if path.name.endswith(".tmp")]
    finally:
        subprocess.run(["umount", "-l", state], check=True)


def test_a_full_log_disk_is_counted_and_the_log_goes_on_afterwards(server: Server, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "crishim-disk", disk], check=True)
    try:
        pod = pod_config("fulldisk", server.logs, log_directory=str(disk))
        sandbox = server.run_pod_config(pod)
        script = "yes 0123456789abcdef | head -n 600000; touch /full;"
        script += "until [ -e /more ]; do sleep 0.02; done; echo after"
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(3_000_000))
        lost = counter(server, "crishim_log_bytes_lost_total")
        container = server.started(sandbox, pod, "sh", "-c", script, log_path="0.log")
        log = disk / "0.log"
        wait_until(lambda: server.exec(container, "test", "-e", "/full").exit_code == 0, "a full disk", PATIENCE_S)
        assert_reads_are_answered(server, sandbox, container)
        assert server.exec(container, "echo", "here").stdout == b"here\n"
        ballast.unlink()
        server.sh(container, "touch /more")
        status = server.exited(container)
        assert (status.exit_code, status.reason) == (0, "Completed")
        text = log.read_bytes()
        assert text.endswith(b" stdout F after\n")
        assert all(line.split(b" ")[2] == b"F" for line in text.splitlines())
        assert why(server, container)["log_bytes_lost"] > 0
        assert counter(server, "crishim_log_bytes_lost_total") > lost
        server.remove_pod(sandbox)
        assert gone(server, sandbox)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_log_directory_that_cannot_be_written_is_said(server: Server, tmp_path: Path) -> None:
    place = tmp_path / "readonly"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=16k", "crishim-disk", place], check=True)
    try:
        pod = pod_config("readonly", server.logs, log_directory=str(place))
        sandbox = server.run_pod_config(pod)
        container = server.create(sandbox, pod, log_path="main/0.log")
        with pytest.raises(CrishimError, match="read-only file system"):
            server.start_container(container)
        status = server.status(container)
        assert status.reason == "StartError"
        assert "read-only file system" in status.message and str(place) in status.message
        server.remove_pod(sandbox)
        assert gone(server, sandbox)
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_a_pod_whose_cgroup_was_removed_starts_again_or_says_so(server: Server) -> None:
    hierarchy = detect()
    parent = f"/crishim-test-{server.instance}"
    effects.create(hierarchy, CgroupPlan(f"{parent}/pod", []))
    try:
        pod = pod_config("nocgroup", server.logs)
        pod.linux.cgroup_parent = f"{parent}/pod"
        sandbox = server.run_pod_config(pod)
        container = server.create(sandbox, pod)
        assert effects.remove(hierarchy, parent)
        try:
            server.start_container(container)
        except CrishimError as error:
            assert parent in str(error) and "cgroup" in str(error)
        else:
            assert server.exec(container, "echo", "here").stdout == b"here\n"
        server.remove_pod(sandbox)
        assert gone(server, sandbox)
    finally:
        assert effects.remove(hierarchy, parent)


def test_a_network_whose_rules_somebody_deleted_is_taken_down_all_the_same(server: Server) -> None:
    mapping = m.PortMapping(protocol=m.TCP, container_port=80, host_port=18080)
    sandbox, pod = server.run_pod("nodel", port_mappings=[mapping])
    container = server.started(sandbox, pod)
    table = f"crishim-{server.instance}"
    tables = server.in_netns("nft", "list", "tables")
    assert table in tables, tables
    for line in tables.splitlines():
        server.in_netns("nft", "delete", *line.split())
    server.stop_pod(sandbox)
    assert server.status(container).state == m.CONTAINER_EXITED
    server.remove_pod(sandbox)
    assert gone(server, sandbox)
    again, pod = server.run_pod("nodel", port_mappings=[mapping])
    server.remove_pod(again)


def test_a_network_that_cannot_be_released_is_told_and_the_next_stop_ends_it(server: Server) -> None:
    sandbox, pod = server.run_pod("locked")
    container = server.started(sandbox, pod)
    with closing(sqlite3.connect(server.root / "network.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="address pool"):
            server.stop_pod(sandbox)
        assert server.status(container).state == m.CONTAINER_EXITED
        assert_reads_are_answered(server, sandbox, container)
        other.execute("ROLLBACK")
    server.stop_pod(sandbox)
    server.remove_pod(sandbox)
    assert gone(server, sandbox)


def test_nothing_of_a_timed_out_exec_is_left_and_the_answer_does_not_wait(server: Server) -> None:
    sandbox, pod = server.run_pod("escape")
    container = server.started(sandbox, pod)
    escape = (
        "setsid sh -c 'setsid sh -c \"trap : TERM HUP; while :; do sleep 7; done\" & sleep 1000' & echo out; sleep 1000"
    )
    with pytest.raises(TimedOut):
        server.client.runtime(
            "ExecSync",
            m.ExecSyncRequest(container_id=container, cmd=["sh", "-c", escape], timeout=1),
            timeout_s=ANSWER_S,
        )
    assert len(pids_of(server, container)) == 1
    assert server.exec(container, "echo", "here").stdout == b"here\n"
    server.remove_pod(sandbox)


def test_the_output_of_an_exec_is_bounded_also_when_it_is_timed_out(server: Server) -> None:
    sandbox, pod = server.run_pod("bounded")
    container = server.started(sandbox, pod)
    bound = (16 << 20) - (64 << 10)
    answer = server.exec(container, "sh", "-c", "head -c 20000000 /dev/zero; head -c 9000000 /dev/zero >&2", timeout=60)
    assert answer.exit_code == 0 and len(answer.stdout) + len(answer.stderr) == bound
    with pytest.raises(TimedOut):
        server.exec(container, "cat", "/dev/zero", timeout=1)
    assert len(pids_of(server, container)) == 1
    server.remove_pod(sandbox)
