"""Pods and containers whose fields attack the node, through the CRI socket of a real server.

A kubelet is trusted, and what its users write into a pod is not: it arrives here in names, annotations, sysctls, paths.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crishim.cgroups.hierarchy import Hierarchy, detect
from crishim.cgroups.systemd import Systemd
from crishim.cri.client import messages as m
from crishim.errors import CrishimError, InvalidSpec, NotFound, Unsupported
from crishim.runtime.places import StoredSpec
from crishim.runtime.units import Units
from crishim.store import codec
from tests.support.hostile import resident_bytes
from tests.support.server import Server, container_config, pod_config, wait_until

CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
UNKNOWN = "0" * 64

Load = Callable[..., m.ImageSpec]


def refused(call: Callable[[], object], *words: str, error: type[CrishimError] = InvalidSpec) -> None:
    """The call is refused by a sentence with all these words."""
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error, caught.value
    for word in words:
        assert word in str(caught.value), caught.value


def end(server: Server, container: str) -> None:
    server.stop(container, timeout=0)
    server.remove(container)


def spec_text(server: Server, sandbox: str, container: str) -> str:
    """All that the executor is told of a container, as it was written down."""
    return (server.state / "sandboxes" / sandbox / "specs" / container).read_text()


@pytest.mark.parametrize("user", ["1000:", ":5", "0x0", "1 000", "+1", " 1", "1e3", "4294967295", "4294967296", "-1"])
def test_t22_a_user_that_reads_in_two_ways_is_refused(server: Server, sandbox: tuple[str, Any], user: str) -> None:
    """CVE-2026-30892, CVE-2024-40635: a user that one parser takes for a number and another for a name, or for root.

    Defence: digits only, within 32 bits, and what begins like a number is never looked up as a name.
    """
    config = container_config(name="who")
    config.linux.security_context.run_as_username = user
    refused(lambda: server.create_config(*sandbox, config), repr(user) if user != ":5" else ":5")


@pytest.mark.parametrize("path", ["/proc", "/proc/sys", "/dev/../proc", "//proc//self/attr"])
def test_t04_a_mount_over_proc_is_refused(server: Server, sandbox: tuple[str, Any], path: str) -> None:
    """CVE-2019-16884, as a volume of a pod."""
    mount = m.Mount(container_path=path, host_path="/tmp")
    refused(lambda: server.create(*sandbox, mounts=[mount]), "mounts[0].container_path")


def test_t09_a_mount_that_is_too_long_or_holds_a_nul_is_refused(server: Server, sandbox: tuple[str, Any]) -> None:
    """CVE-2021-43784: more text than a length field can say, and a text that ends in its middle."""
    for path in ("/" + "x" * 70_000, "/tmp\0/etc"):
        for field in ("host_path", "container_path"):
            mount = m.Mount(**{"container_path": "/data", "host_path": "/tmp", field: path})
            refused(lambda mount=mount: server.create(*sandbox, mounts=[mount]), f"mounts[0].{field}")  # type: ignore[misc]


@pytest.mark.parametrize("added", [(), ("NET_ADMIN", "SYS_PTRACE")], ids=["default", "added"])
def test_t10_nothing_is_inheritable(server: Server, sandbox: tuple[str, Any], added: tuple[str, ...]) -> None:
    """CVE-2022-24769, CVE-2022-27652: for the init and for an exec, with and without added capabilities."""
    config = container_config("sh", "-c", "grep CapInh /proc/self/status > /tmp/init; sleep 1000", name="inherit")
    config.linux.security_context.capabilities.add_capabilities.extend(added)
    container = server.create_config(*sandbox, config)
    server.start_container(container)
    shown = wait_until(lambda: server.sh(container, "cat /tmp/init; grep CapInh /proc/self/status"), "both")
    assert [line.split()[1] for line in shown.splitlines()] == ["0" * 16] * 2
    end(server, container)


def test_t32_nobody_else_can_enter_our_directories(server: Server, sandbox: tuple[str, Any]) -> None:
    """CVE-2021-41103, CVE-2024-25621: another user of the node runs a set-user-id program from a container's root.

    Defence: the directories are root's alone.
    """
    for top in (server.state, server.root):
        fd = os.open(top, os.O_PATH)
        try:
            assert any(top.iterdir())
            for program in ("ls", "cat"):
                command = (
                    [program, f"/proc/self/fd/{fd}/"] if program == "ls" else [program, f"/proc/self/fd/{fd}/lock"]
                )
                tried = subprocess.run(command, user=65534, group=65534, extra_groups=[], pass_fds=[fd],
                                       capture_output=True, text=True)  # fmt: skip
                assert tried.returncode != 0 and tried.stderr.rstrip().endswith("Permission denied"), tried
        finally:
            os.close(fd)


def test_t33_labels_of_the_hosts_files_are_left_alone(server: Server, sandbox: tuple[str, Any], tmp_path: Path) -> None:
    """CVE-2021-43816: a volume is relabelled for the container, and so are files of the host that it leads to.

    Defence: nothing is relabelled on a node without SELinux, whatever is asked for; on one with it never a directory of
    the host, and nothing by links (`test_relabel.py`, and `test_selinux.py` of the node).
    """
    label = b"system_u:object_r:etc_t:s0\0"
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file"):
        os.setxattr(path, "security.selinux", label)
    config = container_config(name="relabel", mounts=[
        m.Mount(container_path="/data", host_path=str(tmp_path), selinux_relabel=True),
        m.Mount(container_path="/etc/hosts", host_path=str(tmp_path / "file"), selinux_relabel=True),
    ])  # fmt: skip
    config.linux.security_context.selinux_options.level = "s0:c1,c2"
    container = server.create_config(*sandbox, config)
    server.start_container(container)
    assert {os.getxattr(path, "security.selinux") for path in (tmp_path, tmp_path / "file")} == {label}
    end(server, container)


@pytest.mark.parametrize(
    ("key", "network", "ipc"),
    [
        ("net.ipv4.ip_forward", m.NODE, m.POD),
        ("net/core/somaxconn", m.NODE, m.POD),
        ("kernel.shm_rmid_forced", m.POD, m.NODE),
        ("fs.mqueue.msg_max", m.POD, m.NODE),
        ("kernel.domainname", m.NODE, m.POD),
        ("kernel.core_pattern", m.POD, m.POD),
        ("vm.swappiness", m.POD, m.POD),
    ],
)
def test_t34_a_sysctl_of_the_host_is_refused(server: Server, key: str, network: Any, ipc: Any) -> None:
    """CVE-2022-0532: a sysctl of a namespace that the pod shares with the host, or of none at all."""
    path = Path("/proc/sys", key.replace(".", "/"))
    before = path.read_text()
    name = "sysctl-" + "-".join(key.replace("/", ".").replace("_", "-").split("."))
    config = pod_config(name, server.logs, host_network=network == m.NODE)
    config.linux.security_context.namespace_options.ipc = ipc
    config.linux.sysctls[key] = "1"
    refused(lambda: server.run_pod_config(config), "sysctls", key)
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kernel.shm_rmid_forced", "1024+kernel.core_pattern=|/x"),
        ("net.ipv4.ip_forward", "1\nkernel.core_pattern=|/x"),
        ("net.ipv4.ip_forward", "1 kernel.core_pattern=|/x"),
        ("net.ipv4.conf.all.forwarding+kernel.core_pattern", "1"),
        ("net.ipv4.ip_forward=1+kernel.core_pattern", "|/x"),
        ("../../etc/passwd", "1"),
        ("net/../kernel/core_pattern", "|/x"),
        ("net..kernel.core_pattern", "|/x"),
    ],
)
def test_t35_a_sysctl_says_one_thing(server: Server, key: str, value: str) -> None:
    """CVE-2022-0811: a value that holds a second assignment, for a runtime that joins them to one text.

    Defence: names and values are checked, and one key is one write.
    """
    before = CORE_PATTERN.read_text()
    config = pod_config("sysctl", server.logs)
    config.linux.sysctls[key] = value
    refused(lambda: server.run_pod_config(config), "sysctls")
    assert CORE_PATTERN.read_text() == before


def test_t36_endless_output_is_cut_and_costs_no_memory(server: Server, sandbox: tuple[str, Any]) -> None:
    """CVE-2022-1708, CVE-2022-31030: an exec that writes for ever fills the memory of the server.

    Defence: 16 MiB are kept, the rest is read and dropped.
    """
    assert server.process is not None
    container = server.started(*sandbox, name="flood")
    before = resident_bytes(server.process.pid)
    answer = server.exec(container, "sh", "-c", "head -c 2000000000 /dev/zero", timeout=100)
    assert answer.exit_code == 0
    assert len(answer.stdout) == (16 << 20) - (64 << 10)
    assert resident_bytes(server.process.pid) - before < 64 << 20
    end(server, container)


def test_t39_the_primary_group_is_among_the_groups(server: Server, sandbox: tuple[str, Any]) -> None:
    """CVE-2022-2995, CVE-2023-25173: what the primary group alone denies is allowed once a program changes it."""
    for policy in (m.Merge, m.Strict):
        config = container_config(name="groups")
        security = config.linux.security_context
        security.run_as_user.value, security.run_as_group.value = 1000, 2000
        security.supplemental_groups.append(3000)
        security.supplemental_groups_policy = policy
        container = server.create_config(*sandbox, config)
        server.start_container(container)
        groups = server.sh(container, "grep Groups /proc/self/status; grep Groups /proc/1/status")
        assert [{"2000", "3000"} <= {*line.split()} for line in groups.splitlines()] == [True, True]
        end(server, container)


def test_t40_a_home_of_two_lines_makes_no_user(server: Server, sandbox: tuple[str, Any]) -> None:
    """CVE-2022-4318: HOME with a line of its own, for a runtime that adds the user to /etc/passwd.

    Defence: no file of the image is written.
    """
    home = "/x\nroot2::0:0::/root:/bin/sh"
    config = container_config(name="home", envs=[m.KeyValue(key="HOME", value=home.encode())])
    config.linux.security_context.run_as_user.value = 4321
    container = server.create_config(*sandbox, config)
    server.start_container(container)
    assert server.sh(container, 'printf %s "$HOME"') == home
    assert "root2" not in server.sh(container, "cat /etc/passwd /etc/group")
    end(server, container)


#: what other runtimes read from annotations and labels
STEERING = {
    "io.kubernetes.cri-o.UnifiedCgroup.steered": "memory.max=max;pids.max=max",
    "io.kubernetes.cri-o.umask": "0000",
    "io.kubernetes.cri-o.Devices": "/dev/mem",
    "io.kubernetes.cri-o.userns-mode": "auto",
    "io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel": "true",
    "run.oci.mount_context_type": "context",
    "run.oci.keep_original_groups": "1",
    "run.oci.hooks.stderr": "/tmp/steered",
    "org.systemd.property.ExecStopPost": "['/bin/touch', '/tmp/steered']",
    "org.systemd.property.MemoryMax": "uint64 18446744073709551615",
    "cpu-quota.crio.io": "disable",
    "cdi.k8s.io/steered": "vendor.example/device=all",
    "container.apparmor.security.beta.kubernetes.io/steered": "unconfined",
    "io.containerd.runc.v2.group": "steered",
    "crishim.privileged": "true",
}


def steered(name: str) -> Any:
    config = container_config(name=name, annotations=STEERING, labels=STEERING)
    config.linux.resources.memory_limit_in_bytes = 64 << 20
    return config


def test_t41_annotations_set_no_limits(server: Server) -> None:
    """CVE-2023-6476: an annotation of the pod sets limits of cgroups beyond what the kubelet allows.

    Defence: limits come from the resources of the request, and only from there.
    """
    pod = server.run_pod("annotated", annotations=STEERING, labels=STEERING)
    container = server.create_config(*pod, steered("steered"))
    server.start_container(container)
    status = server.status(container)
    directory = _memory_of(server.state, pod[0], container)
    files = (directory / name for name in ("memory.limit_in_bytes", "memory.max"))
    assert [file.read_text() for file in files if file.exists()] == [f"{64 << 20}\n"]
    assert dict(status.annotations) == STEERING, "they are kept for the kubelet"
    end(server, container)
    server.remove_pod(pod[0])


def _memory_of(state: Path, sandbox: str, container: str) -> Path:
    """Directory of the memory controller of a container."""
    hierarchy = detect()
    spec = (state / "sandboxes" / sandbox / "specs" / container).read_text()
    path = spec[spec.index("/crishim-") :].split('"')[0]
    return Path(os.fsdecode(hierarchy.controllers["memory"]) + path)


@pytest.mark.parametrize(
    "file", ["cgroup.kill", "cgroup.procs", "cgroup.freeze", "../memory.max", "memory.max/..", "x"]
)
def test_t41_a_unified_key_is_a_limit_of_this_cgroup(server: Server, sandbox: tuple[str, Any], file: str) -> None:
    """The same with the map for cgroup v2, whose keys are names of files."""
    config = container_config(name="unified")
    config.linux.resources.unified[file] = "1"
    refused(lambda: server.create_config(*sandbox, config), "unified", file)


def test_t42_annotations_and_labels_do_not_reach_the_executor(server: Server) -> None:
    """CVE-2024-3154: an annotation becomes a property of the container's systemd unit, and a command of root.

    Defence: what the executor is told has no place for annotations and labels.
    """
    pod = server.run_pod("steering", annotations=STEERING, labels=STEERING)
    container = server.create_config(*pod, steered("steered"))
    server.start_container(container)
    text = spec_text(server, pod[0], container)
    found = {word for item in STEERING.items() for word in item if word in text}
    assert found <= {"steered", "1", "true", "0000"}, "the container's name, and nothing that steers"
    assert not Path("/tmp/steered").exists()
    server.remove_pod(pod[0])
    assert not Path("/tmp/steered").exists()


class _RecordingSystemd(Systemd):
    """Takes what it is told for one scope."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}

    def version(self) -> int:
        return 255

    def start_scope(self, name: str, pids: Any, properties: Any) -> None:
        assert name.endswith(".scope") and pids == [42]
        self.told = dict(properties)


