"""ExecSync, and what a process finds in its container, through the CRI socket of a real server."""

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

from crishim.cri.client import messages as m
from crishim.errors import CrishimError, TimedOut, Unavailable
from tests.support.faults import server_with_image
from tests.support.server import NEEDS_SERVER, Server, container_config, wait_until

pytestmark = pytest.mark.skipif(not NEEDS_SERVER, reason="a server needs root, nsenter and ip")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server_with_image(tmp_path_factory.mktemp("execs") / "node") as server:
        yield server


@pytest.fixture(scope="module")
def pod(server: Server) -> tuple[str, Any]:
    return server.run_pod("shared")


def test_exec_gives_both_streams_and_the_code(server: Server, pod: tuple[str, Any]) -> None:
    container = server.started(*pod, name="exec")
    answer = server.exec(container, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out\n", b"err\n", 7)
    assert server.exec(container, "sh", "-c", "kill -9 $$").exit_code == 137
    server.stop(container, timeout=0)
    server.remove(container)


def test_a_daemon_that_keeps_the_pipe_does_not_keep_the_exec(server: Server, pod: tuple[str, Any]) -> None:
    container = server.started(*pod, name="daemon")
    began = time.monotonic()
    answer = server.exec(container, "sh", "-c", "sleep 444 & echo started", timeout=30)
    assert (answer.stdout, answer.exit_code) == (b"started\n", 0)
    assert time.monotonic() - began < 5
    assert server.sh(container, "ps -o args").count("sleep 444\n") == 1, "the daemon was left alone"
    with pytest.raises(TimedOut):
        server.exec(container, "sleep", "445", timeout=1)
    assert server.sh(container, "ps -o args").count("sleep 444\n") == 1, "another exec's deadline is not its own"
    server.stop(container, timeout=0)
    server.remove(container)


def test_a_timeout_is_answered_soon_after(server: Server, pod: tuple[str, Any]) -> None:
    container = server.started(*pod, name="timeout")
    began = time.monotonic()
    with pytest.raises(TimedOut):
        server.exec(container, "sleep", "100", timeout=1)
    assert time.monotonic() - began < 1.6  # the promise is 0.1 s on a quiet machine
    server.stop(container, timeout=0)
    server.remove(container)


def test_a_zygote_that_dies_takes_its_execs_and_nothing_else(server: Server, pod: tuple[str, Any]) -> None:
    assert server.process is not None
    container = server.started(*pod, name="zygote")
    failures: list[Exception] = []

    def slow() -> None:
        try:
            server.exec(container, "sleep", "555", timeout=60)
        except CrishimError as error:
            failures.append(error)

    caller = threading.Thread(target=slow)
    caller.start()
    wait_until(lambda: "sleep 555" in server.sh(container, "ps -o args"), "the exec")
    os.kill(_zygote_of(server.process.pid), signal.SIGKILL)
    caller.join(30)
    assert [type(each) for each in failures] == [Unavailable]
    assert server.sh(container, "ps -o args | grep -c '[s]leep 555' || true").strip() == "0"
    assert server.exec(container, "true").exit_code == 0
    sandbox, config = server.run_pod("afterwards")
    server.started(sandbox, config)
    server.remove_pod(sandbox)
    server.stop(container, timeout=0)
    server.remove(container)


def _zygote_of(server: int) -> int:
    for path in Path(f"/proc/{server}/task").glob("*/children"):
        for pid in path.read_text().split():
            if Path(f"/proc/{pid}/comm").read_text() == "crishim-zygote\n":
                return int(pid)
    raise AssertionError("the server has no zygote")


def test_the_security_context_reaches_init_and_exec(server: Server, pod: tuple[str, Any]) -> None:
    config = container_config("sh", "-c", "cat /proc/self/status; id; sleep 1000", name="secure")
    context = config.linux.security_context
    context.run_as_user.value, context.run_as_group.value = 1000, 1001
    context.supplemental_groups.extend([2000, 2001])
    context.no_new_privs = True
    context.readonly_rootfs = True
    context.capabilities.drop_capabilities.append("ALL")
    context.capabilities.add_capabilities.append("net_bind_service")
    context.seccomp.profile_type = m.SecurityProfile.RuntimeDefault
    context.masked_paths.extend(["/proc/keys", "/sys/firmware"])
    context.readonly_paths.append("/proc/sys")
    container = server.create_config(*pod, config)
    server.start_container(container)
    log = server.logs / "shared/secure/0.log"
    text = wait_until(lambda: log.read_text() if "uid=" in log.read_text() else "", "the output of id")
    for seen in (text, server.sh(container, "cat /proc/self/status; id")):
        assert "Seccomp:\t2" in seen and "NoNewPrivs:\t1" in seen
        assert re.search(r"CapBnd:\t0000000000000400", seen), seen
        assert "uid=1000(user) gid=1001 groups=10(wheel),1001,2000,2001" in seen  # wheel is the image's
    assert server.exec(container, "touch", "/x").exit_code != 0
    assert server.exec(container, "sh", "-c", "cat /proc/keys | head -c1").stdout == b""
    user = server.status(container).user.linux
    assert (user.uid, user.gid, set(user.supplemental_groups)) == (1000, 1001, {10, 1001, 2000, 2001})
    server.stop(container, timeout=0)
    server.remove(container)


def test_limits_are_in_force_and_can_be_changed(server: Server, pod: tuple[str, Any]) -> None:
    config = container_config(name="limits")
    config.linux.resources.memory_limit_in_bytes = 64 << 20
    config.linux.resources.cpu_shares = 512
    container = server.create_config(*pod, config)
    server.start_container(container)
    read = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null || true"
    assert server.sh(container, read).strip() == str(64 << 20)
    request = m.UpdateContainerResourcesRequest(
        container_id=container, linux=m.LinuxContainerResources(memory_limit_in_bytes=96 << 20)
    )
    server.client.runtime("UpdateContainerResources", request)
    assert server.sh(container, read).strip() == str(96 << 20)
    resources = server.status(container).resources.linux
    assert (resources.memory_limit_in_bytes, resources.cpu_shares) == (96 << 20, 512)
    server.stop(container, timeout=0)
    server.remove(container)


def test_an_oom_score_is_not_changed_and_the_status_says_so(server: Server, pod: tuple[str, Any]) -> None:
    config = container_config(name="score")
    config.linux.resources.oom_score_adj = 300
    container = server.create_config(*pod, config)
    server.start_container(container)
    linux = m.LinuxContainerResources(cpu_shares=512, oom_score_adj=900)
    server.client.runtime(
        "UpdateContainerResources", m.UpdateContainerResourcesRequest(container_id=container, linux=linux)
    )
    assert server.sh(container, "cat /proc/1/oom_score_adj /proc/self/oom_score_adj") == "300\n300\n"
    resources = server.status(container).resources.linux
    assert (resources.cpu_shares, resources.oom_score_adj) == (512, 300)
    server.stop(container, timeout=0)
    server.remove(container)
