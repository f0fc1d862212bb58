"""Hooks of a container: when they run, where, what they are told, and what becomes of a start when one fails."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crishim import Container, Hook, Hooks, Process, ProcessSpec, User, isolated
from crishim.cgroups import effects
from crishim.errors import InvalidSpec, StartFailed
from crishim.model.process import MountSpec
from crishim.model.sandbox import IdMapping
from crishim.process import open_engine
from crishim.process.engine import cgroup_root
from crishim.spec.capabilities import DEFAULT
from crishim.spec.seccomp import runtime_default
from tests.support.container import read_all, wait_until

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.usefixtures("engine")]

EARLY = ("prestart", "create_runtime", "create_container")
STAGES = (*EARLY, "start_container", "poststart", "poststop")
IDLE = ProcessSpec(args=("sleep", "1000"), init=True)


Make = Callable[..., Container]


@pytest.fixture
def make(root: Path) -> Iterator[Make]:
    made: list[Container] = []

    def container(hooks: Hooks, **changes: Any) -> Container:
        spec = isolated(root, id=f"hooked-{os.getpid()}-{len(made)}")
        made.append(Container(replace(spec, hooks=hooks, annotations={"a": "é"}, **changes)))
        return made[-1]

    yield container
    for each in made:
        each.destroy()
    assert not hook_cgroups()


def hook_cgroups() -> list[str]:
    hierarchy = open_engine({}).executor.hierarchy
    found = []
    for _, directory in effects.directories(hierarchy, f"{cgroup_root()}/monitors"):
        if os.path.isdir(directory):
            found += [name for name in os.listdir(os.fsdecode(directory)) if name.startswith("hooks.")]
    return found


def sh(script: str, **changes: Any) -> Hook:
    """A hook that is a shell with a script; inside the container there is a /bin/sh too."""
    return Hook("/bin/sh", ("sh", "-c", script), **changes)


def run(container: Container, process: ProcessSpec) -> tuple[str, int]:
    ours, theirs = os.pipe()
    init = Process(process, stdout=theirs, stderr=theirs)
    try:
        container.start(init)
    finally:
        os.close(theirs)
    output = read_all(ours).decode()
    return output, init.wait(20).code


def test_hooks_run_in_their_order_around_the_process(make: Make, root: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    log.chmod(0o666)
    hooks = {stage: (sh(f"echo {stage} 0 >> {log}"), sh(f"echo {stage} 1 >> {log}")) for stage in STAGES}
    hooks["start_container"] = (sh("echo start_container 0 >> /log"), sh("echo start_container 1 >> /log"))
    mount = MountSpec("/log", source=str(log))
    container = make(Hooks(**hooks))
    container.spec = replace(container.spec, mounts=(*container.spec.mounts, mount))
    script = "echo process >> /log; exec sleep 1000"
    container.start(Process(ProcessSpec(args=("sh", "-c", script), init=True)))
    wait_until(lambda: "process" in log.read_text())
    assert "poststop" not in log.read_text()
    container.destroy()
    lines = log.read_text().splitlines()
    assert lines.index("process") > lines.index("start_container 1"), "executed after it; poststart may come before"
    lines.remove("process")
    assert lines == [f"{stage} {number}" for stage in STAGES for number in (0, 1)]


def test_each_hook_is_told_the_state_as_of_its_moment(make: Make, tmp_path: Path) -> None:
    (tmp_path / "states").mkdir(mode=0o777)
    (tmp_path / "states").chmod(0o777)
    where = {stage: f"{tmp_path}/states/{stage}" for stage in STAGES} | {"start_container": "/states/start_container"}
    container = make(Hooks(**{stage: (sh(f"cat > {path}"),) for stage, path in where.items()}))
    mount = MountSpec("/states", source=f"{tmp_path}/states")
    container.spec = replace(container.spec, mounts=(*container.spec.mounts, mount))
    init = Process(IDLE)
    container.start(init)
    bundle, pid = container.state().bundle, init.pid
    assert json.loads(Path(bundle, "config.json").read_text())["root"] == {"path": "rootfs", "readonly": False}
    container.destroy()
    expected = {
        "prestart": ("creating", pid),
        "create_runtime": ("creating", pid),
        "create_container": ("creating", 1),  # its number in the container's own PID namespace
        "start_container": ("created", 1),
        "poststart": ("running", pid),
        "poststop": ("stopped", None),
    }
    for stage, (status, number) in expected.items():
        state = json.loads((tmp_path / "states" / stage).read_text())
        assert state.pop("pid", None) == number, stage
        assert state == {
            "ociVersion": "1.2.0",
            "id": container.spec.id,
            "bundle": bundle,
            "annotations": {"a": "é"},
            "status": status,
        }


def namespaces_seen(make: Make, tmp_path: Path, stage: str) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Namespaces of the hook, of this process, and of the container's init."""
    place = tmp_path / "seen"
    kinds = ("mnt", "net", "ipc", "uts", "pid", "cgroup")
    script = f"for kind in {' '.join(kinds)}; do readlink /proc/self/ns/$kind; done > {place}"
    container = make(Hooks(**{stage: (sh(script),)}))
    init = Process(IDLE)
    container.start(init)
    theirs = {kind: os.readlink(f"/proc/{init.pid}/ns/{kind}") for kind in kinds}
    container.destroy()
    seen = dict(zip(kinds, place.read_text().split(), strict=True))
    return seen, {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in kinds}, theirs