class _StandingIn:
    """Of an executor what `Units` uses, on a machine with cgroup v2."""

    hierarchy = Hierarchy("v2", b"/nowhere", dict.fromkeys(("cpu", "memory", "pids", "io"), b"/nowhere"))

    @asynccontextmanager
    async def hold(self, role: str) -> AsyncIterator[int]:
        yield 42


def test_t42_no_annotation_or_label_becomes_a_property_of_a_unit(server: Server) -> None:
    """The same at its end: what systemd is told of such a container, by the code that tells it, is what we made up."""
    pod = server.run_pod("units", annotations=STEERING, labels=STEERING)
    container = server.create_config(*pod, steered("steered"))
    spec = codec.from_bytes(StoredSpec, spec_text(server, pod[0], container).encode()).spec
    slice_ = "/kubepods.slice/kubepods-pod1.slice"
    spec = replace(spec, cgroup=replace(spec.cgroup, path=f"{slice_}/crishim-{container}.scope"))
    systemd = _RecordingSystemd()

    async def start() -> None:
        units = Units(systemd, _StandingIn())  # type: ignore[arg-type]
        async with units.started(spec):
            pass
        units.close()

    asyncio.run(start())
    told = systemd.told
    assert told["MemoryMax"] == ("t", 64 << 20), "as the request says, and no annotation"
    assert {name for name in told if name.startswith(("Exec", "Kill", "On", "Success", "Failure", "Send"))} == set()
    words = {word for item in STEERING.items() for word in item} - {"1", "true", "0000", "all", "steered"}
    assert [word for word in words if word in str(told)] == []
    server.remove_pod(pod[0])


