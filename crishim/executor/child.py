"""What a child does between clone3(2) and execve(2): one function per step of a plan, on prepared values.

No logging, no locks, no imports, nothing that formats: the process was cloned in the middle of its parent's work. The
first step that fails is sent home as its index, an errno and a short detail; end of file on the report socket means
that execve(2) was reached. Descriptors of the host are closed before the working directory is entered, and nothing of
the host is open at execve(2) but the report socket.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import resource
import struct
import termios
from _signal import SIG_DFL, SIG_SETMASK, pthread_sigmask, signal
from _socket import SCM_RIGHTS, SOL_SOCKET, socket

from crishim.executor import jail, labels, tmpfs
from crishim.linux import fs, process
from crishim.linux.syscall import get_errno, raw

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crishim.executor.lower import Instruction

REPORT = struct.Struct("=HHI")
#: message kinds on the report socket
FAILED = 1
CONSOLE = 2
READY = 3
#: the hooks of a place are due: the child goes on when it is answered
HOOKS = 4
#: the filter is loaded, and the code is the number of its listener's descriptor: answered when that was fetched
LISTENER = 5
#: its scheduling policy is due: the child goes on when it is answered
SCHEDULER = 6

_TIOCGPTPEER = 0x5441
_TIOCSPTLCK = 0x40045431
_DEVPTS_MAJOR = 136

# State of the one plan that this child runs.
_report = -1


def run(program: list[Instruction], report: int) -> None:
    """Run the instructions of a plan; never returns."""
    global _report
    _report = report
    index = 0
    functions = FUNCTIONS
    try:
        for index, name, args, tolerated in program:
            if name is not None:
                functions[name](*args)
            elif raw(*args) == -1 and get_errno() != tolerated:
                _fail(index, get_errno(), b"")
    except OSError as error:
        _fail(index, error.errno or 0, jail.detail)
    except BaseException as error:
        _fail(index, 0, jail.detail or repr(error).encode()[:200])
    os._exit(127)


def _fail(index: int, code: int, detail: bytes) -> None:
    try:
        os.write(_report, REPORT.pack(FAILED, index, code) + detail)
    finally:
        os._exit(127)


# -- before the root is entered ----------------------------------------------------------------------------------------


def set_oom_score_adj(proc: int, value: bytes) -> None:
    """Through the host's procfs. Lowering needs CAP_SYS_RESOURCE: without it the present value stays."""
    fd = os.open("self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
    try:
        os.write(fd, value)
    except PermissionError:
        pass  # `crishim serve` warns once, at its start
    finally:
        os.close(fd)


def raise_hard_limit(kind: int, hard: int) -> None:
    """Raise a hard limit, which the user and namespaces to come may not do; one that cannot be raised stays."""
    soft, present = resource.getrlimit(kind)
    if present != -1 and (hard == -1 or hard > present):
        try:
            resource.setrlimit(kind, (soft, hard))
        except (PermissionError, ValueError):
            pass


def set_rlimit(kind: int, soft: int, hard: int) -> None:
    """setrlimit(2). A hard limit that only CAP_SYS_RESOURCE could raise is clamped to the present one."""
    try:
        resource.setrlimit(kind, (soft, hard))
    except (PermissionError, ValueError):
        present = resource.getrlimit(kind)[1]
        capped = hard if present == -1 else present if hard == -1 else min(hard, present)
        resource.setrlimit(kind, (capped if soft == -1 or (capped != -1 and soft > capped) else soft, capped))


def set_affinity(cpus: tuple[int, ...]) -> None:
    """The CPUs given; the kernel clips them to the cpuset."""
    os.sched_setaffinity(0, cpus)


def set_scheduler(policy: int, flags: int, nice: int, priority: int, runtime: int, deadline: int, period: int) -> None:
    """sched_setattr(2)."""
    process.sched_setattr(policy, flags, nice, priority, runtime, deadline, period)


def set_io_priority(value: int) -> None:
    """ioprio_set(2): class << 13 | priority."""
    process.ioprio_set(value)


def set_memory_policy(mode: int, nodes: bytes) -> None:
    """set_mempolicy(2): mode with its flags; nodes is a bit mask, a multiple of 8 bytes long."""
    process.set_mempolicy(mode, nodes)


def set_personality(domain: int) -> None:
    """personality(2)."""
    process.personality(domain)


# -- the terminal ----------------------------------------------------------------------------------------------------


def open_console(bind: bool, width: int, height: int, owner: int) -> None:
    """A pseudo terminal of the container's devpts as stdin, stdout and stderr; its master goes to the report's reader.

    It belongs to the process's user, who may open it again by its name. The peer comes from the verified master, never
    from a path (CVE-2025-52565); with `bind` it is /dev/console too.
    """
    place = os.open("/dev/pts/ptmx", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not fs.is_device(place, 5, 2) or os.fstat(place).st_ino != 2:
        raise OSError(errno.ENODEV, "not the multiplexer of devpts")
    os.close(place)
    master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC)
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    peer = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    if os.major(os.fstat(peer).st_rdev) != _DEVPTS_MAJOR:
        raise OSError(errno.ENODEV, "not a terminal of devpts")
    if owner:
        os.fchown(peer, owner, -1)
    if width and height:
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    if bind:
        console = _open_console_target()
        jail.clone_onto(peer, console)
        os.close(console)
    sender = socket(fileno=_report)
    sender.sendmsg([REPORT.pack(CONSOLE, 0, 0)], [(SOL_SOCKET, SCM_RIGHTS, array.array("i", [master]))])
    sender.detach()
    os.close(master)
    for number in range(3):
        os.dup2(peer, number)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if peer > 2:
        os.close(peer)


def _open_console_target() -> int:
    """/dev/console, made when it is missing and never a link, which could hide any other file behind the terminal."""
    dev = jail.directory(b"/dev")
    try:
        try:
            return fs.openat2(dev, b"console", os.O_PATH, 0, fs.RESOLVE_NO_SYMLINKS)
        except FileNotFoundError:
            os.close(os.open("console", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=dev))
            return fs.openat2(dev, b"console", os.O_PATH, 0, fs.RESOLVE_NO_SYMLINKS)
    finally:
        os.close(dev)


# -- the end, the same for init and exec -------------------------------------------------------------------------------


def set_stdio(fds: tuple[int, int, int], terminal: bool) -> None:
    """Descriptors 0, 1, 2; -1 is the container's own /dev/null. A terminal was put there before."""
    if terminal:
        return
    null = -1
    chosen = []
    for fd in fds:
        if fd < 0:
            if null < 0:
                null = _open_null()
            fd = null
        chosen.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10))
    for number, fd in enumerate(chosen):
        os.dup2(fd, number)
        os.close(fd)


