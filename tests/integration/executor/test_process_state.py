"""What else a process finds at execve: signals, descriptors, environment, working directory, limits, priorities."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from crishim.errors import StartFailed
from crishim.executor.client import ExecSpec
from crishim.model.process import CpuAffinity, IoPriority, LogTarget, MemoryPolicy, MountSpec, Rlimit, Scheduler, User
from tests.integration.conftest import Run
from tests.support.container import IDLE, MOUNTS, Exec, Pod, program, script


def test_signals_have_their_default_action_and_none_is_blocked(run: Run) -> None:
    lines = run(program("/bin/grep", "-E", "^Sig(Blk|Ign|Cgt):", "/proc/self/status")).lines
    assert [line.split()[1] for line in lines] == ["0000000000000000"] * 3


def test_descriptors_are_exactly_the_first_three(run: Run) -> None:
    assert run(script("ls /proc/$$/fd; true")).lines == ["0", "1", "2"]


def test_each_process_leads_its_own_session(run: Run) -> None:
    fields = run(program("/bin/cat", "/proc/self/stat")).output.rpartition(")")[2].split()
    _, parent, group, session = fields[:4]
    assert parent == "0", "the parent is outside of the PID namespace"
    assert group == session != "0"


def test_the_environment_is_given_to_the_letter_and_the_last_of_equal_names_wins(run: Run) -> None:
    env = ("PATH=/bin", "A=1", "EMPTY=", "B=x=y", "A=2", "SPACE= a ")
    assert run(program("/bin/env", env=env)).lines == ["PATH=/bin", "A=2", "EMPTY=", "B=x=y", "SPACE= a "]


def test_bytes_that_are_no_text_arrive_as_they_are(run: Run) -> None:
    odd = os.fsdecode(b"\xff\xfe")
    ended = run(program("/bin/sh", "-c", 'printf %s "$X$0" | od -An -tx1', odd, env=("PATH=/bin", "X=" + odd)))
    assert ended.output.split() == ["ff", "fe", "ff", "fe"]


def test_a_command_without_slash_is_looked_up_in_its_own_path(run: Run) -> None:
    assert run(program("echo", "found", env=("PATH=/nowhere:/etc/passwd:/bin",))).output == "found\n"


def test_the_working_directory_is_entered(run: Run) -> None:
    assert run(program("/bin/pwd", cwd="/tmp")).output == "/tmp\n"


def test_a_working_directory_that_the_image_lacks_is_made_for_init(pod: Pod) -> None:
    assert pod.run(program("/bin/pwd", cwd="/srv/deep/er")).output == "/srv/deep/er\n"


def test_a_working_directory_that_only_root_may_enter(run: Run) -> None:
    assert run(program("/bin/true", cwd="/root", user=User(uid=1000))).code == 0


def test_a_working_directory_that_only_the_user_may_enter(run: Run, tmp_path: Path) -> None:
    """Root has no CAP_DAC_OVERRIDE inside, so the first try, with root's rights, may not arrive."""
    place = tmp_path / "private"
    place.mkdir(0o700)
    os.chown(place, 1000, 1000)
    mounts = (*MOUNTS, MountSpec("/private", source=str(place)))
    assert run(program("/bin/pwd", cwd="/private", user=User(uid=1000)), mounts=mounts).output == "/private\n"


def test_a_missing_working_directory_of_an_exec_is_a_sentence(pod: Pod) -> None:
    container = pod.start(program("/bin/sleep", "600"))
    with pytest.raises(StartFailed, match='working directory "/no/where": no such file or directory'):
        pod.exec(container, program("/bin/true", cwd="/no/where"))


def test_a_working_directory_that_is_a_file_is_a_sentence(run: Run) -> None:
    with pytest.raises(StartFailed, match='working directory "/etc/passwd": not a directory'):
        run(program("/bin/true", cwd="/etc/passwd"))


def limits(run: Run, *wanted: Rlimit) -> dict[str, list[str]]:
    lines = run(program("/bin/cat", "/proc/self/limits", rlimits=wanted)).lines
    return {line[:26].strip(): line[26:].split()[:2] for line in lines}


def test_resource_limits_are_set(run: Run) -> None:
    found = limits(run, Rlimit("RLIMIT_NOFILE", 100, 200), Rlimit("RLIMIT_CORE", 0, 0), Rlimit("RLIMIT_CPU", 7, -1))
    assert found["Max open files"] == ["100", "200"]
    assert found["Max core file size"] == ["0", "0"]
    assert found["Max cpu time"] == ["7", "unlimited"]


def test_a_hard_limit_above_ours_is_clamped_where_it_cannot_be_raised(run: Run) -> None:
    ours = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    found = limits(run, Rlimit("RLIMIT_NOFILE", ours + 5, ours + 10))["Max open files"]
    may_raise = "CAP_SYS_RESOURCE" in _our_capabilities()
    assert found == ([str(ours + 5), str(ours + 10)] if may_raise else [str(ours), str(ours)])