def test_t44_there_are_no_checkpoints_to_trust(server: Server, sandbox: tuple[str, Any], tmp_path: Path) -> None:
    """CVE-2024-8676 and four others: mounts, devices and links of a checkpoint's archive are restored as they are.

    Defence: this version restores none: the call is refused, and an archive is no image.
    """
    request = m.CheckpointContainerRequest(container_id=UNKNOWN, location=str(tmp_path / "checkpoint.tar"))
    refused(lambda: server.client.runtime("CheckpointContainer", request), error=Unsupported)
    (tmp_path / "checkpoint.tar").write_bytes(b"")
    image = m.ImageSpec(image=str(tmp_path / "checkpoint.tar"))
    with pytest.raises((InvalidSpec, NotFound)):
        server.create(*sandbox, image=image)


@pytest.mark.parametrize("field", ["name", "namespace", "uid"])
@pytest.mark.parametrize("value", ["../../..", "..", ".", "a/b", "x\n", "x" * 5000])
def test_t45_a_pods_identity_is_no_path(server: Server, field: str, value: str) -> None:
    """CVE-2025-0750: ids with ".." in the paths that a runtime makes, unmounts and removes."""
    config = pod_config("identity", server.logs)
    setattr(config.metadata, field, value)
    refused(lambda: server.run_pod_config(config), f"metadata.{field}")


