"""A container's output: complete, in CRI's format, across rotations; and what reaches nobody."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from crishim.errors import StartFailed
from crishim.model.process import LogTarget, Namespace, NamespaceKind
from tests.support.container import IDLE, Pod, program, script, wait_until

LINE = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(?:Z|[+-]\d\d:\d\d)) (stdout|stderr) ([FP]) (.*)$")


def entries(log: Path) -> list[tuple[str, str, str]]:
    """(stream, tag, text) of each line; every line must be one of CRI's."""
    found = [LINE.match(line) for line in log.read_text().split("\n")[:-1]]
    assert all(found), log.read_text()[:500]
    return [match.group(2, 3, 4) for match in found if match]  # type: ignore[misc]


@pytest.fixture
def log(tmp_path: Path) -> LogTarget:
    (tmp_path / "logs").mkdir()
    return LogTarget(str(tmp_path / "logs"), "app/0.log")


def file_of(log: LogTarget) -> Path:
    return Path(log.directory) / log.path


def test_both_streams_are_logged_and_an_unfinished_line_is_partial(pod: Pod, log: LogTarget) -> None:
    pod.start(script("echo one; echo two >&2; printf three"), log=log).wait()
    found = entries(file_of(log))
    assert [entry for entry in found if entry[0] == "stdout"] == [("stdout", "F", "one"), ("stdout", "P", "three")]
    assert [entry for entry in found if entry[0] == "stderr"] == [("stderr", "F", "two")]


def test_a_flood_arrives_complete_and_in_order(pod: Pod, log: LogTarget) -> None:
    record = pod.start(program("/bin/seq", "1", "60000"), log=log).wait()
    assert record.log_bytes_lost == 0
    assert [text for _, _, text in entries(file_of(log))] == [str(number) for number in range(1, 60001)]


def test_what_the_container_wrote_last_is_in_the_log_when_its_end_is_told(pod: Pod, log: LogTarget) -> None:
    for _ in range(10):
        pod.start(script("echo last words; kill -9 $$"), log=log, namespaces=(Namespace(NamespaceKind.MOUNT),)).wait()
    assert [text for _, _, text in entries(file_of(log))] == ["last words"] * 10


def test_a_rotation_loses_nothing(pod: Pod, log: LogTarget) -> None:
    container = pod.start(script("i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done"), log=log)
    path = file_of(log)
    wait_until(lambda: path.stat().st_size > 1000, "the first lines")
    rotated = path.with_suffix(".1")
    path.rename(rotated)
    pod.node.run(pod.monitor.reopen_log(container.id))
    assert path.exists()
    container.wait()
    texts = [text for _, _, text in entries(rotated) + entries(path)]
    assert texts == [str(number) for number in range(20000)]
    assert entries(rotated) and entries(path)


def test_an_ended_or_silent_container_has_no_log_to_reopen(pod: Pod, log: LogTarget) -> None:
    ended = pod.start(program("/bin/true"), log=log)
    ended.wait()
    for container in (ended, pod.start(program(*IDLE))):
        with pytest.raises(StartFailed, match="the container has no open log"):
            pod.node.run(pod.monitor.reopen_log(container.id))
    with pytest.raises(StartFailed, match="the monitor has no container nobody"):
        pod.node.run(pod.monitor.reopen_log("nobody"))


def test_a_process_outside_that_keeps_the_pipe_does_not_hold_the_end_back(pod: Pod, log: LogTarget) -> None:
    container = pod.start(script("echo bye; exec sleep 600"), log=log)
    wait_until(lambda: file_of(log).read_text().endswith(" bye\n"), "the line")
    keeper = os.open(f"/proc/{container.pid}/fd/1", os.O_WRONLY)
    container.signal(signal.SIGKILL)
    assert container.wait().signal == signal.SIGKILL
    with pytest.raises(BrokenPipeError):  # the reading end is closed: this is nobody's output any more
        os.write(keeper, b"late\n")
    os.close(keeper)
    assert entries(file_of(log)) == [("stdout", "F", "bye")]


@pytest.mark.parametrize("kind", ["parent", "file"])
def test_a_log_path_does_not_leave_its_directory_by_a_link(pod: Pod, log: LogTarget, tmp_path: Path, kind: str) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "0.log").write_text("precious")
    home = Path(log.directory)
    if kind == "parent":
        (home / "app").symlink_to(tmp_path / "victim")
    else:
        (home / "app").mkdir()
        (home / "app" / "0.log").symlink_to(tmp_path / "victim" / "0.log")
    with pytest.raises(StartFailed, match="symbolic link or not a regular file"):
        pod.start(script("echo evil"), log=log)
    assert (tmp_path / "victim" / "0.log").read_text() == "precious"


def test_a_terminal_is_the_standard_streams_and_is_logged_as_stdout(pod: Pod, log: LogTarget) -> None:
    process = script("tty; stty size; readlink /proc/self/fd/2", terminal=True, console_width=91, console_height=17)
    pod.start(process, log=log).wait()
    texts = [text.rstrip("\r") for stream, _, text in entries(file_of(log)) if stream == "stdout"]
    assert texts == ["/dev/pts/0", "17 91", "/dev/pts/0"]


def test_without_a_log_output_goes_to_the_null_device(pod: Pod) -> None:
    container = pod.submit(
        script("readlink /proc/self/fd/1 > /tmp/where; readlink /proc/self/fd/0 >> /tmp/where")
    ).result(10)
    assert container.wait().code == 0
    assert container.spec.rootfs.upper is not None
    assert (Path(container.spec.rootfs.upper) / "tmp/where").read_text() == "/tmp/where\n/dev/null\n"


def test_stdin_is_the_containers_null_device_unless_asked_for(pod: Pod) -> None:
    assert pod.run(script("readlink /proc/self/fd/0")).output == "/dev/null\n"
