"""Processes that try to look into, use or outlive those of the runtime; descriptors, programs, terminals, identities.

Each test attacks in the way of the CVE its docstring names, and says what the defence is.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from crishim.errors import InvalidSpec, StartFailed
from crishim.model.process import Capabilities, DeviceNode, MountSpec, User
from crishim.model.resources import Resources
from tests.integration.conftest import Run
from tests.support.container import (
    DEVICES,
    IDLE,
    MOUNTS,
    NAMESPACES,
    Container,
    Pod,
    all_capabilities,
    program,
    read_all,
    read_line,
    script,
    wait_until,
)
from tests.support.hostile import at_each_open, compiled, exchange, swapping, with_layer

_F_GET_SEALS = 1034
#: SEAL, SHRINK, GROW, WRITE
_SEALS = 0xF
CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
#: starts under an exchange; `CRISHIM_ATTACK_STARTS` asks for more
TERMINALS = int(os.environ.get("CRISHIM_ATTACK_STARTS", "25"))


def test_t02_no_process_of_ours_can_be_looked_into_while_it_joins(pod: Pod) -> None:
    """CVE-2016-9962: descriptors and directories of an exec are read through /proc/PID before its execve(2).

    Defence: the child is not dumpable from its first step on, so /proc/PID/fd and cwd need CAP_SYS_PTRACE.
    """
    watch = script(
        "echo up; while :; do ls -l /proc/[0-9]*/fd/ /proc/[0-9]*/cwd /proc/[0-9]*/exe; done >> /tmp/seen 2>&1"
    )
    container = pod.start(watch)
    assert read_line(container.stdout) == "up"
    assert container.spec.rootfs.upper is not None
    seen = Path(container.spec.rootfs.upper) / "tmp/seen"
    for _ in range(60):
        assert pod.exec(container, program("/bin/true")).code == 0
    wait_until(lambda: seen.stat().st_size > 50_000, "some rounds of the watcher")
    container.kill()
    targets = {line.split(" -> ", 1)[1] for line in seen.read_text(errors="replace").splitlines() if " -> " in line}
    assert targets, "the watcher saw at least itself"
    strange = {
        target
        for target in targets
        if not target.startswith(("pipe:", "/proc/")) and target not in {"/", "/dev/null", "/bin/busybox", "/tmp/seen"}
    }
    # busybox programs are hard links of one file, so /proc/PID/exe may show any of their names
    assert {target for target in strange if not target.startswith("/bin/")} == set()


def test_t03_an_entrypoint_that_is_our_own_program_finds_a_sealed_copy(pod: Pod, layer: Path) -> None:
    """CVE-2019-5736: the entrypoint is a link to /proc/self/exe, and the image's loader runs inside our interpreter.

    Defence: the zygote runs from a memfd that is sealed against writing; the host's file is never mapped.
    """
    loader = _loader_of_this_interpreter()
    if loader is None:
        pytest.skip("a dynamically linked interpreter is needed to put a loader into the image")
    host = Path(getattr(sys, "_base_executable", sys.executable))
    before = hashlib.sha256(host.read_bytes()).digest()
    flags = ("-nostdlib", "-no-pie", "-ffreestanding", "-fno-stack-protector", "-O1")
    compiled("loader.c", layer / loader.lstrip("/"), *flags)
    (layer / "entry").symlink_to("/proc/self/exe")
    spec = pod.spec(program("/entry", capabilities=all_capabilities(pod.node)))
    container = pod.start_spec(with_layer(spec, layer))
    stdout, container.stdout = container.stdout, -1
    output = read_all(stdout).decode().splitlines()
    assert container.wait().code == 0
    assert output[0].startswith("/memfd:crishim") and output[0].endswith(" refused"), output
    assert output[-1] == "done" and len(output) == 5, output
    assert hashlib.sha256(host.read_bytes()).digest() == before
    with open(f"/proc/{pod.node.executor.pid}/exe", "rb") as zygote:
        assert hashlib.sha256(zygote.read()).digest() == before
        assert fcntl.fcntl(zygote, _F_GET_SEALS) & _SEALS == _SEALS


def _loader_of_this_interpreter() -> str | None:
    """PT_INTERP of the program file (elf(5), 64-bit little endian)."""
    data = Path(getattr(sys, "_base_executable", sys.executable)).read_bytes()
    table = int.from_bytes(data[32:40], "little")
    size, count = int.from_bytes(data[54:56], "little"), int.from_bytes(data[56:58], "little")
    for start in range(table, table + size * count, size):
        if int.from_bytes(data[start : start + 4], "little") == 3:
            offset = int.from_bytes(data[start + 8 : start + 16], "little")
            length = int.from_bytes(data[start + 32 : start + 40], "little")
            return data[offset : offset + length].rstrip(b"\0").decode()
    return None


def test_t07_a_device_that_nobody_allowed_cannot_be_used(pod: Pod) -> None:
    """GHSA-g54h-m393-cpwq: device rules that began with "allow all", so that a list of none allowed every device.

    Defence: the cgroup begins with "deny all". The attacker may make nodes, and the container's /dev holds one, too.
    """
    node = DeviceNode("/dev/disk", "b", 7, 300)
    attack = script(
        "for n in /dev/disk /tmp/disk /tmp/mem; do (head -c 1 $n >/dev/null) 2>&1; done; head -c 1 /dev/zero | wc -c",
        capabilities=all_capabilities(pod.node),
    )
    make = "mknod /tmp/disk b 7 300; mknod /tmp/mem c 1 1; "
    attack = replace(attack, args=(*attack.args[:2], make + attack.args[2]))
    lines = pod.run(attack, device_nodes=(*DEVICES, node)).lines
    refused = [line for line in lines if line.endswith(": Operation not permitted")]
    assert len(refused) == 3 and lines[-1] == "1", lines


@pytest.mark.parametrize("field", ["source", "target", "options"])
def test_t09_a_mount_cannot_smuggle_a_second_field(pod: Pod, tmp_path: Path, field: str) -> None:
    """CVE-2021-43784: a text longer than a length field, whose rest is read as options of namespaces.

    Defence: messages are framed by 32-bit lengths that are checked, and texts with a NUL are refused.
    """
    plain = MountSpec("/data", source=str(tmp_path)) if field != "options" else MountSpec("/data", "tmpfs")

    def start(text: str) -> None:
        value = (text,) if field == "options" else text
        pod.run(program("/bin/true"), mounts=(*MOUNTS, replace(plain, **{field: value})))  # type: ignore[arg-type]

    with pytest.raises(InvalidSpec, match=f"mounts.*{field}.*NUL"):
        start("/tmp\0CLONE_NEWUSER" if field != "options" else "size=1m\0mode=0")
    with pytest.raises(StartFailed, match=r"mounting .*(file name too long|invalid argument)"):
        start("/" + "x" * 70_000 if field != "options" else "size=" + "1" * 70_000)
    assert pod.run(program("/bin/true")).code == 0


@pytest.mark.parametrize("given", [(), ("CAP_NET_ADMIN", "CAP_CHOWN")], ids=["none", "added"])
def test_t10_inheritable_capabilities_are_never_given(run: Run, given: tuple[str, ...]) -> None:
    """CVE-2022-24769 and five others: a set that is not empty lets file capabilities of the image raise privileges.

    Defence: inheritable and ambient are empty unless ambient ones were asked for.
    """
    names = frozenset(given)
    sets = Capabilities(bounding=names, effective=names, permitted=names)
    lines = run(program("/bin/grep", "-E", "^Cap(Inh|Amb):", "/proc/self/status", capabilities=sets)).lines
    assert [line.split()[1] for line in lines] == ["0" * 16] * 2


@pytest.mark.parametrize("own_cgroups", [True, False])
def test_t11_cgroups_cannot_be_written_from_inside(pod: Pod, own_cgroups: bool) -> None:
    """CVE-2023-25809: a container without a cgroup namespace sees the host's tree, and may write where it owns it.

    Defence: /sys/fs/cgroup shows the container's own cgroup alone, read-only; to root of the host, too.
    """
    namespaces = NAMESPACES if own_cgroups else NAMESPACES[:2]
    write = script(
        "cd /sys/fs/cgroup; for d in . *; do for f in cgroup.procs tasks notify_on_release; do"
        " [ -e $d/$f ] && { echo found; (echo 1 > $d/$f) 2>&1; mkdir $d/made 2>&1; }; done; done; true"
    )
    lines = pod.run(write, namespaces=namespaces).lines
    attacks = lines.count("found")
    assert attacks and len([line for line in lines if line.endswith("Read-only file system")]) == 2 * attacks, lines
    shown = pod.run(script("cat /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/cgroup.procs 2>/dev/null | sort -u"))
    assert set(shown.lines) <= {"1", "2", "3", "4", "5"}, "no process but the container's"


OUTSIDE = (
    "here=$(stat -c %d:%i ../../../../../../../../../..); root=$(stat -c %d:%i /); "
    '[ "$here" = "$root" ] && echo inside || echo "outside: $(ls ../../../../../../../../../..)"'
)


@pytest.mark.parametrize("how", ["init", "exec"])
def test_t13_no_working_directory_leads_out_through_a_descriptor(pod: Pod, how: str) -> None:
    """CVE-2024-21626: cwd is /proc/self/fd/N, a directory of the host that is open while we start a process.

    Defence: descriptors are really closed before the directory is entered, and getcwd(2) must be below our root.
    """
    container = pod.start(program(*IDLE)) if how == "exec" else None
    for number in [*range(3, 24), 100, 101, 102, 103]:
        process = script(OUTSIDE, cwd=f"/proc/self/fd/{number}")
        try:
            ended = pod.exec(container, process) if container else pod.run(process)
        except StartFailed as error:
            assert f"/proc/self/fd/{number}" in str(error)
            continue
        assert ended.output == "inside\n", (number, ended.output)


@pytest.mark.parametrize("how", ["init", "exec"])
def test_t14_no_command_path_leads_out_through_a_descriptor(pod: Pod, tmp_path: Path, how: str) -> None:
    """CVE-2024-21626 again: the command is looked up below /proc/self/fd/N.

    Defence: as above; at execve(2) only 0, 1, 2 and the report socket are open.
    """
    container = pod.start(program(*IDLE)) if how == "exec" else None
    busybox = shutil.which("busybox")  # of the host: it needs no libraries, so it would run
    for number in range(3, 16):
        for path in (f"/proc/self/fd/{number}/../../../../..{busybox}", f"/proc/self/fd/{number}{busybox}"):
            process = program(path, "true")
            with pytest.raises(StartFailed, match=f"/proc/self/fd/{number}/"):
                if container:
                    pod.exec(container, process)
                else:
                    pod.run(process)


def test_t15_an_init_process_has_no_descriptor_of_ours(pod: Pod) -> None:
    """Descriptors that survive execve(2) are doors. Seen from the host, which sees them all."""
    container = pod.start(program(*IDLE))
    targets = {
        name: os.readlink(f"/proc/{container.pid}/fd/{name}") for name in os.listdir(f"/proc/{container.pid}/fd")
    }
    assert set(targets) == {"0", "1", "2"}
    assert targets["0"] == "/dev/null" and targets["1"].startswith("pipe:") and targets["2"].startswith("pipe:")


def _volume_as_dev(place: Path) -> tuple[MountSpec, ...]:
    """Mounts of a container whose /dev is a volume with an empty pts and a null device."""
    (place / "pts").mkdir(parents=True)
    os.mknod(place / "null", 0o020666, os.makedev(1, 3))
    return (*(mount for mount in MOUNTS if not mount.target.startswith("/dev")), MountSpec("/dev", source=str(place)))


def _trapped_terminals(place: Path) -> tuple[tuple[MountSpec, ...], Path]:
    """Mounts of a container whose /dev is a volume, and a directory of links to procfs, to exchange for its pts."""
    pts = next(mount for mount in MOUNTS if mount.target == "/dev/pts")
    mounts = (*_volume_as_dev(place), pts)
    trap = place / "trap"
    trap.mkdir()
    for name in ("0", "1", "ptmx"):
        (trap / name).symlink_to(CORE_PATTERN)
    return mounts, trap


def _is_a_terminal(container: Container) -> bool:
    """Whether the container's /dev/console is the first terminal of a devpts, and nothing else came into its mounts."""
    table = [line.split() for line in container.proc("mountinfo").splitlines()]
    (console,) = (fields for fields in table if fields[4] == "/dev/console")
    assert not [fields for fields in table if "core_pattern" in fields[3] + fields[4]]
    return (console[3], console[console.index("-") + 1]) == ("/0", "devpts")


