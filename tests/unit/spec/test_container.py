"""Mounts, devices, namespaces and the whole spec of a container as values."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crishim.errors import InvalidSpec, Unsupported
from crishim.images.users import UserDatabase
from crishim.model.container import ContainerConfig, ContainerSecurity, Mount
from crishim.model.id_mapping import IdMapping
from crishim.model.image import ImageConfig
from crishim.model.process import (
    ContainerSpec,
    DeviceNode,
    DeviceRule,
    LogTarget,
    MountSpec,
    Namespace,
    NamespaceKind,
    Propagation,
    RootFs,
)
from crishim.model.resources import Resources
from crishim.model.sandbox import (
    NamespaceMode,
    NamespaceOptions,
    PodLabels,
    Sandbox,
    SandboxConfig,
    SandboxSecurity,
    SandboxState,
    SELinuxOptions,
    UserNamespace,
)
from crishim.spec.capabilities import KNOWN
from crishim.spec.cgroup import pod_cgroup
from crishim.spec.container import Surroundings, check_namespaces, container_spec, exec_namespaces
from crishim.spec.facts import HostDevice, NodeAbilities, PodFiles
from crishim.spec.mounts import container_mounts
from crishim.spec.selinux import Context, DefaultLabels

FILES = PodFiles("/s/resolv.conf", "/s/hostname", "/s/hosts")
PRIVATE_PID = NamespaceOptions(pid=NamespaceMode.CONTAINER)
SANDBOX = Sandbox(
    id="s" * 64,
    config=SandboxConfig(
        name="pod",
        uid="uid",
        namespace="ns",
        log_directory="/var/log/pods/x",
        security=SandboxSecurity(namespaces=PRIVATE_PID),
    ),
    state=SandboxState.READY,
    created_at_ns=1,
    cgroup_path="/kubepods/pod1",
)
CONFIG = ContainerConfig(
    name="main",
    command=("sh",),
    log_path="main/0.log",
    resources=Resources(memory_limit_bytes=1 << 20),
    security=ContainerSecurity(namespaces=PRIVATE_PID, masked_paths=("/proc/keys",), readonly_paths=("/proc/sys",)),
)
AROUND = Surroundings(
    image=ImageConfig(),
    users=UserDatabase(),
    node=NodeAbilities((6, 18), "x86_64", KNOWN),
    files=FILES,
    hostname="pod",
    rootfs=RootFs(lowers=("/l",), upper="/u", work="/w"),
)


def built(config: ContainerConfig = CONFIG, sandbox: Sandbox = SANDBOX, around: Surroundings = AROUND) -> ContainerSpec:
    return container_spec("c" * 64, config, sandbox, around)


def mounts(*asked: Mount, pod: NamespaceOptions = PRIVATE_PID, **fields: object) -> dict[str, MountSpec]:
    config = replace(CONFIG, mounts=asked, security=replace(CONFIG.security, **fields))
    return {mount.target: mount for mount in container_mounts(config, pod, FILES)}


def pod_with(**options: NamespaceMode) -> Sandbox:
    security = SandboxSecurity(namespaces=replace(PRIVATE_PID, **options))
    return replace(SANDBOX, config=replace(SANDBOX.config, security=security))


def with_security(**fields: object) -> ContainerConfig:
    return replace(CONFIG, security=replace(CONFIG.security, **fields))


def test_parent_mounts_come_before_the_mounts_inside_them() -> None:
    asked = (Mount("/data/inner/deep", "/a"), Mount("/data", "/b"), Mount("/data/inner", "/c"))
    found = [target for target in mounts(*asked) if target.startswith("/data")]
    assert found == ["/data", "/data/inner", "/data/inner/deep"]
    order = list(mounts(Mount("/etc", "/x")))
    assert order.index("/etc") < order.index("/etc/resolv.conf")


def test_a_mount_of_the_request_replaces_a_default_at_the_same_place() -> None:
    assert mounts(Mount("//etc/./hosts", "/kubelet/hosts"))["/etc/hosts"].source == "/kubelet/hosts"
    assert mounts(Mount("/dev/shm", "/x"))["/dev/shm"].kind == "bind"


def test_a_dev_of_the_request_drops_what_would_be_below_it() -> None:
    found = mounts(Mount("/dev", "/dev"))
    assert found["/dev"].kind == "bind" and not [target for target in found if target.startswith("/dev/")]


def test_sys_and_cgroups_are_read_only_unless_privileged() -> None:
    assert "ro" in mounts()["/sys"].flags and "ro" in mounts()["/sys/fs/cgroup"].flags
    found = mounts(privileged=True)
    assert "ro" not in found["/sys"].flags and "ro" not in found["/sys/fs/cgroup"].flags


def test_shared_memory_is_the_pods_or_the_hosts() -> None:
    assert mounts()["/dev/shm"].kind == "shm"
    host = mounts(pod=NamespaceOptions(ipc=NamespaceMode.NODE))
    assert (host["/dev/shm"].kind, host["/dev/shm"].source) == ("bind", "/dev/shm")


def test_the_pods_files_follow_a_read_only_root() -> None:
    assert mounts()["/etc/hosts"].flags == ()
    assert mounts(readonly_rootfs=True)["/etc/hosts"].flags == ("ro",)


def test_flags_of_a_mount() -> None:
    asked = mounts(
        Mount("/ro", "/a", readonly=True),
        Mount("/rro", "/b", readonly=True, recursive_read_only=True),
        Mount("/opt", "/c", options=("noexec", "nosuid"), propagation=Propagation.BIDIRECTIONAL),
    )
    assert asked["/ro"].flags == ("ro",) and asked["/rro"].flags == ("rro",)
    assert asked["/opt"].flags == ("noexec", "nosuid") and asked["/opt"].propagation is Propagation.BIDIRECTIONAL


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        (Mount("relative", "/a"), "container_path: 'relative'"),
        (Mount("/a/../b", "/a"), "container_path: '/a/../b'"),
        (Mount("/", "/a"), "root of the container"),
        (Mount("/proc", "/a"), "container_path: '/proc'"),
        (Mount("/proc/self/attr", "/a"), "cannot be mounted over"),
        (Mount("/proc/meminfo/x", "/a"), "cannot be mounted over"),
        (Mount("/proc/sys/kernel/core_pattern", "/a"), "cannot be mounted over"),
        (Mount("/x", "relative"), "host_path: 'relative'"),
        (Mount("/x", ""), "host_path: ''"),
        (Mount("/x", "/a", recursive_read_only=True), "recursive_read_only"),
        (
            Mount("/x", "/a", readonly=True, recursive_read_only=True, propagation=Propagation.HOST_TO_CONTAINER),
            "recursive_read_only",
        ),
        (Mount("/x", "/a", options=("suid",)), "mount_options: 'suid'"),
    ],
)
def test_a_mount_that_cannot_be_is_named(mount: Mount, words: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        mounts(mount)
    assert str(caught.value).startswith("config.mounts[0].") and words in str(caught.value)


def test_an_image_volume_is_read_only_and_gives_nobody_privileges() -> None:
    volume = Mount("/data", readonly=True, image="i", image_sub_path="a/b", options=("noexec", "nodev"))
    config = replace(CONFIG, mounts=(Mount("/x", "/y"), volume))
    found = container_mounts(config, PRIVATE_PID, FILES, layers={1: ("/layers/2", "/layers/1")})
    assert [mount for mount in found if mount.kind == "image"] == [
        MountSpec("/data", "image", "a/b", ("ro", "nosuid", "nodev", "noexec"), layers=("/layers/2", "/layers/1"))
    ]


MAPS = (IdMapping(0, 65536, 65536),)
OWN_USERS = NamespaceOptions(pid=NamespaceMode.CONTAINER, user=UserNamespace(NamespaceMode.POD, MAPS, MAPS))


def test_owners_are_mapped_where_the_kubelet_asks_and_in_the_pods_files() -> None:
    mapped = Mount("/mapped", "/a", uid_mappings=MAPS, gid_mappings=MAPS)
    found = mounts(mapped, Mount("/plain", "/b"), pod=OWN_USERS)
    assert {target for target, mount in found.items() if mount.idmap} == {
        "/mapped", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("mount", "pod", "words"),
    [
        (Mount("/x", "/a", uid_mappings=MAPS), NamespaceOptions(), "uidMappings: the pod has no user namespace"),
        (Mount("/x", "/a", gid_mappings=MAPS), OWN_USERS, "uidMappings: they differ from those of the pod's"),
    ],
)
def test_mappings_that_are_not_the_pods_are_refused(mount: Mount, pod: NamespaceOptions, words: str) -> None:
    with pytest.raises(InvalidSpec, match=words):
        mounts(mount, pod=pod)


def test_what_only_the_owner_of_a_namespace_may_mount_is_the_hosts_in_a_user_namespace() -> None:
    host = replace(OWN_USERS, network=NamespaceMode.NODE, ipc=NamespaceMode.NODE)
    found = mounts(pod=host)
    assert (found["/sys"].kind, found["/sys"].source, found["/sys"].flags[-1]) == ("bind", "/sys", "rro")
    assert (found["/dev/mqueue"].kind, found["/dev/mqueue"].source) == ("bind", "/dev/mqueue")
    own = mounts(pod=OWN_USERS)
    assert (own["/sys"].kind, own["/dev/mqueue"].kind) == ("sysfs", "mqueue")


def test_the_terminals_group_is_left_out_where_it_is_not_mapped() -> None:
    few = UserNamespace(NamespaceMode.POD, MAPS, (IdMapping(0, 65536, 5),))
    assert "gid=5" in mounts(pod=OWN_USERS)["/dev/pts"].options
    assert "gid=5" not in mounts(pod=replace(OWN_USERS, user=few))["/dev/pts"].options


def test_a_container_has_the_users_of_its_pod() -> None:
    sandbox = replace(SANDBOX, config=replace(SANDBOX.config, security=SandboxSecurity(namespaces=OWN_USERS)))
    mine = replace(CONFIG, security=replace(CONFIG.security, namespaces=OWN_USERS))
    check_namespaces(mine, sandbox)
    assert Namespace(NamespaceKind.USER) in built(mine, sandbox).namespaces
    assert NamespaceKind.USER in exec_namespaces(mine, sandbox)
    other = replace(OWN_USERS, user=UserNamespace(NamespaceMode.POD, MAPS, (IdMapping(0, 131072, 65536),)))
    for namespaces in (PRIVATE_PID, other):
        with pytest.raises(InvalidSpec, match="userns_options: they differ"):
            check_namespaces(replace(CONFIG, security=replace(CONFIG.security, namespaces=namespaces)), sandbox)
    with pytest.raises(InvalidSpec, match="user 65536 of the process is not mapped"):
        built(replace(mine, security=replace(mine.security, run_as_user=65536)), sandbox)
    with pytest.raises(InvalidSpec, match="group 65536 of the process is not mapped"):
        built(replace(mine, security=replace(mine.security, supplemental_groups=(65536,))), sandbox)


def test_the_whole_spec() -> None:
    spec = built()
    assert spec.id == "c" * 64 and spec.process.args == ("sh",)
    assert spec.cgroup.path == f"/kubepods/pod1/{'c' * 64}" and spec.cgroup.resources == CONFIG.resources
    assert spec.log == LogTarget("/var/log/pods/x", "main/0.log")
    assert spec.masked_paths == ("/proc/keys",) and spec.readonly_paths == ("/proc/sys",)
    assert {each.kind for each in spec.namespaces} == {
        NamespaceKind.MOUNT,
        NamespaceKind.PID,
        NamespaceKind.CGROUP,
    }
    assert spec.rootfs == RootFs(("/l",), "/u", "/w")
    assert [node.path for node in spec.device_nodes[:2]] == ["/dev/null", "/dev/zero"]


def test_a_log_needs_both_parts_and_stays_inside() -> None:
    assert built(replace(CONFIG, log_path="")).log is None
    for path in ("/x", "../x", "a/../../x"):
        with pytest.raises(InvalidSpec, match="log_path"):
            built(replace(CONFIG, log_path=path))


def test_privileged_drops_the_protections_and_needs_a_privileged_sandbox() -> None:
    config = with_security(privileged=True)
    with pytest.raises(InvalidSpec, match="privileged sandbox"):
        built(config)
    strong = replace(
        SANDBOX, config=replace(SANDBOX.config, security=replace(SANDBOX.config.security, privileged=True))
    )
    spec = built(config, strong)
    assert not spec.masked_paths and not spec.readonly_paths
    assert spec.cgroup.devices == (DeviceRule(True),)
    assert NamespaceKind.CGROUP not in {each.kind for each in spec.namespaces}


def test_devices_become_nodes_and_rules() -> None:
    device = HostDevice(DeviceNode("/dev/fuse", "c", 10, 229), "rw")
    spec = built(around=replace(AROUND, devices=(device,)))
    assert device.node in spec.device_nodes
    assert spec.cgroup.devices == (DeviceRule(False), DeviceRule(True, "c", 10, 229, "rw"))


@pytest.mark.parametrize("field", ["masked_paths", "readonly_paths"])
def test_a_relative_protected_path_is_refused(field: str) -> None:
    with pytest.raises(InvalidSpec, match=field):
        built(with_security(**{field: ("proc/keys",)}))


@pytest.mark.parametrize(
    ("pod", "container", "fits"),
    [
        (NamespaceMode.CONTAINER, NamespaceMode.CONTAINER, True),
        (NamespaceMode.CONTAINER, NamespaceMode.POD, False),
        (NamespaceMode.CONTAINER, NamespaceMode.NODE, False),
        (NamespaceMode.CONTAINER, NamespaceMode.TARGET, True),
        (NamespaceMode.POD, NamespaceMode.POD, True),
        (NamespaceMode.POD, NamespaceMode.CONTAINER, True),
        (NamespaceMode.NODE, NamespaceMode.NODE, True),
        (NamespaceMode.POD, NamespaceMode.NODE, False),
    ],
)
def test_a_container_sees_no_more_processes_than_its_sandbox_allows(
    pod: NamespaceMode, container: NamespaceMode, fits: bool
) -> None:
    config = with_security(namespaces=NamespaceOptions(pid=container, target_id="t"))
    if fits:
        check_namespaces(config, pod_with(pid=pod))
    else:
        with pytest.raises(InvalidSpec, match=rf"namespace_options\.pid: {container.name}"):
            check_namespaces(config, pod_with(pid=pod))


def test_a_container_without_options_has_those_of_its_sandbox() -> None:
    config = with_security(namespaces=None)
    check_namespaces(config, SANDBOX)
    assert NamespaceKind.PID in {each.kind for each in built(config).namespaces}


def test_an_exec_joins_what_is_not_the_hosts() -> None:
    assert set(exec_namespaces(CONFIG, SANDBOX)) == {
        NamespaceKind.MOUNT,
        NamespaceKind.PID,
        NamespaceKind.NETWORK,
        NamespaceKind.UTS,
        NamespaceKind.IPC,
        NamespaceKind.CGROUP,
    }
    node = NamespaceMode.NODE
    host = pod_with(network=node, ipc=node, pid=node)
    config = with_security(namespaces=NamespaceOptions(node, node, node), privileged=True)
    assert exec_namespaces(config, host) == (NamespaceKind.MOUNT,)


def test_the_pods_cgroup_is_the_kubelets_or_below_ours() -> None:
    assert pod_cgroup("/kubepods//burstable/podx/", "/crishim.slice", "s") == "/kubepods/burstable/podx"
    assert pod_cgroup("", "/crishim.slice", "s") == "/crishim.slice/pods/s"
    for parent in ("relative", "/", "/a/../b"):
        with pytest.raises(InvalidSpec, match="cgroup_parent"):
            pod_cgroup(parent, "/crishim.slice", "s")


LABELS = DefaultLabels(
    Context("system_u", "system_r", "container_t", "s0"),
    Context("system_u", "object_r", "container_file_t", "s0"),
    Context("system_u", "system_r", "spc_t", "s0"),
)
LABELLED = replace(SANDBOX, selinux=PodLabels("u:r:container_t:s0:c1,c2", "u:object_r:container_file_t:s0:c1,c2"))


def test_the_labels_of_a_container_are_its_pods_and_selinuxfs_is_masked() -> None:
    around = replace(AROUND, node=replace(AROUND.node, selinux_labels=LABELS))
    spec = container_spec("c1", CONFIG, LABELLED, around)
    assert spec.process.label == "u:r:container_t:s0:c1,c2"
    assert spec.mount_label == "u:object_r:container_file_t:s0:c1,c2"
    assert spec.masked_paths == ("/proc/keys", "/sys/fs/selinux")
    plain = container_spec("c1", CONFIG, SANDBOX, AROUND)
    assert (plain.process.label, plain.mount_label, plain.masked_paths) == (None, None, ("/proc/keys",))


def test_labels_that_are_asked_for_and_cannot_be_given_are_refused() -> None:
    node = replace(AROUND.node, selinux_problem="the policy knows no containers")
    asks = replace(CONFIG, security=replace(CONFIG.security, selinux=SELinuxOptions(level="s0:c1")))
    with pytest.raises(Unsupported, match=r"^linux\.security_context\.selinux_options: .*knows no containers$"):
        container_spec("c1", asks, SANDBOX, replace(AROUND, node=node))
    assert container_spec("c1", asks, SANDBOX, AROUND).process.label is None, "this node has no SELinux"