@pytest.mark.parametrize("value", ["../../..", "..", "a/b", "../" + UNKNOWN])
def test_t45_an_id_of_a_request_is_no_path(server: Server, value: str) -> None:
    """The same in the calls that take an id."""
    for call in (server.status, server.start_container, lambda id: server.exec(id, "true")):
        with pytest.raises((InvalidSpec, NotFound)):
            call(value)
    for call in (server.stop, server.remove, server.stop_pod, server.remove_pod):
        try:
            call(value)  # what is unknown is stopped and removed already
        except InvalidSpec:
            pass
    assert server.state.is_dir() and server.root.is_dir()


@pytest.mark.parametrize("path", ["../outside.log", "/absolute.log", "a/../../outside.log", "a/..", "x\n0 stdout F x"])
def test_t45_a_log_path_that_leaves_the_directory_is_refused(
    server: Server, sandbox: tuple[str, Any], path: str
) -> None:
    """The same in the path of a log, which the server would write, reopen and remove."""
    refused(lambda: server.create(*sandbox, log_path=path), "log_path")


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_t45_a_log_that_leaves_by_a_link_fails_the_start(
    server: Server, sandbox: tuple[str, Any], victim: Path, kind: str
) -> None:
    """The same by a link that something on the node has put into the log directory."""
    link, path = ("linked", "linked/0.log") if kind == "directory" else ("linked.log", "linked.log")
    place = server.logs / "attacked" / link
    place.symlink_to(victim if kind == "directory" else victim / "file")
    container = server.create(*sandbox, "sh", "-c", "echo written; sleep 1000", name="linked", log_path=path)
    refused(lambda: server.start_container(container), path, error=CrishimError)
    place.unlink()
    server.remove(container)