def _our_capabilities() -> set[str]:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    return {"CAP_SYS_RESOURCE"} if int(line.split()[1], 16) >> 24 & 1 else set()


def test_oom_score_adj_is_set(run: Run) -> None:
    assert run(program("/bin/cat", "/proc/self/oom_score_adj", oom_score_adj=321)).output == "321\n"


def test_affinity_is_as_asked_and_all_processors_otherwise(run: Run) -> None:
    def allowed(affinity: CpuAffinity | None) -> str:
        show = program("/bin/grep", "Cpus_allowed_list", "/proc/self/status", cpu_affinity=affinity)
        return run(show).output.split()[1]

    assert allowed(CpuAffinity(final="0")) == "0"
    last = (os.sysconf("SC_NPROCESSORS_CONF")) - 1
    assert allowed(None) == (f"0-{last}" if last else "0")


def test_scheduling_policy_and_niceness_are_set(run: Run) -> None:
    ended = run(program("/bin/cat", "/proc/self/stat", scheduler=Scheduler("SCHED_BATCH", nice=5)))
    fields = ended.output.rpartition(")")[2].split()
    assert (fields[16], fields[38]) == ("5", "3")


def test_the_session_keyring_is_the_containers_own_and_its_execs_join_it(pod: Pod) -> None:
    container = pod.start(program(*IDLE))
    read = script(f"grep ' _ses.{container.id}: ' /proc/keys")
    first, second = pod.exec(container, read), pod.exec(container, read)
    assert len(first.lines) == 1, "a second of the name would be an exec's own"
    assert first.lines[0].split()[0] == second.lines[0].split()[0]
    assert int(first.lines[0].split()[2]) >= 2, "used by init and exec"


def test_a_personality_is_set(run: Run) -> None:
    assert run(program("/bin/uname", "-m", personality="LINUX32")).lines == ["i686"]
    assert run(program("/bin/uname", "-m", personality="LINUX")).lines == [os.uname().machine]


def test_a_memory_policy_is_set(run: Run) -> None:
    policy = MemoryPolicy("MPOL_BIND", "0")
    ended = run(program("/bin/head", "-n", "1", "/proc/self/numa_maps", memory_policy=policy))
    assert ended.lines[0].split()[1] == "bind:0"


def test_output_can_be_opened_again_by_the_user(pod: Pod, tmp_path: Path) -> None:
    """As programs do that log to /dev/stdout."""
    text = "echo direct; echo again > /proc/self/fd/1; echo error > /dev/stderr; echo rc $?"
    process = script(text, user=User(uid=1000, gid=1000))
    container = pod.start(process, log=LogTarget(str(tmp_path), "0.log"))
    container.wait()
    written = [line.split(" ", 3)[3] for line in (tmp_path / "0.log").read_text().splitlines()]
    assert sorted(written) == ["again", "direct", "error", "rc 0"]


def test_a_pipe_that_is_given_becomes_the_users(run: Run) -> None:
    ended = run(script("echo again > /dev/stdout; echo error > /dev/stderr", user=User(uid=1000, gid=1000)))
    assert sorted(ended.lines) == ["again", "error"]


def test_a_device_that_is_given_stays_whose_it_is(pod: Pod) -> None:
    container = pod.start(program(*IDLE))
    with open("/dev/zero", "rb") as device:
        before = os.fstat(device.fileno()).st_uid
        spec = ExecSpec(
            container_id=container.id,
            init_pidfd=container.pidfd,
            process=program("/bin/true", user=User(uid=1000)),
            cgroup_path=container.spec.cgroup.path,
            namespaces=container.namespaces(),
            stdin=device.fileno(),
        )
        exec_ = Exec(pod.node, pod.node.run(pod.node.executor.exec(spec)), -1)
        assert exec_.wait().code == 0
        exec_.close()
        assert os.fstat(device.fileno()).st_uid == before


def test_io_priority_is_set(run: Run) -> None:
    assert run(program("/bin/ionice", io_priority=IoPriority("IOPRIO_CLASS_BE", 6))).output == "best-effort: prio 6\n"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("nosuch",), r'exec: "nosuch": executable file not found in \$PATH'),
        (("/no/such",), 'exec: "/no/such": no such file or directory'),
        (("/etc/passwd",), 'exec: "/etc/passwd": permission denied'),
        (("/etc",), 'exec: "/etc": permission denied'),
    ],
)
def test_a_command_that_cannot_run_is_a_sentence(run: Run, args: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(StartFailed, match=f"^{sentence}$"):
        run(program(*args))


def test_a_file_that_is_no_program_is_a_sentence(pod: Pod) -> None:
    container = pod.start(script("echo text > /tmp/x; chmod 755 /tmp/x; echo made; exec sleep 600"))
    assert os.read(container.stdout, 10) == b"made\n"
    with pytest.raises(StartFailed, match='exec: "/tmp/x": exec format error'):
        pod.exec(container, program("/tmp/x"))
