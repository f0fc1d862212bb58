"""Pods with a user namespace: who owns what, inside and outside, and what root inside may not do."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crishim.errors import StartFailed
from crishim.linux import process
from crishim.model.id_mapping import IdMapping
from crishim.model.process import (
    Capabilities,
    DeviceNode,
    MountSpec,
    Namespace,
    NamespaceKind,
    RootFs,
    Scheduler,
    User,
)
from tests.support.container import (
    IDLE,
    MOUNTS,
    NAMESPACES,
    Container,
    Pod,
    all_capabilities,
    program,
    read_line,
    script,
    wait_until,
)

HOST_ID = 200_000
MAPS = (IdMapping(0, HOST_ID, 65536),)
KINDS = ("mnt", "pid", "net", "ipc", "uts", "cgroup", "user")
NS_GET_USERNS = 0xB701
ROOT = Capabilities(
    *(frozenset({"CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_DAC_OVERRIDE", "CAP_SETUID", "CAP_SETGID"}),) * 3
)

MakePod = Callable[..., Pod]


@pytest.fixture
def make_user_pod(make_pod: MakePod, busybox_root: Path, tmp_path: Path) -> MakePod:

    def make(**fields: Any) -> Pod:
        pod = make_pod(**{"network": True, "uid_mappings": MAPS, "gid_mappings": MAPS, **fields})
        pod.spec = owned(pod)  # type: ignore[method-assign]
        return pod

    return make


def owned(pod: Pod) -> Callable[..., Any]:
    """Specs whose writable layer belongs to the pod's root, as the image store makes it."""
    make = pod.spec

    def spec(*args: Any, **changes: Any) -> Any:
        made = make(*args, **changes)
        if made.rootfs.upper is not None:
            os.chown(made.rootfs.upper, HOST_ID, HOST_ID)
        return made

    return spec


@pytest.fixture
def pod(make_user_pod: MakePod) -> Pod:
    return make_user_pod()


def lines(pod: Pod, text: str, **changes: Any) -> list[str]:
    ended = pod.run(script(text, capabilities=ROOT), **changes)
    assert ended.code == 0, ended.output
    return ended.lines


def owner(pid: int, kind: str) -> int:
    """Inode of the user namespace that owns a namespace of a process (ioctl_ns(2))."""
    fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)
    try:
        users = fcntl.ioctl(fd, NS_GET_USERNS)
    finally:
        os.close(fd)
    try:
        return os.fstat(users).st_ino
    finally:
        os.close(users)


def test_root_inside_is_somebody_else_outside(pod: Pod) -> None:
    container = pod.start(program(*IDLE, capabilities=ROOT))
    assert container.proc("uid_map").split() == ["0", str(HOST_ID), "65536"]
    assert container.proc("gid_map").split() == ["0", str(HOST_ID), "65536"]
    status = container.proc("status")
    assert f"Uid:\t{HOST_ID}\t{HOST_ID}\t{HOST_ID}\t{HOST_ID}" in status
    assert f"Gid:\t{HOST_ID}\t{HOST_ID}\t{HOST_ID}\t{HOST_ID}" in status
    ended = pod.exec(container, script("id -u; id -g; id -G"))
    assert ended.lines == ["0", "0", "0"]


def test_every_namespace_belongs_to_the_pods_users(pod: Pod) -> None:
    container = pod.start(program(*IDLE))
    users = os.stat(f"/proc/{container.pid}/ns/user").st_ino
    assert users != os.stat("/proc/self/ns/user").st_ino
    assert {kind: owner(container.pid, kind) for kind in KINDS if kind != "user"} == {
        kind: users for kind in KINDS if kind != "user"
    }


def test_containers_of_a_pod_share_it_and_pods_do_not(make_user_pod: MakePod) -> None:
    one, other = make_user_pod(), make_user_pod(uid_mappings=(IdMapping(0, 400_000, 65536),))
    found = [os.stat(f"/proc/{pod.start(program(*IDLE)).pid}/ns/user").st_ino for pod in (one, one, other)]
    assert found[0] == found[1] != found[2]