def test_t19_a_terminal_whose_name_is_exchanged_at_the_worst_moment_becomes_the_console(
    pod: Pod, tmp_path: Path
) -> None:
    """CVE-2025-52565: /dev/pts is exchanged for a directory of links while the console is bound from there.

    Defence: the terminal is taken from its multiplexer by TIOCGPTPEER and bound by that descriptor, so that no name
    in /dev/pts is used. The exchange comes when the terminal is there and its target is opened, not by luck.
    """
    before = CORE_PATTERN.read_text()
    mounts, trap = _trapped_terminals(tmp_path / "dev")
    opened = []

    def act(name: str) -> None:
        opened.append(name)
        if name == "console":
            exchange(tmp_path / "dev/pts", trap)

    with at_each_open(tmp_path / "dev", act):
        container = pod.start(program(*IDLE, terminal=True), mounts=mounts, device_nodes=())
    assert opened.count("console") == 1, opened
    assert (tmp_path / "dev/pts/0").is_symlink(), "the exchange was made"
    assert _is_a_terminal(container)
    assert CORE_PATTERN.read_text() == before


def test_t19_a_terminal_whose_name_is_exchanged_all_the_time_becomes_the_console_all_the_same(
    pod: Pod, tmp_path: Path
) -> None:
    """The same at every other moment: the exchange goes on during all of a start."""
    before = CORE_PATTERN.read_text()
    mounts, trap = _trapped_terminals(tmp_path / "dev")
    started = 0
    with swapping(tmp_path / "dev/pts", trap):
        for _ in range(TERMINALS):
            try:
                container = pod.start(program(*IDLE, terminal=True), mounts=mounts, device_nodes=())
            except StartFailed:
                continue  # refused in the middle of an exchange
            started += 1
            assert _is_a_terminal(container)
            container.kill()
    assert started, "the exchange never let a start through"
    assert CORE_PATTERN.read_text() == before