@pytest.mark.parametrize("stage", ["prestart", "create_runtime", "poststart", "poststop"])
def test_a_hook_of_the_runtime_is_in_the_hosts_namespaces(make: Make, tmp_path: Path, stage: str) -> None:
    seen, ours, _ = namespaces_seen(make, tmp_path, stage)
    assert seen == ours


def test_a_hook_of_create_container_is_in_those_of_the_container(make: Make, tmp_path: Path) -> None:
    seen, ours, theirs = namespaces_seen(make, tmp_path, "create_container")
    assert seen == theirs
    assert not {*seen.values()} & {*ours.values()}


def test_hooks_before_the_root_is_entered_see_it_in_the_bundle_and_what_they_mount_stays_inside(
    make: Make, tmp_path: Path
) -> None:
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "gift").write_text("from the host\n")
    script = (
        'r=$(sed \'s/.*"bundle":"\\([^"]*\\)".*/\\1/\')/rootfs; test -e $r/dev/null && test -d $r/proc/self && '
        f"mkdir -p $r/given && mount --bind {tmp_path}/extra $r/given && echo made > $r/tmp/made"
    )
    container = make(Hooks(create_container=(sh(script),)))
    output, code = run(container, ProcessSpec(args=("sh", "-c", "cat /given/gift /tmp/made; ls /"), init=True))
    assert (output.splitlines()[:2], code) == (["from the host", "made"], 0)
    assert {*output.split()[4:]} == {"bin", "dev", "etc", "given", "proc", "root", "sys", "tmp"}
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text(), "nothing has reached the host"


def test_a_container_with_hooks_finds_nothing_of_the_host_in_its_mounts(make: Make) -> None:
    plain, _ = run(make(Hooks()), ProcessSpec(args=("cat", "/proc/self/mountinfo"), init=True))
    hooked, _ = run(make(Hooks(prestart=(sh("true"),))), ProcessSpec(args=("cat", "/proc/self/mountinfo"), init=True))

    def places(table: str) -> set[str]:
        return {line.split()[4] for line in table.splitlines()}

    assert places(hooked) == places(plain)


