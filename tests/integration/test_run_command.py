"""`crishim run` as a user calls it: stdio, exit codes, signals, a terminal, and images that are pulled when missing."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import select
import signal
import sqlite3
import struct
import subprocess
import sys
import tarfile
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.container import make_busybox_root, wait_until
from tests.support.registry import running_registry

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

CRISHIM = (sys.executable, "-m", "crishim", "run")
DEADLINE_S = 60.0


def crishim_run(*words: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*CRISHIM, *map(str, words)], input=stdin, capture_output=True, timeout=DEADLINE_S)


def cgroups_of(pid: int) -> list[str]:
    trees = ["/sys/fs/cgroup", *(tree.path for tree in os.scandir("/sys/fs/cgroup") if tree.is_dir())]
    return [tree for tree in trees if any(name.startswith(f"crishim-run-{pid}-") for name in os.listdir(tree))]


def test_stdio_and_the_exit_code_are_those_of_the_process(root: Path) -> None:
    ended = crishim_run(root, "--", "sh", "-c", "cat; echo problem >&2; exit 7", stdin=b"from outside\n")
    assert (ended.stdout, ended.stderr, ended.returncode) == (b"from outside\n", b"problem\n", 7)


def test_a_process_that_a_signal_ended_has_128_and_its_number(root: Path) -> None:
    assert crishim_run(root, "--", "sh", "-c", "sh -c 'kill -9 $$'; exit $?").returncode == 128 + signal.SIGKILL


def test_ids_can_be_mapped(root: Path) -> None:
    script = "id -u; cat /proc/self/uid_map; stat -c %u /bin; touch /made; ls /sys/class/net"
    ended = crishim_run(root, "--map-ids", "300000:1000", "--", "sh", "-c", script)
    assert ended.stdout.split() == [b"0", b"0", b"300000", b"1000", b"0", b"lo"], ended.stderr
    assert (root / "made").stat().st_uid == 0
    hosts = crishim_run(
        root, "--map-ids", "300000", "--network", "host", "--", "sh", "-c", "id -u; ls -d /sys/class/net"
    )
    assert hosts.stdout.split() == [b"0", b"/sys/class/net"], hosts.stderr


@pytest.mark.parametrize("ids", ["0", "x", "1:x", "1:0", "-1", "1:4294967296", "4294967295"])
def test_ids_that_cannot_be_mapped_are_named(root: Path, ids: str) -> None:
    ended = crishim_run(root, f"--map-ids={ids}", "--", "true")
    assert ended.returncode == 125
    assert ended.stderr.startswith(b"crishim: --map-ids: "), ended.stderr


def test_the_process_is_alone_and_filtered(root: Path) -> None:
    ended = crishim_run(
        root, "--", "sh", "-c", "echo $$; ls /sys/class/net; grep ^Seccomp: /proc/self/status; ls /proc/1/root"
    )
    lines = ended.stdout.decode().splitlines()
    assert lines[:3] == ["1", "lo", "Seccomp:\t2"]
    assert "busybox" not in lines[3:] and "bin" in lines[3:]


def test_the_host_network_is_the_one_of_the_caller(root: Path) -> None:
    ended = crishim_run(root, "--network", "host", "--", "readlink", "/proc/self/ns/net")
    assert ended.stdout.decode().strip() == os.readlink("/proc/self/ns/net")


def test_user_environment_directory_and_memory_are_as_asked(root: Path) -> None:
    options = ("--user", "1000:5", "-e", "GREETING=hello=there", "--cwd", "/tmp", "--memory", str(32 << 20))
    script = 'id; pwd; echo "$GREETING"; head -c 100000000 /dev/zero | tail -c 99999999 | wc -c; exit ${PIPESTATUS:-0}'
    ended = crishim_run(root, *options, "--", "sh", "-c", script)
    assert ended.stdout.decode().splitlines()[:3] == ["uid=1000 gid=5 groups=5", "/tmp", "hello=there"]
    assert "99999999" not in ended.stdout.decode(), "tail kept more than the limit"


def test_a_read_only_root_cannot_be_written(root: Path) -> None:
    ended = crishim_run(root, "--read-only", "--", "touch", "/file")
    assert ended.returncode == 1 and b"Read-only file system" in ended.stderr
    assert not (root / "file").exists()


def test_a_directory_is_written_through(root: Path) -> None:
    assert crishim_run(root, "--", "touch", "/file").returncode == 0
    assert (root / "file").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--", "nosuch"), '"nosuch": executable file not found'),
        ((), "no command is given"),
        (("-t", "--", "sh"), "-t needs a terminal"),
        (("--user", "bob", "--", "sh"), "user 'bob' is not in /etc/passwd"),
        (("--env", "NAME", "--", "sh"), "'NAME' is not NAME=value"),
    ],
)
def test_what_never_ran_is_125_and_one_sentence(root: Path, words: tuple[str, ...], sentence: str) -> None:
    ended = crishim_run(root, *words)
    assert ended.returncode == 125
    assert sentence in ended.stderr.decode() and ended.stderr.count(b"\n") == 1


def test_a_path_that_is_no_directory_is_named(tmp_path: Path) -> None:
    ended = crishim_run(tmp_path / "nowhere", "--", "true")
    assert ended.returncode == 125 and str(tmp_path / "nowhere").encode() in ended.stderr


@pytest.fixture
def running(root: Path) -> Iterator[subprocess.Popen[bytes]]:
    script = "trap 'echo got TERM; exit 3' TERM; echo ready; while :; do sleep 0.01; done"
    child = subprocess.Popen([*CRISHIM, str(root), "--", "sh", "-c", script], stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        yield child
        child.kill()


def test_a_signal_reaches_the_process(running: subprocess.Popen[bytes]) -> None:
    running.send_signal(signal.SIGTERM)
    assert running.stdout is not None and running.stdout.readline() == b"got TERM\n"
    assert running.wait(DEADLINE_S) == 3


def test_a_third_interrupt_kills_what_ignores_them(running: subprocess.Popen[bytes]) -> None:
    def interrupted() -> bool:
        running.send_signal(signal.SIGINT)  # again and again: those of one number merge while one is pending
        return running.poll() is not None

    wait_until(interrupted, "the end")
    assert running.returncode == 128 + signal.SIGKILL


def test_nothing_is_left(running: subprocess.Popen[bytes]) -> None:
    assert cgroups_of(running.pid), "the test looks at the wrong place"
    running.send_signal(signal.SIGTERM)
    running.wait(DEADLINE_S)
    assert cgroups_of(running.pid) == []


# -- a terminal


class Terminal:
    """A terminal of 100 x 40 in front of `crishim run -t`."""

    def __init__(self, root: Path, *command: str) -> None:
        self.master, slave = pty.openpty()
        self.resize(100, 40)
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.child = subprocess.Popen(
            [*CRISHIM, str(root), "-t", "--", *command], stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        self.seen = b""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def expect(self, text: bytes) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come after {self.seen!r}"
            self.seen += os.read(self.master, 4096)
        self.seen = self.seen.partition(text)[2]

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(root: Path) -> Iterator[Terminal]:
    terminal = Terminal(root, "sh", "-c", "PS1='> ' exec sh")
    yield terminal
    terminal.close()


def test_a_terminal_has_our_size_follows_it_and_is_restored(terminal: Terminal) -> None:
    terminal.expect(b"> ")
    terminal.type(b"tty; stty size\r")
    terminal.expect(b"/dev/pts/0\r\n40 100\r\n")
    terminal.resize(80, 24)
    terminal.child.send_signal(signal.SIGWINCH)  # as the kernel does for the foreground process
    terminal.type(b"while [ \"$(stty size)\" != '24 80' ]; do :; done; echo re''sized\r")
    terminal.expect(b"resized\r\n")
    terminal.type(b"exit 9\r")
    assert terminal.child.wait(DEADLINE_S) == 9
    assert termios.tcgetattr(terminal.slave) == terminal.before


def test_an_interrupt_key_goes_to_the_process_in_the_terminal(terminal: Terminal) -> None:
    terminal.expect(b"> ")
    terminal.type(b"sh -c 'echo sle''eps; exec sleep 1000'\r")
    terminal.expect(b"sleeps\r\n")
    terminal.type(b"\x03")
    terminal.expect(b"> ")
    terminal.type(b"exit 4\r")
    assert terminal.child.wait(DEADLINE_S) == 4


# -- images


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Reference of a busybox image in a registry; its user is nobody, known by name, and its entrypoint a shell."""
    directory = tmp_path_factory.mktemp("image")
    make_busybox_root(directory)
    directory.chmod(0o755)
    (directory / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nnobody:x:65534:65533::/home/nobody:/bin/sh\n")
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(directory, arcname=".")
    config = {"User": "nobody", "Entrypoint": ["sh"], "Cmd": ["-c", "echo default"], "Env": ["FROM=image"]}
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        registry.push_image("team/box", "v1", [layer.getvalue()], config={**config, "WorkingDir": "/tmp"})
        yield f"{registry.host}/team/box:v1"


def writable_layers(store: Path) -> list[str]:
    return os.listdir(store / "run/containers")


def test_an_image_is_pulled_when_missing_and_gives_its_defaults(image: str, tmp_path: Path) -> None:
    assert crishim_run(image, "--root", tmp_path).stdout == b"default\n"
    script = 'id -u; id -g; pwd; echo "$FROM $HOME"'
    ended = crishim_run(image, "--root", tmp_path, "--", "-c", script)
    assert ended.stdout.decode().splitlines() == ["65534", "65533", "/tmp", "image /home/nobody"]


def test_what_is_written_into_an_image_is_gone_with_the_run(image: str, tmp_path: Path) -> None:
    options = ("--root", tmp_path, "--user", "0", "--")
    assert crishim_run(image, *options, "-c", "echo changed > /etc/new && cat /etc/new").stdout == b"changed\n"
    assert crishim_run(image, *options, "-c", "ls /etc").stdout == b"group\npasswd\n"
    assert writable_layers(tmp_path) == []


def test_what_a_killed_run_left_is_removed_by_the_next(image: str, tmp_path: Path) -> None:
    command = [*CRISHIM, image, "--root", str(tmp_path), "--", "-c", "echo ready; exec sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        assert len(writable_layers(tmp_path)) == 1
        child.kill()
        child.wait()
        assert crishim_run(image, "--root", tmp_path).returncode == 0
        assert child.stdout.read() == b"", "somebody still has the pipe"
    assert writable_layers(tmp_path) == [] and cgroups_of(child.pid) == []
    assert os.listdir(tmp_path / "run/alive") == []
    assert list(Path(tempfile.gettempdir()).glob(f"crishim-{child.pid}-*")) == []


def test_a_dead_run_whose_pid_a_living_one_has_does_not_end_it(image: str, tmp_path: Path) -> None:
    command = [*CRISHIM, image, "--root", str(tmp_path), "--", "-c", "echo ready; cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as living:
        assert living.stdout is not None and living.stdout.readline() == b"ready\n"
        (of_living,) = writable_layers(tmp_path)
        of_dead = f"{living.pid}-00000000"
        (tmp_path / "run/containers" / of_dead).mkdir()
        (database,) = (tmp_path / "run").rglob("images.db")
        with closing(sqlite3.connect(database)) as table, table:
            row = "SELECT ?, image_id FROM rootfs WHERE container_id = ?"
            table.execute(f"INSERT INTO rootfs {row}", (of_dead, of_living))
        assert crishim_run(image, "--root", tmp_path).returncode == 0
        assert writable_layers(tmp_path) == [of_living]
        assert living.communicate(b"alive\n", DEADLINE_S)[0] == b"alive\n" and living.returncode == 0


def test_a_root_that_is_no_directory_is_named(image: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    ended = crishim_run(image, "--root", file)
    assert ended.returncode == 125
    assert ended.stderr.decode() == f"crishim: --root: {file} cannot be used: not a directory\n"


def test_two_runs_share_the_images(image: str, tmp_path: Path) -> None:
    command = [*CRISHIM, image, "--root", str(tmp_path), "--", "-c", "echo ready; cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None and first.stdout.readline() == b"ready\n"
        assert crishim_run(image, "--root", tmp_path).stdout == b"default\n"
        assert len(writable_layers(tmp_path)) == 1
        out, _ = first.communicate(b"still here", timeout=DEADLINE_S)
    assert out == b"still here"
