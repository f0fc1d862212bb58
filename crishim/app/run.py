"""One process in a container of its own, without a server: where its root comes from, its spec, and its life.

The root is a directory, or an image of a store that only runs use (ROOT/run, `run_images.py`).
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from crishim import process
from crishim.app.serve import ROLES, with_root
from crishim.app.terminal import pump, raw_mode, window_size
from crishim.config import ImagesConfig
from crishim.errors import InvalidSpec, NotFound
from crishim.images.users import UserDatabase
from crishim.model.id_mapping import IdMapping
from crishim.model.image import ImageConfig
from crishim.model.process import MountSpec, ProcessSpec, RootFs, User
from crishim.model.resources import Resources
from crishim.model.sandbox import NamespaceMode, UserNamespace
from crishim.process import Container, Engine, Process, isolated
from crishim.runtime.users import read_users
from crishim.spec.capabilities import DEFAULT as DEFAULT_CAPABILITIES
from crishim.spec.process import DEFAULT_PATH
from crishim.spec.seccomp import runtime_default

_FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
#: a PID 1 without a handler ignores them, so the third of them is SIGKILL
_ENDING = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})
_PATIENCE = 3


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What `crishim run` was asked for. `root` is the directory of the image store, `source` a path or a reference."""

    source: str
    command: tuple[str, ...] = ()
    read_only: bool = False
    network: str = "none"
    terminal: bool = False
    env: tuple[str, ...] = ()
    user: str | None = None
    cwd: str | None = None
    memory_bytes: int | None = None
    #: ids of the host for a user namespace of its own
    ids: IdMapping | None = None
    root: Path = Path("/var/lib/crishim")
    images: ImagesConfig = ImagesConfig()


def run(request: RunRequest) -> int:
    """Run it with our stdio; its exit code, 128 + signal when a signal ended it. CrishimError before it ran."""
    with_root()
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda received, _: sys.exit(128 + received))  # during a pull
    run_id = process.program_id()
    engine = process.open_engine(ROLES)
    with ExitStack() as after:
        if is_path(request.source):
            rootfs, config = _directory(request.source), ImageConfig()
        else:
            from crishim.app.run_images import Runs  # a registry client takes longer to load than a process to run

            runs = Runs(request.root / "run", request.images, engine)
            maps = () if request.ids is None else (request.ids,)
            users = UserNamespace(NamespaceMode.POD, maps, maps) if maps else None
            rootfs, config = after.enter_context(runs.rootfs(run_id, request.source, users))
        layers = (rootfs.path,) if rootfs.path else rootfs.lowers
        known = engine.call(read_users(engine.executor, layers, request.source))
        spec = _process_spec(request, config, known, engine)
        rootfs = replace(rootfs, readonly=request.read_only)
        box = isolated(rootfs, id=run_id, network=request.network, ids=request.ids)
        if request.memory_bytes is not None:
            limits = Resources(memory_limit_bytes=request.memory_bytes, memory_swap_limit_bytes=request.memory_bytes)
            box = replace(box, cgroup=replace(box.cgroup, resources=limits))
        if request.network == "host" and rootfs.path is None:
            names = MountSpec("/etc/resolv.conf", source=os.path.realpath("/etc/resolv.conf"), flags=("ro",))
            box = replace(box, mounts=(*box.mounts, names))
        with Container(box) as container:
            return _attended(container, spec)


def is_path(source: str) -> bool:
    """Whether `source` is a path: it has a slash and something is there, or it cannot be a reference."""
    return source.startswith(("/", ".")) or ("/" in source and os.path.exists(source))


def _directory(source: str) -> RootFs:
    if not os.path.isdir(source):
        raise InvalidSpec(f"{source} is not a directory")
    return RootFs(path=os.path.realpath(source))


def _process_spec(request: RunRequest, config: ImageConfig, users: UserDatabase, engine: Engine) -> ProcessSpec:
    args = _arguments(request, config)
    found = users.resolve(config.user if request.user is None else request.user)
    width, height = window_size() if request.terminal else (0, 0)
    node = engine.executor.node
    return ProcessSpec(
        args=args,
        env=_environment(request, config, found.home),
        user=User(found.uid, found.gid, (found.gid, *found.groups)),
        cwd=request.cwd or config.working_dir or "/",
        terminal=request.terminal,
        console_width=width,
        console_height=height,
        init=True,
        seccomp=runtime_default(DEFAULT_CAPABILITIES, node.kernel, node.machine),
    )


def _arguments(request: RunRequest, config: ImageConfig) -> tuple[str, ...]:
    """As `docker run` has it: a command replaces the image's, its entrypoint stays."""
    args = (*config.entrypoint, *(request.command or config.cmd))
    if not args or not args[0]:
        raise InvalidSpec(f"no command is given, neither after -- nor by {request.source}")
    return args


def _environment(request: RunRequest, config: ImageConfig, home: str) -> tuple[str, ...]:
    merged = {"PATH": DEFAULT_PATH, "HOME": home}
    if request.terminal:
        merged["TERM"] = os.environ.get("TERM", "xterm")
    for entry in (*config.env, *request.env):
        name, mark, value = entry.partition("=")
        if name and mark:
            merged[name] = value
        elif entry in request.env:
            raise InvalidSpec(f"--env: {entry!r} is not NAME=value")
    return tuple(f"{name}={value}" for name, value in merged.items())


# -- the life of the process


def _attended(container: Container, spec: ProcessSpec) -> int:
    """Start, pass stdio and signals on, and wait."""
    with Signals() as signals:
        if not spec.terminal:
            started = Process(spec, stdin=0, stdout=1, stderr=2)
            container.start(started)
            signals.pass_to(started)
            return started.wait().code
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours:
            with theirs:
                started = Process(replace(spec, console_socket=theirs.fileno()))
                container.start(started)
            _, descriptors, _, _ = socket.recv_fds(ours, 64, 1)
        signals.pass_to(started)
        with raw_mode(), open(descriptors[0], "r+b", buffering=0) as master:
            pump(master.fileno())
        return started.wait().code


class Signals:
    """Passes signals on to a process; those before `pass_to` wait for it, those after the end are too late."""

    def __init__(self) -> None:
        self._target: Process | None = None
        self._early: list[int] = []
        self._ending = 0

    def __enter__(self) -> Signals:
        for number in _FORWARDED:
            signal.signal(number, self._received)
        return self

    def __exit__(self, *exc: object) -> None:
        for number in _FORWARDED:
            signal.signal(number, signal.SIG_IGN)  # only clean-up is left, and nothing else would do it

    def pass_to(self, target: Process) -> None:
        """From now on signals go to `target`."""
        self._target = target
        for number in self._early:
            self._send(number)

    def _received(self, number: int, frame: object) -> None:
        if self._target is None:
            self._early.append(number)
        else:
            self._send(number)

    def _send(self, number: int) -> None:
        assert self._target is not None
        self._ending += number in _ENDING
        with suppress(NotFound):
            self._target.signal(signal.SIGKILL if self._ending >= _PATIENCE else number)
