"""SELinux on a node that enforces it: labels of processes and files, levels of pods, relabelled volumes.

Boot the node with `--selinux`; the policy is `containers.cil`, which confines containers and nobody else.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crishim.cri.client import messages as m
from crishim.errors import CrishimError
from crishim.linux.syscall import number
from tests.node import policy
from tests.node.service import SystemdService
from tests.support.server import container_config, pod_config

pytestmark = pytest.mark.skipif(
    not policy.SELINUXFS.is_dir() or os.geteuid() != 0, reason="SELinux is not enabled, or root is missing"
)

LABEL = re.compile(r"system_u:system_r:container_t:(s0:c\d+,c\d+)")
_KEYCTL_GET_SECURITY = 17


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> SystemdService:
    """A server that was started under the policy."""
    policy.load(tmp_path_factory.mktemp("policy"))
    started: SystemdService = request.getfixturevalue("systemd_server")
    return started


@pytest.fixture
def pod(server: SystemdService, request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    """(id, configuration) of a pod of this test's own."""
    sandbox, config = server.run_pod(request.node.name.replace("_", "-")[:60].rstrip("-"))
    yield sandbox, config
    server.remove_pod(sandbox)


def started(server: SystemdService, pod: tuple[str, Any], name: str = "main", **security: Any) -> str:
    config = container_config("sleep", "1000", name=name)
    for key, value in security.items():
        if key == "mounts":
            for each in value:
                config.mounts.add(**each)
        elif key == "selinux":
            config.linux.security_context.selinux_options.CopyFrom(m.SELinuxOption(**value))
        else:
            setattr(config.linux.security_context, key, value)
    container = server.create_config(*pod, config)
    server.start_container(container)
    return container


def label_of(server: SystemdService, container: str, pid: str = "1") -> str:
    return server.sh(container, f"cat /proc/{pid}/attr/current").strip("\0\n")


def level_of(server: SystemdService, container: str) -> str:
    match = LABEL.fullmatch(label_of(server, container))
    assert match, label_of(server, container)
    return match[1]


def file_label(path: Path, *, follow: bool = True) -> str:
    return os.getxattr(path, "security.selinux", follow_symlinks=follow).decode().rstrip("\0")


def reads(server: SystemdService, container: str, path: str) -> bool:
    answer = server.exec(container, "cat", path)
    assert answer.exit_code == 0 or b"ermission denied" in answer.stderr, answer
    return bool(answer.exit_code == 0)


def volume(directory: Path, name: str = "volume") -> Path:
    place = directory / name
    (place / "inner").mkdir(parents=True)
    (place / "file").write_text("content")
    (place / "inner/file").write_text("inner")
    return place


def mount(path: Path, *, relabel: bool = True, at: str = "/volume") -> dict[str, Any]:
    return {"host_path": str(path), "container_path": at, "selinux_relabel": relabel}


def test_init_and_execs_have_the_label_of_their_pod(server: SystemdService, pod: tuple[str, Any]) -> None:
    assert file_label(server.root / "layers") == "system_u:object_r:container_ro_file_t:s0"
    container = started(server, pod, no_new_privs=True)
    level = level_of(server, container)
    assert label_of(server, container, "self") == f"system_u:system_r:container_t:{level}"
    other = started(server, pod, "other")
    assert level_of(server, other) == level
    context = f'context="system_u:object_r:container_file_t:{level}"'
    lines = server.sh(container, "cat /proc/1/mountinfo").splitlines()
    targets = {line.split()[4] for line in lines if context in line}
    assert targets >= {"/", "/dev", "/dev/pts", "/dev/shm"}
    for path in ("/etc/resolv.conf", "/etc/hosts", "/etc/hostname"):
        assert reads(server, container, path)
    server.sh(container, "echo x > /dev/shm/shared && echo x > /written && ls /dev/mqueue && echo x > /dev/null")
    assert server.sh(other, "cat /dev/shm/shared") == "x\n", "memory is shared in the pod"


def test_the_keyring_of_a_container_has_its_label(server: SystemdService, pod: tuple[str, Any]) -> None:
    container = started(server, pod)
    (line,) = [each for each in Path("/proc/keys").read_text().splitlines() if f"_ses.{container}" in each]
    buffer = ctypes.create_string_buffer(200)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.syscall(number("keyctl"), _KEYCTL_GET_SECURITY, int(line.split()[0], 16), buffer, 200) > 0
    assert buffer.value.decode() == label_of(server, container)