def test_an_exec_joins_it(pod: Pod) -> None:
    container = pod.start(program(*IDLE))
    user = User(uid=1000, gid=1001, additional_groups=(1001, 2000))
    exec_ = pod.start_exec(container, program(*IDLE, user=user))
    wait_until(lambda: Path(f"/proc/{exec_.pid}/comm").read_text() == "sleep\n", "execve of the exec")
    for kind in KINDS:
        assert os.readlink(f"/proc/{exec_.pid}/ns/{kind}") == os.readlink(f"/proc/{container.pid}/ns/{kind}"), kind
    status = Path(f"/proc/{exec_.pid}/status").read_text()
    assert f"Uid:\t{HOST_ID + 1000}\t" in status
    assert f"Groups:\t{HOST_ID + 1001} {HOST_ID + 2000} " in status
    exec_.process.send_signal(9)
    exec_.wait()


@pytest.mark.parametrize("uid", [0, 1000])
def test_an_exec_may_open_its_output_again(pod: Pod, uid: int) -> None:
    ended = pod.exec(pod.start(program(*IDLE)), script("echo again > /dev/stdout", user=User(uid=uid)))
    assert ended.lines == ["again"]


def test_the_images_files_belong_to_root_inside_and_new_ones_to_its_host_id_outside(pod: Pod) -> None:
    spec = pod.spec(
        script("stat -c %u:%g /bin/busybox / /etc/passwd; touch /new; chown 5:6 /etc/passwd", capabilities=ROOT)
    )
    ended = pod.start_spec(spec)
    assert ended.wait().code == 0
    assert spec.rootfs.upper is not None
    upper = Path(spec.rootfs.upper)
    assert (upper / "new").stat().st_uid == HOST_ID
    assert ((upper / "etc/passwd").stat().st_uid, (upper / "etc/passwd").stat().st_gid) == (HOST_ID + 5, HOST_ID + 6)
    assert lines(pod, "stat -c %u:%g /bin/busybox / /etc/passwd") == ["0:0"] * 3


def test_a_directory_as_root_is_mapped(pod: Pod, busybox_root: Path) -> None:
    root = RootFs(path=str(busybox_root), readonly=True)
    assert lines(pod, "stat -c %u:%g /bin/busybox", rootfs=root) == ["0:0"]


def test_a_bind_mount_with_idmap_keeps_the_hosts_owners(pod: Pod, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "theirs").write_text("x")
    os.chown(volume / "theirs", 1000, 1000)
    mapped = MountSpec("/mapped", source=str(volume), idmap=True)
    plain = MountSpec("/plain", source=str(volume))
    seen = lines(
        pod,
        "stat -c %u:%g /mapped /mapped/theirs /plain; touch /mapped/ours; touch /plain/not 2>/dev/null || echo refused",
        mounts=(*MOUNTS, mapped, plain),
    )
    assert seen == ["0:0", "1000:1000", "65534:65534", "refused"]
    assert (volume / "ours").stat().st_uid == 0


def test_an_idmapped_mount_needs_the_namespace(make_pod: MakePod, tmp_path: Path) -> None:
    mounts = (*MOUNTS, MountSpec("/mapped", source=str(tmp_path), idmap=True))
    with pytest.raises(StartFailed, match=r"mounting .*id-mapped"):
        make_pod().start(program(*IDLE), mounts=mounts)


def test_file_systems_are_the_containers_own(pod: Pod) -> None:
    seen = lines(
        pod,
        "for each in /proc /sys /dev /dev/pts /dev/shm /dev/mqueue; do stat -c '%n %u:%g' $each; done;"
        " echo $(ls /sys/class/net); echo $(ls -d /proc/[0-9]*)",
    )
    assert seen[0] == "/proc 65534:65534"  # the kernel's own: it belongs to the host's root
    assert seen[2:6] == [f"{name} 0:0" for name in ("/dev", "/dev/pts", "/dev/shm", "/dev/mqueue")]
    assert seen[6] == "lo"
    assert seen[7].startswith("/proc/1 ")