def _open_null() -> int:
    fd = os.open("/dev/null", os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not fs.is_device(fd, 1, 3):
        raise OSError(errno.ENODEV, "/dev/null is not the null device")
    os.set_blocking(fd, True)
    return fd


def reset_signals() -> None:
    """CPython ignores SIGPIPE and SIGXFSZ, and execve(2) keeps what is ignored; the mask is emptied too."""
    for number in (13, 25):
        signal(number, SIG_DFL)
    pthread_sigmask(SIG_SETMASK, ())


def write_exec_attribute(proc: int, module: bytes, value: bytes) -> None:
    """The AppArmor profile or SELinux label of the next execve, through the host's procfs, which nobody can fake."""
    paths = (b"thread-self/attr/apparmor/exec", b"thread-self/attr/exec")
    if module:
        value = b"exec " + value
    for path in paths if module else paths[1:]:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
        except FileNotFoundError:
            continue
        os.write(fd, value)
        os.close(fd)
        return
    raise OSError(errno.ENOENT, "no such attribute")


def tell(log: int, line: bytes) -> None:
    """A line for whoever wants to follow the set-up; nobody has to read it."""
    try:
        os.write(log, line)
    except OSError:
        pass


def keep_descriptors(extra: tuple[int, ...], log: int = -1) -> None:
    """Extra files become 3, 4, ...; everything else is closed for good, the report socket waits for execve(2).

    Behind that the log, when there is one, which is closed before.

    Really closed, not only marked: an execve path could name /proc/self/fd/N (CVE-2024-21626).
    """
    global _report
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100 + len(extra)) for fd in extra]
    report = fcntl.fcntl(_report, fcntl.F_DUPFD_CLOEXEC, 100 + len(extra))
    told = fcntl.fcntl(log, fcntl.F_DUPFD_CLOEXEC, 100 + len(extra)) if log >= 0 else -1
    for number, fd in enumerate(high, 3):
        os.dup2(fd, number)
    place = 3 + len(extra)
    os.dup2(report, place, inheritable=False)
    _report = place
    if told >= 0:
        place += 1
        os.dup2(told, place, inheritable=False)
    process.close_range(place + 1)


