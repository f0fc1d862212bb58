"""Terminals of containers and execs: what they are, whose they are, and that nothing else is one."""

from __future__ import annotations

import os
import stat
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crishim.model.process import LogTarget, ProcessSpec, User
from tests.support.container import IDLE, Container, Pod, program, read_line, script, wait_until

Show = Callable[..., str]


@pytest.fixture(params=["init", "exec"])
def show(pod: Pod, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Show]:
    """Runs a shell script with a terminal and gives what it wrote to a file of the container."""
    count = 0

    def as_init(text: str, **changes: object) -> str:
        nonlocal count
        count += 1
        log = LogTarget(str(tmp_path), f"{count}.log")
        container = pod.start(_on_terminal(text, **changes), log=log)
        assert container.wait().code == 0
        return _written(container)

    def as_exec(text: str, **changes: object) -> str:
        container = pod.start(program(*IDLE))
        exec_ = pod.start_exec(container, _on_terminal(text, **changes))
        assert exec_.wait().code == 0
        return _written(container)

    yield as_init if request.param == "init" else as_exec


def _on_terminal(text: str, **changes: object) -> ProcessSpec:
    return script(f"({text}) > /tmp/shown 2>&1", terminal=True, **changes)


def _written(container: Container) -> str:
    assert container.spec.rootfs.upper is not None
    return (Path(container.spec.rootfs.upper) / "tmp/shown").read_text()


def test_the_standard_streams_are_one_terminal_of_the_containers_devpts(show: Show) -> None:
    text = "test -t 0 && echo terminal; tty; readlink /proc/$$/fd/0; stat -f -c %T /dev/pts"
    assert show(text).split() == ["terminal", "/dev/pts/0", "/dev/pts/0", "devpts"]


@pytest.mark.parametrize("uid", [0, 1000])
def test_the_terminal_belongs_to_the_user(show: Show, uid: int) -> None:
    shown = show("stat -c '%u %g %a' /dev/pts/0; echo through > /dev/tty && echo opened", user=User(uid=uid))
    assert shown.split("\n")[0].split()[::2] == [str(uid), "620"]
    assert "opened" in shown


def test_it_is_the_controlling_terminal_of_a_session_of_its_own(show: Show) -> None:
    fields = show("cat /proc/$$/stat").rpartition(")")[2].split()
    group, session, terminal, foreground = (int(field) for field in fields[2:6])
    assert group == session == foreground != 0
    assert (os.major(terminal), os.minor(terminal)) == (136, 0)


def test_the_size_is_set_before_anybody_sees_it(show: Show) -> None:
    assert show("stty size < /dev/tty", console_width=133, console_height=44) == "44 133\n"


def test_the_console_of_an_init_is_its_terminal(pod: Pod, tmp_path: Path) -> None:
    text = "stat -c '%t:%T %F' /dev/console; stat -c %t:%T /dev/pts/0; echo x > /dev/console && echo written"
    container = pod.start(_on_terminal(text), log=LogTarget(str(tmp_path), "0.log"))
    assert container.wait().code == 0
    assert _written(container).splitlines() == ["88:0 character special file", "88:0", "written"]
    assert (tmp_path / "0.log").read_text().split(" ", 3)[3] == "x\n", "what is written there is its output"


def test_without_a_terminal_nothing_is_one(run: Callable[..., object]) -> None:
    ended = run(script("for n in 0 1 2; do test -t $n && echo $n; done; ls /dev/pts; (: < /dev/tty) 2>&1"))
    lines = ended.output.splitlines()  # type: ignore[attr-defined]
    assert lines[0] == "ptmx" and lines[1].endswith("No such device or address"), lines


def test_the_master_stays_with_the_monitor(pod: Pod, tmp_path: Path) -> None:
    """A container that held it could type for whoever attaches."""
    container = pod.start(program(*IDLE, terminal=True), log=LogTarget(str(tmp_path), "0.log"))
    held = [os.readlink(f"/proc/{container.pid}/fd/{name}") for name in os.listdir(f"/proc/{container.pid}/fd")]
    assert held == ["/dev/pts/0"] * 3


def test_an_exec_gets_a_terminal_of_its_own(pod: Pod, tmp_path: Path) -> None:
    container = pod.start(program(*IDLE, terminal=True), log=LogTarget(str(tmp_path), "0.log"))
    exec_ = pod.start_exec(container, _on_terminal("tty"))
    assert exec_.wait().code == 0
    assert _written(container) == "/dev/pts/1\n"


def test_the_end_of_the_master_hangs_the_process_up(pod: Pod) -> None:
    container = pod.start(program(*IDLE))
    exec_ = pod.start_exec(container, script("echo up; exec cat", terminal=True))
    master = pod.node.run(exec_.process.console())
    assert stat.S_ISCHR(os.fstat(master).st_mode)
    assert termios.tcgetattr(master)[3] & termios.ECHO
    assert read_line(master) == "up\r"
    os.close(master)
    assert exec_.wait().signal == 1
    wait_until(lambda: not os.path.exists(f"/proc/{exec_.pid}"), "its end")