def test_t19_a_multiplexer_that_is_none_is_refused(pod: Pod, tmp_path: Path) -> None:
    """The same at its root: /dev/pts/ptmx is a link, a file, or the multiplexer's node outside of a devpts.

    Defence: it is opened without following links, and must be the one of a devpts.
    """
    mounts = _volume_as_dev(tmp_path / "dev")
    place = tmp_path / "dev/pts/ptmx"
    place.symlink_to(CORE_PATTERN)
    for _ in range(3):
        with pytest.raises(
            StartFailed, match=r"opening the console: (too many levels of symbolic links|no such device)"
        ):
            pod.start(program(*IDLE, terminal=True), mounts=mounts, device_nodes=())
        if place.is_symlink():
            place.unlink()
            place.touch()
        else:
            place.unlink()
            os.mknod(place, 0o020666, os.makedev(5, 2))


def test_t19_a_console_that_is_a_link_is_refused(pod: Pod, tmp_path: Path) -> None:
    """The same with the target: /dev/console of a volume is a link to what would be hidden, or shown, by the terminal.

    Defence: the target is opened without following links.
    """
    mounts = (*_volume_as_dev(tmp_path / "dev"), next(mount for mount in MOUNTS if mount.target == "/dev/pts"))
    (tmp_path / "dev/console").symlink_to(CORE_PATTERN)
    with pytest.raises(StartFailed, match=r"opening the console: .*symbolic links"):
        pod.start(replace(program(*IDLE), terminal=True), mounts=mounts, device_nodes=())