@pytest.fixture
def marks() -> Iterator[Path]:
    """A directory that anybody reaches and may write to: those of pytest are closed."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o777)
        yield Path(name)


def test_hooks_in_all_places_run_for_a_container_in_a_user_namespace(root: Path, marks: Path) -> None:
    def mark(stage: str, where: Path | str) -> Hook:
        return sh(f"(id -u; readlink /proc/self/ns/user; cat) > {where}/{stage}")

    hooks = {stage: (mark(stage, marks),) for stage in STAGES}
    hooks["start_container"] = (mark("start_container", "/marks"),)
    spec = isolated(root, id=f"hooked-{os.getpid()}-user", ids=IdMapping(0, 200_000, 65536))
    spec = replace(spec, hooks=Hooks(**hooks), mounts=(*spec.mounts, MountSpec("/marks", source=str(marks))))
    with Container(spec) as container:
        init = Process(IDLE)
        container.start(init)
        inner = os.readlink(f"/proc/{init.pid}/ns/user")
        assert "/marks" in Path(f"/proc/{init.pid}/mountinfo").read_text()
        places = {line.split()[4] for line in Path(f"/proc/{init.pid}/mountinfo").read_text().splitlines()}
        assert not [place for place in places if place.startswith("/tmp")], "the host's tree is gone"
    outer = os.readlink("/proc/self/ns/user")
    assert inner != outer
    for stage in STAGES:
        uid, namespace, state = (marks / stage).read_text().splitlines()
        is_inside = stage in ("create_container", "start_container")
        assert (uid, namespace) == ("0", inner if is_inside else outer), stage
        assert json.loads(state)["id"] == container.spec.id


def test_a_hook_in_a_user_namespace_finds_its_bundle_behind_closed_directories(root: Path, marks: Path) -> None:
    """And nothing else of what is closed."""
    bundle = 'b=$(sed \'s/.*"bundle":"\\([^"]*\\)".*/\\1/\'); cd $b'
    seen = f"(cat config.json; echo; ls rootfs/bin/busybox; pwd; ls $(dirname $b)) > {marks}/seen"
    hooks = Hooks(create_container=(sh(f"{bundle} && touch rootfs/tmp/hooked && {seen}"),))
    spec = isolated(root, id=f"hooked-{os.getpid()}-closed", ids=IdMapping(0, 200_000, 65536))
    with Container(replace(spec, hooks=hooks)) as container:
        container.start(Process(IDLE))
        place = Path(container.state().bundle)
        assert not place.parent.stat().st_mode & 0o077, "closed"
        found = Process(ProcessSpec(args=("test", "-e", "/tmp/hooked")))
        container.start(found)
        assert found.wait(20).code == 0
        config, *names = (marks / "seen").read_text().splitlines()
        assert json.loads(config)["root"]["path"] == "rootfs"
        assert names == ["rootfs/bin/busybox", str(place), "bundle"]
        mounts = Path("/proc/self/mountinfo").read_text()
        assert str(place.parent) not in mounts, "the host sees nothing of it"


def test_a_start_container_hook_is_what_the_process_will_be(make: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.touch()
    out.chmod(0o666)
    script = "(id -u; grep CapEff /proc/self/status; grep Seccomp: /proc/self/status; env) > /out"
    container = make(Hooks(start_container=(sh(script),)))
    mount = MountSpec("/out", source=str(out))
    container.spec = replace(container.spec, mounts=(*container.spec.mounts, mount))
    process = replace(
        IDLE,
        user=User(1000, 1000),
        no_new_privileges=True,
        env=("OF=process", "PATH=/bin", "HOME=/"),
        seccomp=runtime_default(DEFAULT, (6, 1), os.uname().machine),
    )
    container.start(Process(process))
    lines = out.read_text().splitlines()
    assert lines[:3] == ["1000", "CapEff:\t0000000000000000", "Seccomp:\t2"]
    assert "OF=process" in lines, "the process's, when the hook has none of its own"


@pytest.mark.parametrize("stage", STAGES)
def test_arguments_and_environment_are_to_the_letter(make: Make, tmp_path: Path, stage: str) -> None:
    out = tmp_path / "out"
    out.touch()
    out.chmod(0o666)
    path = "/out" if stage == "start_container" else str(out)
    script = f'echo "$0|$1|$(env | grep -v -e PWD -e SHLVL -e ^_= -e ^PATH=)" > {path}'
    hook = Hook("/bin/sh", ("/other name/sh", "-c", script, "x y", "z"), env=("ONLY=this",))
    container = make(Hooks(**{stage: (hook,)}))
    container.spec = replace(container.spec, mounts=(*container.spec.mounts, MountSpec("/out", source=str(out))))
    container.start(Process(IDLE))
    container.destroy()
    assert out.read_text() == "x y|z|ONLY=this\n"


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "start_container"])
def test_t55_the_environment_of_an_image_does_not_reach_a_hook(make: Make, tmp_path: Path, stage: str) -> None:
    """CVE-2025-23266: a hook inherits the image's LD_PRELOAD, and its loader finds the library in the image's root.

    Defence: a hook has the environment that it was configured with, which is none.
    """
    out = tmp_path / "out"
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a C compiler is needed to make a library")
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-o", tmp_path / "preload.so", "-"]
    subprocess.run(command, input=b"int preloaded = 1;\n", check=True)
    mount = MountSpec("/preload.so", source=str(tmp_path / "preload.so"))
    names = (
        "LD_PRELOAD=./preload.so:/preload.so:rootfs/preload.so",
        "LD_LIBRARY_PATH=/",
        "ENV=/evil",
        "BASH_ENV=/evil",
    )
    script = f"cat /proc/self/maps > {out}; echo >> {out}; tr '\\0' '\\n' < /proc/self/environ >> {out}"
    container = make(Hooks(**{stage: (Hook("/bin/sh", ("sh", "-c", script)),)}))
    container.spec = replace(container.spec, mounts=(*container.spec.mounts, mount))
    container.start(Process(replace(IDLE, env=(*names, "PATH=/bin"))))
    container.destroy()
    maps, _, environment = out.read_text().rpartition("\n\n")
    assert maps and "preload" not in maps
    assert environment == ""


@pytest.mark.parametrize("stage", STAGES[:-1])
def test_a_hook_that_fails_ends_the_start_and_names_itself(make: Make, tmp_path: Path, stage: str) -> None:
    ran = tmp_path / "poststop"
    hooks = Hooks(**{stage: (sh("true"), sh("echo why; exit 3"))}) + Hooks(poststop=(sh(f"touch {ran}"),))
    container = make(hooks)
    name = {
        "create_runtime": "createRuntime",
        "create_container": "createContainer",
        "start_container": "startContainer",
    }.get(stage, stage)
    with pytest.raises(StartFailed, match=rf'{name} hook 1 "/bin/sh": exit code 3: why'):
        container.start(Process(IDLE))
    container.destroy()
    assert ran.exists(), "what earlier hooks have made is theirs to take back"
    hierarchy = open_engine({}).executor.hierarchy
    assert effects.pids(hierarchy, container.spec.cgroup.path) == []


@pytest.mark.parametrize("stage", STAGES[:-1])
def test_a_hook_that_takes_too_long_is_killed_with_what_it_started(make: Make, tmp_path: Path, stage: str) -> None:
    pids = tmp_path / "pids"
    pids.touch()
    pids.chmod(0o666)
    path = "/pids" if stage == "start_container" else str(pids)
    hook = sh(f"setsid sleep 900 & echo > {path}; exec sleep 900", timeout_s=1)
    container = make(Hooks(**{stage: (hook,)}))
    container.spec = replace(container.spec, mounts=(*container.spec.mounts, MountSpec("/pids", source=str(pids))))
    with pytest.raises(StartFailed, match="did not end within 1 s and was killed"):
        container.start(Process(IDLE))
    assert pids.read_text() == "\n"
    container.destroy()
    wait_until(lambda: not sleepers("900"))


def sleepers(seconds: str) -> list[str]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if Path(f"/proc/{entry}/cmdline").read_bytes() == f"sleep\0{seconds}\0".encode():
                    found.append(entry)
            except OSError:
                pass
    return found


def test_a_hook_that_does_not_exist_is_a_sentence(make: Make) -> None:
    container = make(Hooks(create_runtime=(Hook("/nowhere/hook"),)))
    with pytest.raises(StartFailed, match=r'createRuntime hook 0 "/nowhere/hook": .*no such file'):
        container.start(Process(IDLE))
    container = make(Hooks(start_container=(Hook("/nowhere/hook"),)))
    with pytest.raises(StartFailed, match=r'startContainer hook 0 "/nowhere/hook": exec: .*no such file'):
        container.start(Process(IDLE))


def test_a_poststop_hook_that_fails_keeps_no_other_from_running(make: Make, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    container = make(Hooks(poststop=(sh("exit 1"), sh(f"touch {ran}"))))
    container.start(Process(IDLE))
    container.signal(signal.SIGKILL)
    container.destroy()
    assert ran.exists()


def test_what_a_hook_leaves_running_lives_as_long_as_the_container(make: Make) -> None:
    container = make(Hooks(create_runtime=(sh("setsid sleep 901 < /dev/null > /dev/null 2>&1 &"),)))
    container.start(Process(IDLE))
    wait_until(lambda: len(sleepers("901")) == 1)  # its shell has ended before it becomes a sleep
    container.destroy()
    wait_until(lambda: not sleepers("901"))


def test_a_hook_may_write_more_than_a_pipe_holds_and_read_nothing(make: Make) -> None:
    loud = sh("dd if=/dev/zero bs=1024 count=1000 2> /dev/null")
    container = make(Hooks(create_runtime=(loud,)))
    container.spec = replace(container.spec, annotations={"long": "x" * 200_000})
    container.start(Process(IDLE))


def test_a_program_that_dies_with_its_hook_running_leaves_nothing(make: Make) -> None:
    """A start that is cancelled ends its hooks, as a stop of the pod asks for."""
    container = make(Hooks(prestart=(sh("setsid sleep 902 & exec sleep 902"),)))
    engine = open_engine({})

    async def start_and_cancel() -> None:
        start = asyncio.ensure_future(container._start_init(Process(IDLE)))
        while len(sleepers("902")) < 2:
            await asyncio.sleep(0.01)
        assert container._monitor is not None
        await container._monitor.cancel_start(container.spec.id)
        with pytest.raises(StartFailed):
            await start

    engine.call(start_and_cancel(), 30)
    wait_until(lambda: not sleepers("902"))


@pytest.mark.parametrize(
    ("hook", "match"),
    [
        (Hook("relative"), r"hooks.prestart\[0\].path: 'relative' is not an absolute path"),
        (Hook("/x", timeout_s=0), r"hooks.prestart\[0\].timeout: 0"),
        (Hook("/x", env=("=y",)), r"hooks.prestart\[0\].env: '=y'"),
        (Hook("/x", args=("a\0b",)), "NUL"),
    ],
)
def test_a_hook_that_cannot_be_is_refused_before_anything_is_made(make: Make, hook: Hook, match: str) -> None:
    container = make(Hooks(prestart=(hook,)))
    with pytest.raises(InvalidSpec, match=match):
        container.start(Process(IDLE))
    assert container._directory is None


def test_a_container_without_hooks_has_no_bundle_and_waits_for_nobody(make: Make) -> None:
    container = make(Hooks())
    before = time.monotonic()
    container.start(Process(IDLE))
    assert container.state().bundle == ""
    assert time.monotonic() - before < 20