def test_nothing_of_the_hosts_proc_is_left_below_the_root(pod: Pod) -> None:
    container = pod.start(program(*IDLE))
    kinds = [line.split(" - ")[1].split()[0] for line in container.proc("mountinfo").splitlines()]
    assert kinds.count("proc") == 1
    assert kinds.count("sysfs") == 1


def test_devices_are_the_hosts_nodes(pod: Pod) -> None:
    seen = lines(
        pod, "echo out > /dev/null; head -c 2 /dev/zero | od -An -tx1; stat -c '%t:%T %F' /dev/null; ls /dev/fd"
    )
    assert seen[0].split() == ["00", "00"]
    assert seen[1] == "1:3 character special file"
    with pytest.raises(StartFailed, match=r'device "/dev/zero" is not c 1:3'):
        pod.start(program(*IDLE), device_nodes=(DeviceNode("/dev/null", "c", 1, 3, source="/dev/zero"),))


def test_every_capability_inside_is_none_outside(pod: Pod) -> None:
    """No masks, no read-only paths, all capabilities: what is left is the kernel's word."""
    everything = all_capabilities(pod.node)
    text = (
        'try() { "$@" 2>/dev/null && echo "done: $*"; }; try mknod /tmp/node b 1 0; try head -c 1 /proc/kcore;'
        " try dd if=/dev/null of=/proc/sysrq-trigger; try sh -c 'echo x > /proc/sys/kernel/core_pattern';"
        " try sh -c 'echo -1000 > /proc/self/oom_score_adj'; try nice -n -5 true; echo end"
    )
    container = pod.run(script(text, capabilities=everything))
    assert container.lines == ["end"]


def test_root_inside_can_change_its_network_and_not_the_hosts(make_user_pod: MakePod) -> None:
    pod = make_user_pod(sysctls={"net.ipv4.ip_unprivileged_port_start": "0"})
    writable = tuple(MountSpec("/sys", "sysfs") if each.target == "/sys" else each for each in MOUNTS)
    seen = lines(
        pod,
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; echo 7 > /proc/sys/net/ipv4/ip_default_ttl;"
        " cat /proc/sys/net/ipv4/ip_default_ttl; echo 1 > /proc/sys/kernel/panic || echo refused",
        mounts=writable,
    )
    assert seen[:2] == ["0", "7"]
    assert seen[-1] == "refused"


def test_limits_that_need_the_hosts_root_are_set_before(pod: Pod) -> None:
    ended = pod.run(script("cat /proc/self/oom_score_adj; nice", oom_score_adj=321))
    assert ended.lines[0] == "321"


def test_a_writable_cgroup_is_handed_to_root_of_the_pod_and_its_limits_are_not(pod: Pod) -> None:
    tree = pod.node.hierarchy.mount
    if not tree:
        pytest.skip("this node has no cgroup v2 tree")
    writable = tuple(
        MountSpec("/sys/fs/cgroup", "cgroup", flags=("nosuid", "noexec", "nodev")) if each.kind == "cgroup" else each
        for each in MOUNTS
    )
    given, kept = pod.start(program(*IDLE), mounts=writable), pod.start(program(*IDLE))

    def owners(container: Container) -> dict[str, int]:
        directory = Path(os.fsdecode(tree) + container.spec.cgroup.path)
        names = ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.max.depth", "cgroup.kill")
        return {name: (directory / name).stat().st_uid for name in names}

    handed = {"": HOST_ID, "cgroup.procs": HOST_ID, "cgroup.subtree_control": HOST_ID}
    assert owners(given) == {**handed, "cgroup.max.depth": 0, "cgroup.kill": 0}
    assert set(owners(kept).values()) == {0}


