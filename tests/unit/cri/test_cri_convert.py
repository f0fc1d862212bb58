"""Requests become validated values, and every refusal names the field."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from crishim.cri import signals
from crishim.cri.convert import container as containers
from crishim.cri.convert import image as images
from crishim.cri.convert import resources
from crishim.cri.convert import sandbox as sandboxes
from crishim.cri.pb import api_pb2 as pb
from crishim.errors import InvalidSpec
from crishim.model.container import CapabilityChange
from crishim.model.id_mapping import IdMapping
from crishim.model.image import Credentials
from crishim.model.process import Propagation
from crishim.model.resources import Resources
from crishim.model.sandbox import (
    NamespaceMode,
    NamespaceOptions,
    PortMapping,
    ProfileType,
    SecurityProfile,
    SELinuxOptions,
    UserNamespace,
)
from tests.unit.cri.fakes import (
    IMAGE_ID,
    container,
    full_container_config,
    full_resources,
    full_sandbox_config,
    image,
    sandbox,
)

MAPPING = (IdMapping(container_id=0, host_id=65536, length=65536),)
RESOURCES = Resources(
    cpu_period_us=100000,
    cpu_quota_us=50000,
    cpu_shares=512,
    memory_limit_bytes=64 << 20,
    memory_swap_limit_bytes=64 << 20,
    oom_score_adj=999,
    cpuset_cpus="0-3,5",
    cpuset_mems="0",
    hugepage_limits={"2MB": 0},
    unified={"memory.oom.group": "1"},
)


def test_every_field_of_a_pod_arrives() -> None:
    config = sandboxes.from_proto(full_sandbox_config(), "fast")
    assert (config.name, config.uid, config.namespace, config.attempt) == ("web-0", "3e7b-41", "shop", 2)
    assert config.dns is not None and config.dns.servers == ("10.96.0.10", "fd00::10")
    assert config.port_mappings == (PortMapping("udp", 53, 5353, "127.0.0.1"),)
    assert config.annotations == {"example.org/text": "line one\nline two"}
    assert config.sysctls["net/ipv4/conf/eth0.100/forwarding"] == "1"
    assert config.overhead == config.resources == RESOURCES
    assert config.runtime_handler == "fast"
    security = config.security
    assert security.namespaces == NamespaceOptions(
        pid=NamespaceMode.CONTAINER, user=UserNamespace(NamespaceMode.POD, MAPPING, MAPPING)
    )
    assert security.selinux == SELinuxOptions(level="s0:c1,c2")
    assert (security.run_as_user, security.run_as_group) == (1000, 2000)
    assert security.supplemental_groups == (3000, 4000) and security.strict_groups
    assert security.seccomp == SecurityProfile(ProfileType.RUNTIME_DEFAULT)
    assert security.apparmor == SecurityProfile(ProfileType.UNCONFINED)


def test_every_field_of_a_container_arrives() -> None:
    config = containers.from_proto(full_container_config())
    assert (config.name, config.attempt, config.image) == ("app", 3, IMAGE_ID)
    assert config.args == ("--port", "", "8080")
    assert config.envs == (("PLAIN", "1"), ("BYTES", "\udcff\udcfe"))
    assert config.mounts[0].propagation is Propagation.HOST_TO_CONTAINER
    assert config.mounts[0].uid_mappings == MAPPING and config.mounts[0].options == ("noexec",)
    assert config.mounts[2].image == "model:1" and config.mounts[2].host_path == ""
    assert config.devices[0].permissions == "rw" and config.cdi_devices == ("example.org/gpu=0",)
    assert config.resources == RESOURCES
    assert config.stop_signal == 10  # SIGUSR1 of Linux, 29 in CRI
    security = config.security
    assert security.capabilities == CapabilityChange(("NET_ADMIN",), ("ALL",))
    assert security.namespaces is not None and security.namespaces.target_id == "c0ffee"
    assert (security.run_as_user, security.run_as_group) == (0, 0)
    assert security.apparmor == SecurityProfile(ProfileType.LOCALHOST, "my-profile")


def test_zero_of_limits_is_not_given() -> None:
    assert resources.from_proto("linux", pb.LinuxContainerResources()) == Resources()


def test_limits_return_as_they_came() -> None:
    assert resources.to_proto(resources.from_proto("linux", full_resources())) == full_resources()


def test_pods_without_a_security_context_share_one_pid_namespace() -> None:
    message = full_sandbox_config()
    message.linux.ClearField("security_context")
    assert sandboxes.from_proto(message).security.namespaces.pid is NamespaceMode.POD


def test_an_empty_seccomp_message_is_the_default_and_none_is_unconfined() -> None:
    message = full_container_config()
    message.linux.security_context.seccomp.Clear()
    message.linux.security_context.seccomp.SetInParent()
    assert containers.from_proto(message).security.seccomp == SecurityProfile(ProfileType.RUNTIME_DEFAULT)
    message.linux.security_context.ClearField("seccomp")
    assert containers.from_proto(message).security.seccomp is None


def test_old_profile_field_counts_only_without_the_new_one() -> None:
    message = full_container_config()
    context = message.linux.security_context
    context.seccomp_profile_path = "localhost//etc/a.json"
    assert containers.from_proto(message).security.seccomp == SecurityProfile(
        ProfileType.LOCALHOST, "/var/lib/kubelet/seccomp/a.json"
    )
    context.ClearField("seccomp")
    assert containers.from_proto(message).security.seccomp == SecurityProfile(ProfileType.LOCALHOST, "/etc/a.json")


Change = Callable[[Any], object]


def _set(path: str, value: Any) -> Change:
    """A change of one field; a number in the path is an index."""

    def change(message: Any) -> None:
        *parents, last = path.split(".")
        for name in parents:
            message = message[int(name)] if name.isdigit() else getattr(message, name)
        if isinstance(value, list):
            del getattr(message, last)[:]
            getattr(message, last).extend(value)
        elif isinstance(value, dict):
            getattr(message, last).clear()
            getattr(message, last).update(value)
        else:
            setattr(message, last, value)

    return change


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("metadata.name", "", "config.metadata.name is empty"),
        ("metadata.uid", "", "config.metadata.uid is empty"),
        ("metadata.namespace", "a/b", 'config.metadata.namespace is "a/b"'),
        ("metadata.name", "..", 'config.metadata.name is ".."'),
        ("metadata.name", "a\nb", r'config.metadata.name is "a\nb"'),
        ("metadata.name", "n" * 513, "config.metadata.name is "),
        ("hostname", "-web", 'config.hostname is "-web"'),
        ("hostname", "w" * 65, "config.hostname is "),
        ("hostname", "web\n", "config.hostname is "),
        ("log_directory", "logs", 'config.log_directory is "logs"'),
        ("log_directory", "/var/log/../../etc", "config.log_directory is "),
        ("dns_config.servers", ["not-an-address"], "config.dns_config.servers[0] is "),
        ("dns_config.searches", ["a b"], "config.dns_config.searches[0] is "),
        ("dns_config.options", ["ndots:5\nnameserver 1.1.1.1"], "config.dns_config.options[0] is "),
        ("port_mappings.0.container_port", 0, "config.port_mappings[0].container_port is 0"),
        ("port_mappings.0.host_port", 65536, "config.port_mappings[0].host_port is 65536"),
        ("port_mappings.0.host_port", -1, "config.port_mappings[0].host_port is -1"),
        ("port_mappings.0.protocol", 7, "config.port_mappings[0].protocol is 7"),
        ("port_mappings.0.host_ip", "localhost", "config.port_mappings[0].host_ip is "),
        ("labels", {"": "x"}, "config.labels key is empty"),
        ("labels", {"a": "x" * (256 << 10)}, "config.labels holds "),
        ("annotations", {"a\0": "x"}, "config.annotations key is "),
        ("linux.cgroup_parent", "/kubepods/../../system.slice", "config.linux.cgroup_parent is "),
        ("linux.sysctls", {"kernel.shmmax+kernel.core_pattern": "1"}, "config.linux.sysctls key is "),
        ("linux.sysctls", {"../../etc/passwd": "1"}, "config.linux.sysctls key is "),
        ("linux.sysctls", {"kernel": "1"}, "config.linux.sysctls key is "),
        ("linux.sysctls", {"kernel.shmmax": "1\nkernel.core_pattern=|/x"}, "config.linux.sysctls[kernel.shmmax] is "),
        ("linux.security_context.run_as_user.value", -1, "config.linux.security_context.run_as_user is -1"),
        ("linux.security_context.run_as_user.value", 2**32 - 1, "config.linux.security_context.run_as_user is "),
        ("linux.security_context.supplemental_groups", [-5], ".supplemental_groups[0] is -5"),
        ("linux.security_context.supplemental_groups_policy", 2, ".supplemental_groups_policy is 2"),
        ("linux.security_context.namespace_options.network", 1, '.network is "CONTAINER"'),
        ("linux.security_context.namespace_options.pid", 3, '.namespace_options.pid is "TARGET"'),
        ("linux.security_context.namespace_options.ipc", 9, ".namespace_options.ipc is 9"),
        ("linux.security_context.namespace_options.target_id", "c0ffee", ".target_id is "),
        ("linux.security_context.namespace_options.userns_options.uids", [], ".userns_options.uids is 0"),
        ("linux.security_context.namespace_options.userns_options.mode", 2, ".userns_options.uids is 1: mode NODE"),
        ("linux.security_context.namespace_options.userns_options.uids.0.length", 0, ".uids[0].length is 0"),
        ("linux.security_context.namespace_options.userns_options.uids.0.length", 2**32 - 1, ".uids[0].length is "),
        ("linux.security_context.namespace_options.userns_options.uids.0.container_id", 1, ".userns_options.uids is "),
        ("linux.security_context.selinux_options.type", "a:b", ".selinux_options.type is "),
        ("linux.security_context.seccomp.profile_type", 8, ".seccomp.profile_type is 8"),
        ("linux.security_context.seccomp.localhost_ref", "/x", ".seccomp.localhost_ref is "),
        ("linux.resources.cpu_shares", -1, "config.linux.resources.cpu_shares is -1"),
    ],
)
def test_a_pod_with_one_bad_field_is_refused_by_its_name(path: str, value: Any, named: str) -> None:
    message = full_sandbox_config()
    _set(path, value)(message)
    with pytest.raises(InvalidSpec, match=re.escape(named)):
        sandboxes.from_proto(message)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("metadata.name", "", "config.metadata.name is empty"),
        ("image.image", "", "config.image.image is empty"),
        ("image.image", "web 1", "config.image.image is "),
        ("command", ["/bin/web\0x"], "config.command[0] is "),
        ("working_dir", "srv", 'config.working_dir is "srv"'),
        ("envs.0.key", "", "config.envs[0].key is empty"),
        ("envs.0.key", "A=B", "config.envs[0].key is "),
        ("envs.0.value", b"a\0b", "config.envs[0].value, of PLAIN"),
        ("mounts.0.container_path", "data", 'config.mounts[0].container_path is "data"'),
        ("mounts.0.container_path", "/x/..", "config.mounts[0].container_path is "),
        ("mounts.0.host_path", "", "config.mounts[0].host_path is empty"),
        ("mounts.0.host_path", "data", "config.mounts[0].host_path is "),
        ("mounts.0.propagation", 3, "config.mounts[0].propagation is 3"),
        ("mounts.0.recursive_read_only", True, "config.mounts[0].recursive_read_only needs readonly"),
        ("mounts.1.propagation", 1, "config.mounts[1].recursive_read_only needs readonly"),
        ("mounts.0.mount_options", ["suid"], "config.mounts[0].mount_options is "),
        ("mounts.0.image_sub_path", "a", "config.mounts[0].image_sub_path is "),
        ("mounts.2.readonly", False, "config.mounts[2].readonly is false"),
        ("mounts.2.host_path", "/x", "config.mounts[2].host_path is "),
        ("mounts.2.image_sub_path", "../x", "config.mounts[2].image_sub_path is "),
        ("devices.0.permissions", "rx", "config.devices[0].permissions is "),
        ("devices.0.permissions", "rr", "config.devices[0].permissions is "),
        ("devices.0.host_path", "fuse", "config.devices[0].host_path is "),
        ("CDI_devices.0.name", "gpu0", "config.CDI_devices[0].name is "),
        ("log_path", "/var/log/x.log", "config.log_path is "),
        ("log_path", "../x.log", "config.log_path is "),
        ("log_path", "a/../../x.log", "config.log_path is "),
        ("log_path", "a/", "config.log_path is "),
        ("log_path", ".", "config.log_path is "),
        ("log_path", "a\nb", "config.log_path is "),
        ("stop_signal", 66, "config.stop_signal is 66"),
        ("linux.resources.cpu_period", 10, "config.linux.resources.cpu_period is 10"),
        ("linux.resources.cpu_quota", -2, "config.linux.resources.cpu_quota is -2"),
        ("linux.resources.memory_limit_in_bytes", -7, "config.linux.resources.memory_limit_in_bytes is -7"),
        ("linux.resources.memory_swap_limit_in_bytes", 1, ".memory_swap_limit_in_bytes is 1"),
        ("linux.resources.oom_score_adj", 1001, "config.linux.resources.oom_score_adj is 1001"),
        ("linux.resources.cpuset_cpus", "0-", "config.linux.resources.cpuset_cpus is "),
        ("linux.resources.hugepage_limits.0.page_size", "2MiB", ".hugepage_limits[0].page_size is "),
        ("linux.resources.unified", {"../memory.max": "1"}, "config.linux.resources.unified key is "),
        ("linux.resources.unified", {"cgroup.procs": "1"}, "config.linux.resources.unified key is cgroup.procs"),
        ("linux.resources.unified", {"memory.max": "1\n2"}, "config.linux.resources.unified[memory.max] is "),
        ("linux.security_context.capabilities.add_capabilities", ["NET-ADMIN"], ".add_capabilities[0] is "),
        ("linux.security_context.namespace_options.target_id", "", ".namespace_options.target_id is empty"),
        ("linux.security_context.masked_paths", ["proc"], ".masked_paths[0] is "),
        ("linux.security_context.seccomp.localhost_ref", "a.json", ".seccomp.localhost_ref is "),
        ("linux.security_context.apparmor.localhost_ref", "localhost/", ".apparmor.localhost_ref is empty"),
    ],
)
def test_a_container_with_one_bad_field_is_refused_by_its_name(path: str, value: Any, named: str) -> None:
    message = full_container_config()
    _set(path, value)(message)
    with pytest.raises(InvalidSpec, match=re.escape(named)):
        containers.from_proto(message)


def test_a_group_needs_a_user() -> None:
    message = full_container_config()
    context = message.linux.security_context
    context.ClearField("run_as_user")
    with pytest.raises(InvalidSpec, match="run_as_group is 0: it needs run_as_user"):
        containers.from_proto(message)
    context.run_as_username = "web"
    assert containers.from_proto(message).security.run_as_username == "web"


def test_messages_of_errors_stay_short() -> None:
    message = full_container_config()
    message.working_dir = "x" * 5000
    with pytest.raises(InvalidSpec) as caught:
        containers.from_proto(message)
    assert len(str(caught.value)) < 200


def test_secrets_of_a_pull_are_in_no_error() -> None:
    with pytest.raises(InvalidSpec) as caught:
        images.credentials_from_proto(pb.AuthConfig(registry_token="hunter2\r\n"))
    assert "hunter2" not in str(caught.value) and "auth.registry_token" in str(caught.value)


def test_empty_credentials_are_none() -> None:
    assert images.credentials_from_proto(pb.AuthConfig()) is None
    assert images.credentials_from_proto(pb.AuthConfig(username="a", password="b")) == Credentials("a", "b")


@pytest.mark.parametrize(
    ("user", "uid", "username"),
    [
        ("", None, ""),
        ("1000:2000", 1000, ""),
        ("0", 0, ""),
        ("web:web", None, "web"),
        ("-1", None, "-1"),
        ("9" * 5000, None, "9" * 5000),
    ],
)
def test_user_of_an_image_is_a_number_or_a_name(user: str, uid: int | None, username: str) -> None:
    message = images.to_proto(image(user=user))
    assert (message.uid.value if message.HasField("uid") else None, message.username) == (uid, username)


def test_hostile_text_of_an_image_reaches_the_wire() -> None:
    assert images.to_proto(image(user="\ud800")).username == "\\ud800"


def test_signals_that_linux_has_return_as_they_came() -> None:
    aliases = {pb.SIGNAL_SIGCLD, pb.SIGNAL_SIGIOT, pb.SIGNAL_SIGPOLL}
    for number in set(pb.Signal.values()) - aliases:
        assert signals.to_proto(signals.from_proto("stop_signal", number)) == number
    assert signals.from_proto("s", pb.SIGNAL_SIGTERM) == 15
    assert signals.from_proto("s", pb.SIGNAL_SIGRTMINPLUS3) == 37
    assert signals.from_proto("s", pb.SIGNAL_SIGRTMAXMINUS1) == 63


def test_status_of_a_pod_has_all_that_a_kubelet_requires() -> None:
    status = sandboxes.to_status(sandbox())
    assert (status.id, status.created_at, status.state) == ("a1b2", 7, pb.SANDBOX_READY)
    assert status.metadata == pb.PodSandboxMetadata(name="web-0", uid="u1", namespace="shop")
    assert (status.network.ip, [ip.ip for ip in status.network.additional_ips]) == ("10.0.0.2", ["fd00::2"])
    assert status.linux.namespaces.HasField("options")


def test_status_of_a_pod_without_address_has_a_network() -> None:
    pod = sandboxes.from_proto(full_sandbox_config())
    status = sandboxes.to_status(type(sandbox())("a1", pod, sandbox().state, 1))
    assert status.HasField("network") and status.network.ip == ""
    assert status.linux.namespaces.options == full_sandbox_config().linux.security_context.namespace_options


def test_status_of_a_container_has_all_that_a_kubelet_requires() -> None:
    status = containers.to_status(container())
    assert (status.id, status.metadata.name, status.created_at) == ("c0ffee", "app", 11)
    assert (status.image.image, status.image_id) == ("docker.io/library/web:1", IMAGE_ID)
    assert status.image_ref.endswith(IMAGE_ID)
    assert status.stop_signal == pb.SIGNAL_SIGTERM
    assert list(status.user.linux.supplemental_groups) == [1000, 5]


def test_mounts_return_as_they_came() -> None:
    asked = full_container_config()
    of = container()
    status = containers.to_status(type(of)(of.id, "a1", containers.from_proto(asked), of.state, 1, "", "", "", of.user))
    assert list(status.mounts) == list(asked.mounts)


def test_a_resolver_configuration_of_megabytes_is_refused() -> None:
    """Found by hostile requests: it was written to disk with every change of the pod, and the call took seconds."""
    message = full_sandbox_config()
    message.dns_config.searches.extend(["x" * 5000] * 14)
    with pytest.raises(InvalidSpec, match=r"^config\.dns_config holds 7\d{4} bytes: it must not hold more than 65536$"):
        sandboxes.from_proto(message)