def test_t20_what_is_written_to_proc_of_an_exec_is_written_to_the_true_one(pod: Pod) -> None:
    """CVE-2025-52881: the container mounts over its own /proc, so that writes of the runtime reach other files.

    Defence: the runtime writes through the host's procfs, which the container cannot name.
    """
    forge = script(
        "mount -t tmpfs forged /proc && mkdir -p /proc/self /proc/thread-self/attr && echo ready; exec sleep 600",
        capabilities=all_capabilities(pod.node),
    )
    container = pod.start(forge)
    assert read_line(container.stdout) == "ready"
    exec_ = pod.start_exec(container, script("echo up; exec sleep 600", oom_score_adj=321))
    assert read_line(exec_.stdout) == "up"
    assert Path(f"/proc/{exec_.pid}/oom_score_adj").read_text() == "321\n"
    made = pod.exec(container, script("ls /proc/self"))
    assert made.output == "", "nothing was written to the forged one"


def test_t20_a_label_is_not_written_to_a_forged_file(pod: Pod) -> None:
    """The same with the attribute that says under which profile the exec shall run: a file that takes anything would
    have the exec run without, and nobody would know.

    Defence: as above. The true file takes no profile that is not there, on a node without AppArmor none at all.
    """
    files = "/proc/thread-self/attr/exec /proc/thread-self/attr/apparmor/exec"
    forge = script(
        "mount -t tmpfs forged /proc && mkdir -p /proc/thread-self/attr/apparmor && cd /proc && ln -s thread-self self"
        f" && touch {files} && echo ready; exec sleep 600",
        capabilities=all_capabilities(pod.node),
    )
    container = pod.start(forge)
    assert read_line(container.stdout) == "ready"
    with pytest.raises(StartFailed, match='AppArmor profile "crishim-is-not-there"'):
        pod.exec(container, script("echo unconfined", apparmor_profile="crishim-is-not-there"))
    assert pod.exec(container, script(f"cat {files}")).output == "", "nothing was written to the forged ones"


