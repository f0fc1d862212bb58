"""Pods with a user namespace through CRI: owners of files, execs, a restart of the server, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crishim.cri.client import messages as m
from crishim.errors import InvalidSpec
from tests.support.faults import pids_of, remove_all, server_with_image
from tests.support.image_archive import shell_layer, write_layers
from tests.support.layers import archive, directory, entry
from tests.support.server import NEEDS_SERVER, Server, container_config, pod_config, wait_until

pytestmark = pytest.mark.skipif(not NEEDS_SERVER, reason="a server needs root, nsenter and ip")

HOST_ID = 327_680
LENGTH = 65_536


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server_with_image(tmp_path_factory.mktemp("userns") / "node") as server:
        yield server


@pytest.fixture(autouse=True)
def _nothing_left(server: Server) -> Iterator[None]:
    yield
    remove_all(server)
    wait_until(lambda: not server.left_behind(), "an empty node")


def users(host: int = HOST_ID, length: int = LENGTH) -> Any:
    mapping = m.IDMapping(host_id=host, container_id=0, length=length)
    return m.UserNamespace(mode=m.POD, uids=[mapping], gids=[mapping])


def pod(server: Server, name: str = "pod", **changes: Any) -> Any:
    config = pod_config(name, server.logs)
    options = config.linux.security_context.namespace_options
    options.userns_options.CopyFrom(users())
    for key, value in changes.items():
        setattr(options, key, value)
    return config


def container(*command: str, **changes: Any) -> Any:
    config = container_config(*command, **changes)
    config.linux.security_context.namespace_options.userns_options.CopyFrom(users())
    return config


def started(server: Server, config: Any, made: Any) -> str:
    sandbox = server.run_pod_config(config)
    found = server.create_config(sandbox, config, made)
    server.start_container(found)
    return found


def test_the_handlers_tell_that_they_can(server: Server) -> None:
    status = server.client.runtime("Status", m.StatusRequest())
    assert all(handler.features.user_namespaces for handler in status.runtime_handlers)
    assert status.features.user_namespaces_host_network


def test_root_of_the_pod_is_nobody_on_the_host(server: Server) -> None:
    found = started(server, pod(server), container())
    assert server.sh(found, "cat /proc/self/uid_map").split() == ["0", str(HOST_ID), str(LENGTH)]
    assert server.sh(found, "id -u; stat -c %u:%g / /bin /etc/hosts /etc/resolv.conf /dev/shm").split() == [
        "0", "0:0", "0:0", "0:0", "0:0", "0:0"
    ]  # fmt: skip
    server.sh(found, "echo made > /made; echo more >> /etc/hosts")
    assert (server.root / "containers" / found / "upper/made").stat().st_uid == HOST_ID


def test_an_exec_of_a_user_can_open_its_output_again(server: Server) -> None:
    made = container()
    made.linux.security_context.run_as_user.value = 1000
    found = started(server, pod(server), made)
    assert server.sh(found, "id -u; echo again > /dev/stdout").split() == ["1000", "again"]


def test_the_pods_network_is_its_own_to_configure(server: Server) -> None:
    made = container()
    made.linux.security_context.capabilities.add_capabilities.append("NET_ADMIN")
    found = started(server, pod(server), made)
    assert "lo" in server.sh(found, "ls /sys/class/net").split()
    server.sh(found, "ip link add dummy0 type dummy 2>/dev/null || ip link set lo down")
    assert server.sh(found, "cat /proc/sys/net/ipv4/ping_group_range").split() == ["0", str(LENGTH - 1)]


def test_mounts_of_the_kubelet_are_mapped(server: Server, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    os.chown(volume, 5, 6)
    made = container()
    mapping = users().uids
    made.mounts.append(
        m.Mount(container_path="/volume", host_path=str(volume), uidMappings=mapping, gidMappings=mapping)
    )
    found = started(server, pod(server), made)
    assert server.sh(found, "stat -c %u:%g /volume; touch /volume/new").split() == ["5:6"]
    assert (volume / "new").stat().st_uid == 0


def test_volumes_of_images_are_mapped_and_on_the_disk_belong_to_the_images_owners(
    server: Server, tmp_path: Path
) -> None:
    owned = [directory("data", uid=5, gid=6), (entry("data/file", uid=7), b"read\n")]
    layers = [shell_layer({}, {}), archive(owned), archive([("more", b"")])]
    path = write_layers(tmp_path / "i.tar", "crishim.local/owned:1", layers, {"Volumes": {"/data": {}, "/new": {}}})
    server.client.load(str(path))
    image = m.ImageSpec(image="crishim.local/owned:1")
    mapping = users().uids
    volumes = [
        m.Mount(container_path="/image", image=image, readonly=True, uidMappings=mapping, gidMappings=mapping),
        m.Mount(container_path="/part", image=image, readonly=True, image_sub_path="data"),
    ]
    volumes[1].uidMappings.extend(mapping)
    volumes[1].gidMappings.extend(mapping)
    found = started(server, pod(server), container(image=image, mounts=volumes))
    stat = "stat -c %u:%g /data /data/file /new /image/data/file /part /part/file"
    assert server.sh(found, stat).split() == ["5:6", "7:0", "0:0", "7:0", "5:6", "7:0"]
    server.sh(found, "touch /data/made /new/made; chown 9 /new/made")
    made = server.root / "containers" / found / "volumes"
    assert [(made / name).stat().st_uid for name in ("0/made", "1/made", "0/file")] == [0, 9, 7]


def test_a_shared_pid_namespace_and_the_hosts_network(server: Server) -> None:
    config = pod(server, pid=m.POD, network=m.NODE)
    config.hostname = ""
    made = container()
    made.linux.security_context.namespace_options.pid = m.POD
    made.linux.security_context.namespace_options.network = m.NODE
    found = started(server, config, made)
    assert server.sh(found, "cat /proc/1/comm; ls -d /sys/fs/cgroup").split() == ["crishim-podinit", "/sys/fs/cgroup"]


def test_a_restarted_server_knows_them(server: Server) -> None:
    found = started(server, pod(server), container())
    server.kill()
    server.start()
    assert server.sh(found, "id -u; cat /proc/self/uid_map").split() == ["0", "0", str(HOST_ID), str(LENGTH)]
    server.stop(found, 0)


def test_a_container_is_in_its_pods_cgroup(server: Server) -> None:
    """With a user namespace containerd's were outside of it (CVE-2025-47291), and of its limits."""
    found = started(server, pod(server), container())
    (entry,) = server.client.runtime("ListContainers", m.ListContainersRequest()).containers
    (pid,) = pids_of(server, found)
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    paths = {line.split(":", 2)[2] for line in lines if "memory" in line or line.startswith("0::")}
    assert paths == {server.container_cgroup(entry.pod_sandbox_id, found)}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.linux.security_context.namespace_options.ClearField("userns_options"), "they differ from those"),
        (
            lambda c: c.linux.security_context.namespace_options.userns_options.CopyFrom(users(HOST_ID * 2)),
            "they differ from those",
        ),
        (lambda c: setattr(c.linux.security_context.run_as_user, "value", 70_000), "user 70000 of the process is not"),
        (
            lambda c: c.mounts.append(m.Mount(container_path="/x", host_path="/etc", uidMappings=users(1 << 20).uids)),
            "uidMappings: they differ",
        ),
    ],
)
def test_what_is_refused(server: Server, change: Any, sentence: str) -> None:
    config, made = pod(server), container()
    change(made)
    sandbox = server.run_pod_config(config)
    with pytest.raises(InvalidSpec, match=sentence):
        server.create_config(sandbox, config, made)


def test_a_privileged_pod_has_none(server: Server) -> None:
    config = pod(server)
    config.linux.security_context.privileged = True
    with pytest.raises(InvalidSpec, match="privileged: true cannot go with a user namespace"):
        server.run_pod_config(config)


def test_mappings_without_a_user_namespace_are_refused(server: Server) -> None:
    sandbox, config = server.run_pod("plain")
    made = container_config()
    made.mounts.append(m.Mount(container_path="/x", host_path="/etc", uidMappings=users().uids))
    with pytest.raises(InvalidSpec, match="the pod has no user namespace"):
        server.create_config(sandbox, config, made)