@pytest.mark.parametrize("user_namespace", [False, True])
def test_t47_init_and_execs_are_in_the_cgroup_of_their_container(server: Server, user_namespace: bool) -> None:
    """CVE-2025-47291: processes that are not below the pod's cgroup are under none of its limits.

    Defence: they are born there, and this test asks the kernel where; with a user namespace of the pod, too.
    """
    config = pod_config(f"placed-{user_namespace}".lower(), server.logs)
    made = container_config("sleep", "47471")
    if user_namespace:
        ids = m.IDMapping(host_id=655_360, container_id=0, length=65_536)
        for security in (config.linux.security_context, made.linux.security_context):
            security.namespace_options.userns_options.CopyFrom(m.UserNamespace(mode=m.POD, uids=[ids], gids=[ids]))
    sandbox = server.run_pod_config(config)
    container = server.create_config(sandbox, config, made)
    server.start_container(container)
    server.sh(container, "sleep 47472 >/dev/null 2>&1 &")
    hierarchy = detect()
    for argument in ("47471", "47472"):
        (pid,) = _processes(argument)
        places = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
        strange = [place for place in places if place[1] in _controllers(hierarchy) and container not in place[2]]
        assert places and strange == []
        assert any(f"/{container}" in place[2] for place in places)
    server.remove_pod(sandbox)


def _controllers(hierarchy: Any) -> set[str]:
    """The second field of /proc/PID/cgroup of every tree that containers are placed in; "" is cgroup v2."""
    names: set[str] = {""} if hierarchy.mount else set()
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        field = line.split(":", 2)[1]
        if field and set(field.split(",")) & {*hierarchy.controllers}:
            names.add(field)
    return names


def _processes(argument: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cmdline").read_bytes() == f"sleep\0{argument}\0".encode():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found