def test_t57_who_may_make_cgroups_makes_no_more_than_a_node_bears(pod: Pod) -> None:
    """A container with a writable cgroup makes cgroups without end: each takes memory of the kernel and time of the
    node. Defence: a limit of descendants, in a file that is not handed over.
    """
    tree = pod.node.hierarchy.mount
    if not tree:
        pytest.skip("this node has no cgroup v2 tree")
    writable = tuple(
        MountSpec("/sys/fs/cgroup", "cgroup", flags=("nosuid", "noexec", "nodev")) if each.kind == "cgroup" else each
        for each in MOUNTS
    )
    attack = script(
        "cd /sys/fs/cgroup; [ -d unified ] && cd unified; (echo max > cgroup.max.descendants) 2>&1;"
        " seq 1 5100 | xargs mkdir 2>/dev/null; ls -d [0-9]* | wc -l;"
        " mkdir 1/a 2>&1; rmdir [0-9]*; i=0; while [ $i -lt 300 ]; do mkdir d && cd d; i=$((i+1)); done; pwd | wc -c",
        capabilities=ROOT,
    )
    ended = pod.run(attack, mounts=writable)
    denied, made, more, deep = ended.lines
    assert denied.endswith("Permission denied") and more.endswith("Resource temporarily unavailable"), ended.lines
    assert int(made) == 5000
    assert int(deep) > 600, "they are removed with the container, however deep"


def test_t02_nobody_of_a_pods_user_namespace_looks_into_who_joins_it(pod: Pod) -> None:
    """CVE-2016-9962 with more rights: root inside has every capability over what belongs to its user namespace, which
    the processes that start a container or an exec there join while they still have files of the host open.

    Defence: they are not dumpable, and their memory belongs to the host's user namespace.
    """
    watch = script(
        "echo up; while :; do for p in /proc/[0-9]*; do ls -l $p/fd/ $p/cwd $p/exe $p/root; cat $p/environ;"
        " cat $p/maps | grep memfd; done; done >> /tmp/seen 2>&1",
        capabilities=all_capabilities(pod.node),
    )
    container = pod.start(watch)
    assert read_line(container.stdout) == "up"
    assert container.spec.rootfs.upper is not None
    seen = Path(container.spec.rootfs.upper) / "tmp/seen"
    for _ in range(40):
        assert pod.exec(container, program("/bin/true")).code == 0
    wait_until(lambda: seen.stat().st_size > 50_000, "some rounds of the watcher")
    container.kill()
    text = seen.read_text(errors="replace")
    targets = {line.split(" -> ", 1)[1] for line in text.splitlines() if " -> " in line}
    assert targets and "memfd" not in text
    allowed = ("pipe:", "/proc/", "/bin/")
    assert {each for each in targets if not each.startswith(allowed)} <= {"/", "/dev/null", "/tmp/seen"}


def test_a_user_that_is_not_mapped_is_a_sentence(pod: Pod) -> None:
    with pytest.raises(StartFailed, match="uid 70000 is not mapped"):
        pod.start(program(*IDLE, user=User(uid=70000)))


def test_maps_that_the_kernel_refuses_are_a_sentence(make_user_pod: MakePod) -> None:
    with pytest.raises(StartFailed, match="setting the pod up"):
        make_user_pod(uid_mappings=(IdMapping(0, HOST_ID, 10), IdMapping(5, HOST_ID, 10)))


def test_a_shared_pid_namespace_belongs_to_the_pods_users(make_user_pod: MakePod) -> None:
    pod = make_user_pod(shared_pid=True)
    without_pid = tuple(ns for ns in (*NAMESPACES, Namespace(NamespaceKind.USER)) if ns.kind is not NamespaceKind.PID)
    container = pod.start(program(*IDLE), pid_target="pod", namespaces=without_pid)
    assert owner(container.pid, "pid") == os.stat(f"/proc/{container.pid}/ns/user").st_ino
    seen = pod.run(script("cat /proc/1/comm; stat -c %u /proc/1"), pid_target="pod", namespaces=without_pid)
    assert seen.lines[0] == "crishim-podinit"


