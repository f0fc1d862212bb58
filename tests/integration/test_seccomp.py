"""The RuntimeDefault filter in the kernel: what it refuses, and that usual programs do not notice it."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from crishim.linux import process
from crishim.linux.syscall import MACHINE, UnsignedLong, call, number
from crishim.spec.seccomp import runtime_default
from crishim.spec.seccomp_profile import numbers

pytestmark = pytest.mark.skipif(
    MACHINE not in ("x86_64", "aarch64") or not os.path.exists("/proc/sys/kernel/seccomp"), reason="needs seccomp"
)

FILTER = runtime_default(frozenset(), (6, 1), MACHINE)
WITH_ADMIN = runtime_default(frozenset({"CAP_SYS_ADMIN"}), (6, 1), MACHINE)


def load(program: bytes) -> None:
    process.prctl(process.PR_SET_NO_NEW_PRIVS, 1)
    process.load_seccomp(program)


def under_filter(program: bytes, action: Callable[[], object]) -> int:
    """errno of the action in a child that loaded the filter; 0 when it succeeded."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            load(program)
            action()
            code = 0
        except OSError as error:
            code = error.errno or 254
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def raw(name: str, *arguments: int) -> Callable[[], object]:
    return lambda: call(numbers(MACHINE)[name], *(UnsignedLong(argument) for argument in arguments))


def clone(flags: int) -> None:
    """clone(2) whose child ends at once."""
    arguments = (flags | process.SIGCHLD, 0, 0, 0, 0)
    pid = call(numbers(MACHINE)["clone"], *(UnsignedLong(argument) for argument in arguments))
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def clone3() -> None:
    if process.clone3(0)[0] == 0:
        os._exit(0)
    os.wait()


def test_mount_is_refused_before_its_arguments_are_read() -> None:
    assert under_filter(FILTER, raw("mount", 0, 0, 0, 0, 0)) == errno.EPERM
    assert under_filter(WITH_ADMIN, raw("mount", 0, 0, 0, 0, 0)) != errno.EPERM


def test_a_user_namespace_by_clone_needs_the_capability_in_the_bounding_set() -> None:
    assert under_filter(FILTER, lambda: clone(process.CLONE_NEWUSER)) == errno.EPERM
    assert under_filter(FILTER, lambda: clone(0)) == 0
    assert under_filter(FILTER, lambda: process.unshare(process.CLONE_NEWUSER)) == errno.EPERM
    assert under_filter(WITH_ADMIN, lambda: clone(process.CLONE_NEWUSER)) == 0


def test_clone3_is_not_there_so_that_libraries_take_clone() -> None:
    assert under_filter(FILTER, clone3) == errno.ENOSYS
    assert under_filter(WITH_ADMIN, clone3) == 0


def test_calls_newer_than_the_profile_are_not_there() -> None:
    assert under_filter(FILTER, lambda: call(2000)) == errno.ENOSYS


@pytest.mark.parametrize("family", [socket.AF_ALG, socket.AF_VSOCK, 1 << 32 | socket.AF_ALG])
def test_socket_families_with_a_history_are_refused(family: int) -> None:
    assert under_filter(FILTER, raw("socket", family, socket.SOCK_SEQPACKET, 0)) == errno.EPERM


def test_sockets_of_usual_families_are_made() -> None:
    assert under_filter(FILTER, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)) == 0
    assert under_filter(FILTER, lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) == 0


_LOADER = """\
import os, sys
from crishim.linux import process
process.prctl(process.PR_SET_NO_NEW_PRIVS, 1)
process.load_seccomp(bytes.fromhex(sys.argv[1]))
os.execvp(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize(
    "argv",
    [
        ["/bin/true"],
        [sys.executable, "-c", "print(1)"],
        ["sh", "-c", "ls / | sort | head -1 >/dev/null && kill -0 $$"],
        [sys.executable, "-c", "import threading; t = threading.Thread(target=print, args=(1,)); t.start(); t.join()"],
    ],
    ids=["true", "python", "pipeline", "thread"],
)
def test_usual_programs_run(argv: list[str]) -> None:
    # loaded by a process of its own, which becomes the program: nothing of the test's process is forked
    command = [sys.executable, "-c", _LOADER, FILTER.hex(), *argv]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_table_agrees_with_the_numbers_that_we_call() -> None:
    for name in ("mount", "pivot_root", "setns", "unshare", "openat2", "clone3", "bpf", "mount_setattr"):
        assert numbers(MACHINE)[name] == number(name)