def test_two_pods_cannot_read_each_others_files(server: SystemdService, pod: tuple[str, Any], tmp_path: Path) -> None:
    shared = volume(tmp_path)
    first = started(server, pod, mounts=[mount(shared)])
    assert reads(server, first, "/volume/file") and reads(server, first, "/volume/inner/file")
    server.sh(first, "echo mine > /volume/inner/new")
    second_pod = server.run_pod("second")
    second = started(server, second_pod, mounts=[mount(shared, relabel=False)])
    assert level_of(server, first) != level_of(server, second)
    for path in ("/volume/file", "/volume/inner/new"):
        assert not reads(server, second, path)
    assert server.exec(second, "sh", "-c", "echo x > /volume/file").exit_code != 0
    server.remove_pod(second_pod[0])


def test_files_of_the_host_are_closed_to_a_root_with_all_capabilities(
    server: SystemdService, pod: tuple[str, Any], tmp_path: Path
) -> None:
    config = container_config("sleep", "1000")
    security = config.linux.security_context
    security.capabilities.add_capabilities.append("ALL")
    security.seccomp.profile_type = m.SecurityProfile.Unconfined
    config.mounts.add(host_path="/", container_path="/host")
    container = server.create_config(*pod, config)
    server.start_container(container)
    assert not reads(server, container, "/host/etc/shadow")
    for script in (f"echo x > /host{tmp_path}/file", "ls /host/root", "echo h > /host/proc/sysrq-trigger"):
        assert server.exec(container, "sh", "-c", script).exit_code != 0, script
    assert not (tmp_path / "file").exists()


def test_a_privileged_container_is_not_confined(server: SystemdService, tmp_path: Path) -> None:
    place = volume(tmp_path)
    config = pod_config("privileged", server.logs)
    config.linux.security_context.privileged = True
    pod = server.run_pod_config(config), config
    container = started(server, pod, privileged=True, mounts=[mount(place, relabel=False)])
    assert label_of(server, container) == "system_u:system_r:spc_t:s0"
    assert reads(server, container, "/volume/file")
    server.remove_pod(pod[0])


def test_who_shares_the_hosts_processes_is_not_confined_unless_it_asks(server: SystemdService) -> None:
    config = pod_config("host-pid", server.logs)
    config.linux.security_context.namespace_options.pid = m.NODE
    pod = server.run_pod_config(config), config
    for name, options, kind in (("plain", {}, "spc_t"), ("asks", {"type": "container_t"}, "container_t")):
        created = container_config("sleep", "1000", name=name)
        created.linux.security_context.namespace_options.pid = m.NODE
        if options:
            created.linux.security_context.selinux_options.CopyFrom(m.SELinuxOption(**options))
        container = server.create_config(*pod, created)
        server.start_container(container)
        assert label_of(server, container, "self").split(":")[2] == kind
    server.remove_pod(pod[0])


def test_a_container_names_parts_of_its_label(server: SystemdService, pod: tuple[str, Any]) -> None:
    container = started(server, pod, selinux={"level": "s0:c4,c5"})
    assert level_of(server, container) == "s0:c4,c5"
    server.sh(container, "echo x > /written")
    whole = {"user": "system_u", "role": "system_r", "type": "svirt_lxc_net_t", "level": "s0:c4,c5"}
    assert level_of(server, started(server, pod, "whole", selinux=whole)) == "s0:c4,c5"


#: (options, what is said of them)
WRONG = (
    ({"level": "s0,c4,c5"}, r"selinux_options\.level is \"s0,c4,c5\""),
    ({"level": "s9"}, r"selinux_options: they make the context 'system_u:system_r:container_t:s9'"),
    ({"type": "no_such_t"}, r"selinux_options: they make the context 'system_u:system_r:no_such_t:s0:c"),
)


def test_a_label_that_the_policy_does_not_know_is_refused(server: SystemdService, pod: tuple[str, Any]) -> None:
    for options, message in WRONG:
        with pytest.raises(CrishimError, match=message):
            started(server, pod, selinux=options)
        config = pod_config("wrong", server.logs)
        config.linux.security_context.selinux_options.CopyFrom(m.SELinuxOption(**options))
        with pytest.raises(CrishimError, match=message):
            server.run_pod_config(config)


