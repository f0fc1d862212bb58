"""Options of runtime handlers that need cgroup v2: cgroups that a container may divide, and limits it may not lift."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from crishim.cgroups.hierarchy import detect
from crishim.cri.client import messages as m
from crishim.model.node import CgroupDriver
from tests.node.service import systemctl
from tests.support.faults import server_with_image
from tests.support.server import Server, container_config, pod_config

pytestmark = pytest.mark.skipif(
    detect().mode != "v2" or os.geteuid() != 0, reason="this host has no pure cgroup v2, or root is missing"
)

HANDLERS = """
[runtimes.nested]
cgroup_writable = true
pids_limit = 64
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server_with_image(tmp_path_factory.mktemp("handlers") / "node", config=HANDLERS) as server:
        yield server


def started(server: Server, name: str, handler: str, users: Any = None) -> str:
    """A container with a limit of its memory; `users` are those of its pod."""
    config = pod_config(name, server.logs)
    config.linux.security_context.namespace_options.userns_options.CopyFrom(users or m.UserNamespace(mode=m.NODE))
    request = m.RunPodSandboxRequest(config=config, runtime_handler=handler)
    pod: tuple[str, Any] = str(server.client.runtime("RunPodSandbox", request).pod_sandbox_id), config
    made = container_config("sleep", "1000")
    made.linux.resources.memory_limit_in_bytes = 64 << 20
    options = made.linux.security_context.namespace_options.userns_options
    options.CopyFrom(config.linux.security_context.namespace_options.userns_options)
    container = server.create_config(*pod, made)
    server.start_container(container)
    return container


def test_a_container_divides_its_cgroup_and_keeps_its_limits(server: Server) -> None:
    container = started(server, "nested", "nested")
    script = "cd /sys/fs/cgroup && cat pids.max memory.max && mkdir inner && echo 0 > inner/cgroup.procs"
    assert server.sh(container, script).split() == ["64", str(64 << 20)]
    for name in ("memory.max", "pids.max"):
        refused = server.exec(container, "sh", "-c", f"echo max > /sys/fs/cgroup/{name}")
        assert refused.exit_code != 0, name
    assert server.sh(container, "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/memory.max").split() == [
        "64",
        str(64 << 20),
    ]
    server.remove(container)


def test_root_of_a_user_namespace_divides_its_cgroup_too(server: Server) -> None:
    mapping = m.IDMapping(host_id=327_680, container_id=0, length=65_536)
    users = m.UserNamespace(mode=m.POD, uids=[mapping], gids=[mapping])
    container = started(server, "owned", "nested", users)
    script = """
        cd /sys/fs/cgroup && mkdir inner && echo 1 > inner/cgroup.procs && echo 0 > inner/cgroup.procs
        echo +memory > cgroup.subtree_control && echo 8388608 > inner/memory.max && cat inner/memory.max
        for limit in memory.max pids.max; do echo max > $limit && echo lifted; done 2> /dev/null
        stat -c %u . cgroup.procs memory.max
    """
    assert server.sh(container, script).split() == ["8388608", "0", "0", "65534"]
    if server.driver is CgroupDriver.SYSTEMD:
        systemctl("daemon-reload")
    assert server.sh(container, "cat /proc/1/cgroup; stat -c %u /sys/fs/cgroup").split() == ["0::/inner", "0"]
    server.remove(container)


def test_without_the_option_cgroups_are_read_only(server: Server) -> None:
    container = started(server, "plain", "")
    refused = server.exec(container, "mkdir", "/sys/fs/cgroup/inner")
    assert refused.exit_code != 0 and b"Read-only file system" in refused.stderr
    server.remove(container)
