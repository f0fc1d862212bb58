"""Tables of what a process may be given, row by row against the kernel: for init and exec alike."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crishim.cgroups.hierarchy import detect
from crishim.errors import InvalidSpec, StartFailed
from crishim.model.process import Capabilities, IoPriority, MountSpec, ProcessSpec, Rlimit, Scheduler, User
from tests.integration.conftest import Run
from tests.support.container import IDLE, MOUNTS, Pod, program, script
from tests.support.hostile import compiled

#: directory of the cpu controller, None where there is none
CPU = detect().controllers.get("cpu")
CHOWN, KILL, NET_RAW = 1 << 0, 1 << 5, 1 << 13
_effective = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
needs_nice = pytest.mark.skipif(
    not int(_effective.split()[1], 16) >> 23 & 1, reason="CAP_SYS_NICE is missing, and with it real-time policies"
)


# -- scheduling: fields 19 (nice), 40 (priority) and 41 (policy) of /proc/PID/stat, proc(5)


def scheduling(run: Run, scheduler: Scheduler) -> list[int]:
    """Niceness, real-time priority and policy of a process."""
    fields = run(program("/bin/cat", "/proc/self/stat", scheduler=scheduler)).output.rpartition(")")[2].split()
    return [int(fields[index]) for index in (16, 37, 38)]


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (Scheduler("SCHED_OTHER", nice=17), [17, 0, 0]),
        (Scheduler("SCHED_OTHER", nice=19), [19, 0, 0]),
        (Scheduler("SCHED_BATCH", nice=13), [13, 0, 3]),
        (Scheduler("SCHED_IDLE", nice=5), [os.getpriority(os.PRIO_PROCESS, 0), 0, 5]),  # this policy has no niceness
        pytest.param(Scheduler("SCHED_OTHER", nice=-5), [-5, 0, 0], marks=needs_nice),
    ],
    ids=str,
)
def test_a_scheduling_policy_is_the_one_asked_for(run: Run, scheduler: Scheduler, expected: list[int]) -> None:
    assert scheduling(run, scheduler) == expected


@needs_nice
@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [(Scheduler("SCHED_FIFO", priority=11), [11, 1]), (Scheduler("SCHED_RR", priority=1), [1, 2])],
    ids=str,
)
def test_a_real_time_policy_is_given_or_refused_where_cgroups_share_real_time(
    run: Run, scheduler: Scheduler, expected: list[int]
) -> None:
    """With CONFIG_RT_GROUP_SCHED a new cgroup of v1 has no real time to give, and sched_setattr(2) says EPERM."""
    if CPU is not None and os.path.exists(CPU + b"/cpu.rt_runtime_us"):
        refused = rf"^scheduler\.policy {scheduler.policy} priority {scheduler.priority}: operation not permitted"
        with pytest.raises(StartFailed, match=refused + r" \(cpu\.rt_runtime_us of the cgroup /.* is 0, so it has no"):
            scheduling(run, scheduler)
    else:
        assert scheduling(run, scheduler)[1:] == expected


@pytest.mark.parametrize(
    ("process", "sentence"),
    [
        ({"scheduler": Scheduler("SCHED_FAIR")}, "scheduler.policy: 'SCHED_FAIR'"),
        ({"scheduler": Scheduler("SCHED_OTHER", flags=("SCHED_FLAG_X",))}, "scheduler.flags: 'SCHED_FLAG_X'"),
        ({"scheduler": Scheduler("SCHED_DEADLINE", runtime_ns=-1)}, "scheduler.runtime_ns: -1"),
        ({"io_priority": IoPriority("IOPRIO_CLASS_BE", 8)}, "io_priority: 'IOPRIO_CLASS_BE' 8"),
        ({"io_priority": IoPriority("IOPRIO_CLASS_NONE", 0)}, "io_priority: 'IOPRIO_CLASS_NONE' 0"),
        ({"rlimits": (Rlimit("RLIMIT_X", 1, 1),)}, "rlimits: 'RLIMIT_X'"),
        ({"rlimits": (Rlimit("RLIMIT_NOFILE", 2, 1),)}, "rlimits: RLIMIT_NOFILE soft 2 is above hard 1"),
        ({"rlimits": (Rlimit("RLIMIT_NOFILE", -1, 1),)}, "rlimits: RLIMIT_NOFILE soft -1 is above hard 1"),
        ({"rlimits": (Rlimit("RLIMIT_NOFILE", -2, -2),)}, "rlimits: soft RLIMIT_NOFILE: -2"),
        ({"env": ("NOVALUE",)}, "env: 'NOVALUE'"),
        ({"env": ("=x",)}, "env: '=x'"),
        ({"env": ("A=\0",)}, "env: 'A=\\\\x00' holds a NUL"),
        ({"args": ()}, "args is empty"),
        ({"args": ("/bin/true", "a\0b")}, "args: 'a\\\\x00b' holds a NUL"),
        ({"cwd": "/tmp\0/etc"}, "cwd: .* holds a NUL"),
        ({"user": User(uid=(1 << 32) - 1)}, "uid: 4294967295"),
        ({"user": User(gid=-1)}, "gid: -1"),
        ({"user": User(additional_groups=(0, 1 << 32))}, "additional_groups: 4294967296"),
        ({"oom_score_adj": 1001}, "oom_score_adj: 1001"),
        ({"capabilities": Capabilities(bounding=frozenset({"CAP_FLY"}))}, "capabilities: 'CAP_FLY'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_field_that_cannot_be_honoured_is_refused_by_name(
    run: Run, process: dict[str, object], sentence: str
) -> None:
    with pytest.raises(InvalidSpec, match=sentence):
        run(program("/bin/true", **process) if "args" not in process else ProcessSpec(**process))  # type: ignore[arg-type]


# -- I/O priority


@pytest.mark.parametrize(
    ("priority", "shown"),
    [
        (IoPriority("IOPRIO_CLASS_BE", 0), "best-effort: prio 0"),
        (IoPriority("IOPRIO_CLASS_BE", 7), "best-effort: prio 7"),
        (IoPriority("IOPRIO_CLASS_IDLE", 0), "idle"),
    ],
    ids=str,
)
def test_an_io_priority_is_the_one_asked_for(run: Run, priority: IoPriority, shown: str) -> None:
    assert run(program("/bin/ionice", io_priority=priority)).output.startswith(shown)


# -- limits


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("RLIMIT_CPU", "Max cpu time"),
        ("RLIMIT_FSIZE", "Max file size"),
        ("RLIMIT_DATA", "Max data size"),
        ("RLIMIT_STACK", "Max stack size"),
        ("RLIMIT_CORE", "Max core file size"),
        ("RLIMIT_RSS", "Max resident set"),
        ("RLIMIT_NPROC", "Max processes"),
        ("RLIMIT_NOFILE", "Max open files"),
        ("RLIMIT_MEMLOCK", "Max locked memory"),
        ("RLIMIT_AS", "Max address space"),
        ("RLIMIT_LOCKS", "Max file locks"),
        ("RLIMIT_SIGPENDING", "Max pending signals"),
        ("RLIMIT_MSGQUEUE", "Max msgqueue size"),
        ("RLIMIT_RTTIME", "Max realtime timeout"),
    ],
)
def test_each_kind_of_limit_reaches_its_own(run: Run, kind: str, name: str) -> None:
    """Small enough to need no privilege, large enough for the process to run."""
    soft, hard = (60, 61) if kind in ("RLIMIT_CPU", "RLIMIT_NOFILE") else (1 << 26, (1 << 26) + 4096)
    if kind in ("RLIMIT_MEMLOCK", "RLIMIT_MSGQUEUE", "RLIMIT_SIGPENDING", "RLIMIT_NPROC"):
        soft, hard = 1000, 1001
    lines = run(program("/bin/cat", "/proc/self/limits", rlimits=(Rlimit(kind, soft, hard),))).lines
    found = {line[:26].strip(): line[26:].split()[:2] for line in lines}
    assert found[name] == [str(soft), str(hard)]


def test_a_limit_bites(run: Run) -> None:
    opened = run(script("exec 3</dev/null 4</dev/null 5</dev/null", rlimits=(Rlimit("RLIMIT_NOFILE", 4, 4),)))
    assert opened.code != 0 and "too many" in opened.output.lower()


# -- capabilities beyond the sets themselves


def masks(run: Run, sets: Capabilities, **changes: object) -> dict[str, int]:
    lines = run(program("/bin/grep", "^Cap", "/proc/self/status", capabilities=sets, **changes)).lines
    return {line[3:6]: int(line.split()[1], 16) for line in lines}


def test_the_bounding_set_limits_what_root_has_after_execve(run: Run) -> None:
    """capabilities(7): for root the new permitted set is the inheritable and the bounding one."""
    few, many = frozenset({"CAP_CHOWN"}), frozenset({"CAP_CHOWN", "CAP_KILL"})
    found = masks(run, Capabilities(bounding=few, effective=many, permitted=many))
    assert found == {"Inh": 0, "Prm": CHOWN, "Eff": CHOWN, "Bnd": CHOWN, "Amb": 0}


def test_inheritable_ones_are_kept_for_programs_that_want_them(run: Run) -> None:
    given = frozenset({"CAP_KILL"})
    found = masks(run, Capabilities(bounding=given, permitted=given, inheritable=given), user=User(uid=1000))
    assert found == {"Inh": KILL, "Prm": 0, "Eff": 0, "Bnd": KILL, "Amb": 0}


def test_an_exec_may_have_more_than_the_init_and_the_init_stays_as_it_is(pod: Pod) -> None:
    container = pod.start(program(*IDLE))
    more = frozenset({"CAP_NET_RAW"})

    def run(process: ProcessSpec) -> object:
        return pod.exec(container, process)

    assert masks(run, Capabilities(more, more, more))["Eff"] == NET_RAW  # type: ignore[arg-type]
    assert "CapBnd:\t0000000000000000" in container.proc("status")


@pytest.mark.parametrize("wanted", [False, True])
def test_set_group_id_programs_work_only_without_no_new_privileges(run: Run, tmp_path: Path, wanted: bool) -> None:
    place = tmp_path / "regroup"
    compiled("regroup.c", place)
    os.chown(place, 0, 3000)
    place.chmod(0o2755)
    mounts = (*MOUNTS, MountSpec("/regroup", source=str(place)))
    who = User(uid=1000, gid=1000)
    ended = run(program("/regroup", "/etc/passwd", user=who, no_new_privileges=wanted), mounts=mounts)
    assert ended.output == ("gid 1000: read\n" if wanted else "gid 3000: read\n")


# -- environment


def test_the_environment_is_the_one_given_and_nothing_of_ours(run: Run) -> None:
    assert run(program("/bin/env", env=())).output == ""
    assert not {*os.environ} & {line.partition("=")[0] for line in run(program("/bin/env", env=("ONLY=1",))).lines}


@pytest.mark.parametrize(
    "entry",
    ["A B=1", "A.B-C=1", "1=one", "X=", "X= ", "X=a=b", "X=\ttab", "X=two\nlines", "X=ünïcode", "X=" + "y" * 100_000],
    ids=lambda entry: repr(entry[:10]),
)
def test_unusual_entries_arrive_to_the_letter(run: Run, entry: str) -> None:
    assert run(program("/bin/cat", "/proc/self/environ", env=(entry,))).output == entry + "\0"