def report_on(fd: int) -> None:
    """The report socket was moved to `fd` by a bare call."""
    global _report
    _report = fd


def enter_cwd(path: bytes) -> None:
    """Second try, as the user, when the first did not arrive; then it must be inside our root."""
    try:
        os.chdir(path)
    except PermissionError:
        if process.getcwd() == b"/" and path.strip(b"/"):
            raise
    if not process.getcwd().startswith(b"/"):
        raise OSError(errno.ENOENT, "outside of the root")  # "(unreachable)...": CVE-2024-21626


def load_seccomp(program: bytes) -> None:
    """Load the compiled filter."""
    process.load_seccomp(program)


def load_flagged_seccomp(program: bytes, flags: int) -> None:
    """Load the compiled filter with flags; the descriptor of a new listener is fetched by who reads the reports."""
    listener = process.load_seccomp(program, flags)
    if flags & process.SECCOMP_FILTER_FLAG_NEW_LISTENER:
        os.write(_report, REPORT.pack(LISTENER, 0, listener))
        if not os.read(_report, 1):
            raise OSError(errno.EPIPE, "nobody answers")
        try:
            os.close(listener)  # or calls would wait for us, when the listener dies before execve(2)
        except OSError:
            pass  # the filter forbids it, and execve(2) will do it


def set_capabilities(bounding: int, effective: int, permitted: int, inheritable: int, ambient: int) -> None:
    """capset(2) to what is wanted and possible, then the ambient set one by one."""
    process.prctl(process.PR_SET_KEEPCAPS, 0)
    possible = process.capget()[1]
    process.capset(effective & possible, permitted & possible, inheritable & possible)
    process.prctl(process.PR_CAP_AMBIENT, process.PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(ambient.bit_length()):
        if ambient >> capability & 1:
            try:
                process.prctl(process.PR_CAP_AMBIENT, process.PR_CAP_AMBIENT_RAISE, capability)
            except PermissionError:
                pass  # not in permitted and inheritable: as runc, no reason to refuse the process


def await_hooks(place: int) -> None:
    """Stand still while the starter runs hooks: those before the root is entered (0), or the last ones (1)."""
    os.write(_report, REPORT.pack(HOOKS, place, 0))
    if not os.read(_report, 1):
        raise OSError(errno.EPIPE, "nobody answers")


def await_scheduler() -> None:
    """Stand still while somebody outside of the user namespace gives us a real-time policy."""
    os.write(_report, REPORT.pack(SCHEDULER, 0, 0))
    if not os.read(_report, 1):
        raise OSError(errno.EPIPE, "nobody answers")


def announce() -> None:
    """Set-up is done: an end of file after this is execve(2), before it the death of the child."""
    os.write(_report, REPORT.pack(READY, 0, 0))


def execute(args: tuple[bytes, ...], environment: dict[bytes, bytes]) -> None:
    """execve(2), looking a name without a slash up in the process's own PATH, as execvp does."""
    name = args[0]
    if b"/" in name:
        os.execve(name, args, environment)
    refused: OSError | None = None
    for directory in environment.get(b"PATH", b"").split(b":"):
        try:
            os.execve((directory or b".") + b"/" + name, args, environment)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            refused = error
    raise refused or FileNotFoundError(errno.ENOENT, "not in PATH")


def execute_path(path: bytes, args: tuple[bytes, ...], environment: dict[bytes, bytes]) -> None:
    """execve(2) of a path that is not looked up, whatever the first argument is."""
    os.execve(path, args, environment)


#: a step by its name in a plan
FUNCTIONS = {**vars(jail), **vars(labels), **vars(tmpfs), **globals()}