def test_t30_nothing_of_ours_listens_where_a_container_on_the_hosts_network_can_ask(pod: Pod) -> None:
    """CVE-2020-15257: the runtime's socket is abstract, and belongs to a network namespace instead of a directory.

    Defence: sockets have paths, in directories that no container sees.
    """
    container = pod.start(program(*IDLE))
    sockets = [line.split() for line in pod.exec(container, program("/bin/cat", "/proc/net/unix")).lines[1:]]
    named = [fields[7] for fields in sockets if len(fields) > 7]
    ours = {os.stat(pod.directory / "monitor.sock").st_ino}
    assert ours, "the monitor listens"
    assert [name for name in named if name.startswith("@") and ("crishim" in name or pod.name in name)] == []
    own_process = [fields[6] for fields in sockets if fields[6] in _sockets(pod.monitor.pid)]
    listening = [fields for fields in sockets if fields[6] in own_process and fields[3] == "00010000"]
    assert listening and all(len(fields) > 7 and not fields[7].startswith("@") for fields in listening)
    name = listening[0][7]
    assert pod.exec(container, script(f"ls {name} {pod.directory} 2>&1")).lines[0].endswith("No such file or directory")


def _sockets(pid: int) -> set[str]:
    """Inode numbers of the sockets that a process has open."""
    places = (os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd"))
    return {place[8:-1] for place in places if place.startswith("socket:[")}


def test_t39_a_group_that_is_denied_stays_denied(pod: Pod, layer: Path) -> None:
    """CVE-2022-2995, CVE-2023-25173: a file denies a group that is the process's primary one, and a program of the
    image changes the primary group. Without it among the supplementary ones the denial would be gone.

    Defence: the complete list is set, the primary gid among it, and `spec/` puts it there.
    """
    secret = layer / "secret"
    secret.write_text("secret")
    secret.chmod(0o604)
    os.chown(secret, 0, 2000)
    compiled("regroup.c", layer / "regroup")
    os.chown(layer / "regroup", 0, 3000)
    (layer / "regroup").chmod(0o2755)
    who = User(uid=1000, gid=2000, additional_groups=(2000,))
    attack = program("/regroup", "/secret", user=who, no_new_privileges=False)
    container = pod.start_spec(with_layer(pod.spec(attack), layer))
    stdout, container.stdout = container.stdout, -1
    assert read_all(stdout).decode() == "gid 3000: Permission denied\n"


def test_a_fork_bomb_ends_with_its_container(pod: Pod) -> None:
    """A container whose processes fork faster than anybody reads their list. Defence: its PID namespace, its cgroup."""
    bomb = script("echo up; f() { f & f & wait; }; f", no_new_privileges=True)
    container = pod.start(bomb, resources=Resources(pids_limit=64))
    assert read_line(container.stdout) == "up"
    container.kill()
    pid = container.pid
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the end of the bomb")