def test_a_volume_is_relabelled_and_nothing_beside_it(
    server: SystemdService, pod: tuple[str, Any], tmp_path: Path
) -> None:
    place, outside = volume(tmp_path), volume(tmp_path, "outside")
    mounted = place / "mounted"
    mounted.mkdir()
    (place / "link").symlink_to(outside / "file")
    (place / "directory").symlink_to(outside)
    os.mkfifo(place / "fifo")
    before = file_label(outside / "file")
    subprocess.run(["mount", "--bind", str(outside), str(mounted)], check=True)
    try:
        container = started(server, pod, mounts=[mount(place)])
        wanted = f"system_u:object_r:container_file_t:{level_of(server, container)}"
        for name in (".", "file", "inner", "inner/file", "fifo", "link", "directory"):
            assert file_label(place / name, follow=False) == wanted, name
        for path in (outside, outside / "file", outside / "inner/file", mounted):
            assert file_label(path) == before, path
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_directories_of_the_host_are_never_relabelled(
    server: SystemdService, pod: tuple[str, Any], tmp_path: Path
) -> None:
    link, bind = tmp_path / "link", tmp_path / "bind"
    link.symlink_to("/etc")
    bind.mkdir()
    subprocess.run(["mount", "--bind", "/opt", str(bind)], check=True)
    try:
        fixed = map(Path, ("/", "/etc", "/usr/share", "/var/lib", "/proc"))
        for source in (*fixed, link, bind, server.root / "layers"):
            before = file_label(source)
            with pytest.raises(CrishimError, match=r"config\.mounts\[0\]\.selinux_relabel: .* a directory of the host"):
                started(server, pod, mounts=[mount(source)])
            assert file_label(source) == before, source
    finally:
        subprocess.run(["umount", str(bind)], check=True)


def test_a_pod_in_a_user_namespace_has_labels(server: SystemdService, tmp_path: Path) -> None:
    place = volume(tmp_path)
    os.chmod(tmp_path, 0o755)
    mapping = m.IDMapping(host_id=100_000, container_id=0, length=65536)
    users = m.UserNamespace(mode=m.POD, uids=[mapping], gids=[mapping])
    config = pod_config("users", server.logs)
    config.linux.security_context.namespace_options.userns_options.CopyFrom(users)
    pod = server.run_pod_config(config), config
    created = container_config("sleep", "1000")
    created.linux.security_context.namespace_options.userns_options.CopyFrom(users)
    created.mounts.add(**mount(place))
    container = server.create_config(*pod, created)
    server.start_container(container)
    level = level_of(server, container)
    assert label_of(server, container, "self").endswith(level)
    server.sh(container, "echo x > /written && echo x > /dev/shm/file && cat /volume/file && echo x > /dev/null")
    server.remove_pod(pod[0])


def test_an_image_volume_can_be_read(server: SystemdService, pod: tuple[str, Any]) -> None:
    config = container_config("sleep", "1000")
    config.mounts.add(container_path="/image", image=m.ImageSpec(image=config.image.image), readonly=True)
    container = server.create_config(*pod, config)
    server.start_container(container)
    assert "busybox" in server.sh(container, "ls /image/bin")


def test_a_terminal_belongs_to_the_container(server: SystemdService, pod: tuple[str, Any]) -> None:
    config = container_config("sh", "-c", "tty && echo on a terminal", name="terminal")
    config.tty = True
    container = server.create_config(*pod, config)
    server.start_container(container)
    assert server.exited(container).exit_code == 0


def test_the_next_server_knows_the_labels_of_the_pods(server: SystemdService, pod: tuple[str, Any]) -> None:
    level = level_of(server, started(server, pod))
    server.restart()
    assert level_of(server, started(server, pod, "later")) == level
    shown = json.loads(server.client.runtime("Status", m.StatusRequest(verbose=True)).info["config"])["seLinux"]
    assert shown["enabled"] and shown["problem"] == ""
    assert shown["labels"]["process"] == "system_u:system_r:container_t:s0"
    assert shown["labels"]["privileged"] == "system_u:system_r:spc_t:s0"