def test_with_the_hosts_network_the_hosts_sysfs_is_bound(make_user_pod: MakePod) -> None:
    pod = make_user_pod(network=False, uts=False)
    mounts = tuple(
        MountSpec("/sys", source="/sys", flags=("nosuid", "noexec", "nodev", "rro")) if each.target == "/sys" else each
        for each in MOUNTS
    )
    container = pod.start(program(*IDLE), mounts=mounts)
    assert os.readlink(f"/proc/{container.pid}/ns/net") == os.readlink("/proc/self/ns/net")


def test_a_terminal_belongs_to_the_user(pod: Pod) -> None:
    container = pod.start(program(*IDLE, terminal=True, user=User(uid=1000, gid=1000)))
    device = os.stat(f"/proc/{container.pid}/fd/0")
    assert stat.S_ISCHR(device.st_mode)
    assert device.st_uid == HOST_ID + 1000


def test_without_a_pods_namespace_a_container_cannot_have_one(make_pod: MakePod) -> None:
    pod = make_pod()
    with pytest.raises(StartFailed, match="no user namespace of its own"):
        pod.start(program(*IDLE), namespaces=(*NAMESPACES, Namespace(NamespaceKind.USER)))


# -- policies that only the host's root may give

DEADLINE = Scheduler("SCHED_DEADLINE", runtime_ns=2_000_000, deadline_ns=10_000_000, period_ns=20_000_000)


def may_be_urgent() -> bool:
    """Whether this host gives deadlines at all."""
    pid = os.fork()
    if pid == 0:
        try:
            process.sched_setattr(6, 0, 0, 0, DEADLINE.runtime_ns, DEADLINE.deadline_ns, DEADLINE.period_ns)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("nnp", [True, False])
def test_a_deadline_is_given_to_init_and_execs(make_pod: MakePod, nnp: bool) -> None:
    if not may_be_urgent():
        pytest.skip("needs CAP_SYS_NICE")
    pod = make_pod(network=True, uid_mappings=MAPS, gid_mappings=MAPS)
    container = pod.start(program(*IDLE, scheduler=DEADLINE, no_new_privileges=nnp))
    exec_ = pod.start_exec(container, program(*IDLE, scheduler=DEADLINE, no_new_privileges=nnp))
    wait_until(lambda: Path(f"/proc/{exec_.pid}/comm").read_text() == "sleep\n", "the exec's execve")
    assert [policy_of(pid) for pid in (container.pid, exec_.pid)] == [6, 6]
    exec_.process.send_signal(9)
    exec_.wait()


@pytest.mark.parametrize("policy", ["SCHED_FIFO", "SCHED_RR"])
def test_a_real_time_policy_is_given_or_refused_with_its_cause(make_pod: MakePod, policy: str) -> None:
    if not may_be_urgent():
        pytest.skip("needs CAP_SYS_NICE")
    pod = make_pod(network=True, uid_mappings=MAPS, gid_mappings=MAPS)
    urgent = program(*IDLE, scheduler=Scheduler(policy, priority=7))
    tree = pod.node.hierarchy.controllers.get("cpu")
    if tree is not None and os.path.exists(tree + b"/cpu.rt_runtime_us"):
        refused = rf"scheduler\.policy {policy} priority 7: operation not permitted \(cpu\.rt_runtime_us of the cgroup"
        with pytest.raises(StartFailed, match=refused):
            pod.start(urgent)
    else:
        assert policy_of(pod.start(urgent).pid) == {"SCHED_FIFO": 1, "SCHED_RR": 2}[policy]


def test_a_deadline_that_cannot_be_is_refused_with_its_numbers(make_pod: MakePod) -> None:
    wrong = Scheduler("SCHED_DEADLINE", runtime_ns=30, deadline_ns=20, period_ns=10)
    pod = make_pod(network=True, uid_mappings=MAPS, gid_mappings=MAPS)
    sentence = "scheduler.policy SCHED_DEADLINE runtime 30 ns, deadline 20 ns, period 10 ns: invalid argument"
    with pytest.raises(StartFailed, match=sentence):
        pod.start(program(*IDLE, scheduler=wrong))


def policy_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[38])
