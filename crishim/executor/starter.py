"""Starts one container: a short-lived child of the monitor that opens, clones and waits for the report.

The container's init is cloned with CLONE_PARENT, so it is the monitor's child. What a start touches dies with the
starter: the monitor stays small, and a source that hangs (a dead network file system) hangs the starter, not the pod's
logs. The answer to the monitor is one message, with the init's pidfd first.
"""

from __future__ import annotations

import os
import time
from _signal import pidfd_send_signal
from _socket import (
    AF_UNIX,
    MSG_CMSG_CLOEXEC,
    MSG_NOSIGNAL,
    SCM_RIGHTS,
    SOCK_CLOEXEC,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    socket,
    socketpair,
)

from crishim.cgroups import effects, resctrl
from crishim.cgroups.delegation import delegate
from crishim.cgroups.planned import CgroupPlan
from crishim.executor import birth, child, hook_runner, net_devices, plan, prepare, scheduling, sentences, wire
from crishim.executor.birth import Started
from crishim.executor.hook_runner import HookRunner
from crishim.executor.hooks import Hooks
from crishim.executor.listener import Courier
from crishim.executor.prepare import Opened, StepFailed
from crishim.linux import fs, mount, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crishim.executor.pod import Pod


def run(pod: Pod, spec: bytes, given: list[int], answer: socket) -> None:
    """Start the container of an encoded spec and answer; never returns.

    given: descriptors of a library caller, which "descriptors" in the spec names.
    """
    started = Started()
    try:
        container = wire.decode(spec)
        assert isinstance(container, dict)
        _start(pod, container, given, started, answer)
        body: dict[str, object] = {
            "pid": started.pid,
            "phases_ns": started.phases_ns,
            "streams": [stream for _, stream in started.outputs],
            "stdin": started.stdin >= 0,
        }
        fds = [started.pidfd, *(fd for fd, _ in started.outputs)]
        wire.send(answer, wire.OK, 0, b"", body, fds + ([started.stdin] if started.stdin >= 0 else []))
        os._exit(0)
    except StepFailed as error:
        text = str(error)
    except OSError as error:
        text = os.strerror(error.errno or 0).lower()
    except BaseException as error:
        text = f"starter: {error!r}"
    if started.pidfd >= 0:
        try:
            pidfd_send_signal(started.pidfd, 9)
        except ProcessLookupError:
            pass
    wire.send(answer, wire.ERROR, 0, b"", {"message": text}, [started.pidfd] if started.pidfd >= 0 else [])
    os._exit(0)


def _start(pod: Pod, container: dict[str, object], given: list[int], started: Started, answer: socket) -> None:
    opened = Opened()
    times = [time.monotonic_ns()]
    _make_cgroup(pod, container)
    times.append(time.monotonic_ns())
    _open_sources(pod, container, opened)
    outside = _Outside(pod, container, opened)
    if container.get("net_devices"):  # a server of an earlier version does not say it
        _move_net_devices(pod, container, opened, answer)
    _open_stdio(container, given, opened, started, _owner(pod, container))
    steps = plan.init_steps(container, opened.by_role)
    times.append(time.monotonic_ns())
    report, reports = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    birth.clone(pod, started, container, steps, report, reports, opened.by_role)
    reports.close()
    opened.close_but(b"console", b"pidfd")
    times.append(time.monotonic_ns())
    _await_report(started, steps, report, opened.by_role, outside)
    outside.end(started)
    times.append(time.monotonic_ns())
    if b"pidfd" in opened.by_role:
        wire.hand_over(opened.by_role[b"pidfd"], started.pidfd, b"standard")
    names = ("cgroup", "mounts", "clone", "setup")
    started.phases_ns = {name: after - before for name, before, after in zip(names, times, times[1:])}


class _Outside:
    """Those children of the starter that do on the host what a start asks for; None where it asks for nothing."""

    __slots__ = ("_cgroup", "_hierarchy", "courier", "hooks", "scheduler")

    def __init__(self, pod: Pod, container: dict[str, object], opened: Opened) -> None:
        self.hooks = _open_hooks(pod, container, opened)
        listener = container.get("listener")  # a server of an earlier version does not say it
        self.courier = None if listener is None else Courier(listener, pod.home)  # type: ignore[arg-type]
        self.scheduler = None
        self._hierarchy, self._cgroup = pod.hierarchy, str(container["cgroup"])
        step = plan.real_time_step(container["process"])  # type: ignore[arg-type]
        if step is not None and b"user" in opened.by_role:
            self.scheduler = scheduling.make_companion(step, self.task_files())

    def task_files(self) -> list[bytes]:
        """Of the container's cgroup."""
        return effects.task_files(self._hierarchy, self._cgroup)

    def end(self, started: Started) -> None:
        """The process was executed."""
        for companion in (self.courier, self.scheduler):
            if companion is not None:
                companion.end()
        if self.hooks is not None:
            self.hooks.run(hook_runner.AFTER_EXECUTE, started.pid, started.pidfd)
            self.hooks.end()


def _make_cgroup(pod: Pod, container: dict[str, object]) -> None:
    try:
        effects.create(pod.hierarchy, CgroupPlan.from_value(container["cgroup_plan"]))  # type: ignore[arg-type]
        if pod.user is not None and _may_write_cgroup(container):
            root = pod.user.host_uid(0), pod.user.host_gid(0)
            delegate(pod.hierarchy, str(container["cgroup"]), *root)
    except OSError as error:
        raise StepFailed(f'making the cgroup "{container["cgroup"]}": {error.strerror or error}') from None


def _may_write_cgroup(container: dict[str, object]) -> bool:
    mounts = container["mounts"]
    assert isinstance(mounts, list)
    return any(mount["kind"] == b"cgroup" and b"ro" not in mount["flags"] for mount in mounts)


def _open_sources(pod: Pod, container: dict[str, object], opened: Opened) -> None:
    cgroup = str(container["cgroup"])
    roles = opened.by_role
    prepare.open_namespaces(container, opened)
    user = _open_user_namespace(pod, container, opened)
    prepare.open_mounts(container, opened, pod.seed, user)
    try:
        label = container.get("mount_label")
        roles[b"root"] = prepare.open_root(container["rootfs"], pod.seed, user, label)  # type: ignore[arg-type]
    except OSError as error:
        raise StepFailed(f"mounting the root file system: {os.strerror(error.errno or 0).lower()}") from None
    files = effects.task_files(pod.hierarchy, cgroup) + _rdt_files(container)
    if container["process"]["initial_affinity"]:  # type: ignore[index]
        files += effects.birth_files(pod.hierarchy, cgroup)
    for index, path in enumerate(files):
        roles[b"procs:%d" % index] = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    for index, item in enumerate(container["mounts"]):  # type: ignore[arg-type, var-annotated]
        if item["kind"] == b"cgroup":
            prepare.open_cgroups(pod.hierarchy, cgroup, index, item, opened)
    roles[b"proc"] = os.dup(pod.seed.proc)
    if user >= 0:
        prepare.open_devices(container, opened)
        prepare.open_kernel_views(opened)


def _rdt_files(container: dict[str, object]) -> list[bytes]:
    """Make the container's class of service; what its process joins of it."""
    rdt = container.get("rdt")  # a server of an earlier version does not say it
    if rdt is None:
        return []
    assert isinstance(rdt, dict)
    try:
        resctrl.create(rdt["root"], rdt)
    except OSError as error:
        raise StepFailed(f'intel_rdt.clos_id "{rdt["group"]}": {error.strerror or error}') from None
    return resctrl.task_files(rdt["root"], rdt)


def _open_user_namespace(pod: Pod, container: dict[str, object], opened: Opened) -> int:
    """Descriptor of the namespace that the init is born in, by the role "user"; -1 for the host's."""
    roles = opened.by_role
    if b"ns:user" in roles:
        roles[b"user"] = roles.pop(b"ns:user")
    elif b"user" in container["new_namespaces"]:  # type: ignore[operator]
        if pod.user is None:
            raise StepFailed("the pod has no user namespace of its own")
        roles[b"user"] = os.dup(pod.user.fd)
    return roles.get(b"user", -1)


def _open_hooks(pod: Pod, container: dict[str, object], opened: Opened) -> HookRunner | None:
    """Who runs the container's hooks; for early ones also what a child needs that is born in a copy of the host's tree.

    That finds its root's place in the bundle as its working directory. Who is root of a user namespace alone may have
    no way to it, because a directory above is closed to other users: then the child shows the bundle in its place.
    """
    value = container["hooks"]
    if value is None:
        return None
    hooks = Hooks(value, pod.hierarchy, pod.seed.proc, pod.home)  # type: ignore[arg-type]
    runner = HookRunner(container, hooks, pod.privileges)
    if not hooks.are_early():
        return runner
    place = hooks.bundle + b"/rootfs"
    try:
        opened.by_role[b"bundle"] = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        os.fchdir(opened.by_role[b"bundle"])
    except OSError as error:
        where = place.decode("utf-8", "replace")
        raise StepFailed(f'the bundle\'s "{where}": {os.strerror(error.errno or 0).lower()}') from None
    if b"user" in opened.by_role and (closed := _closed_directory(hooks.bundle)):
        opened.by_role[b"cover"] = mount.open_tree(fs.AT_FDCWD, hooks.bundle, mount.OPEN_TREE_CLONE)
        mount.mount_setattr(opened.by_role[b"cover"], propagation=mount.MS_PRIVATE)
        container["cover"] = [closed, os.path.realpath(hooks.bundle)]
    for index, item in enumerate(container["mounts"]):  # type: ignore[arg-type, var-annotated]
        if item["kind"] == b"shm":
            opened.by_role[b"shm:%d" % index] = pod.seed.open_tree(b"/shm")
            os.fchdir(opened.by_role[b"bundle"])  # a way through the seed and back ends in the root
    return runner


def _open_stdio(container: dict[str, object], given: list[int], opened: Opened, started: Started, owner: int) -> None:
    """Pipes to the monitor or the caller's descriptors, of which `owner` gets the pipes; -1 is the container's null."""
    roles = opened.by_role
    descriptors = container["descriptors"]
    process_ = container["process"]
    assert isinstance(descriptors, list) and isinstance(process_, dict)
    for name in (b"stdin", b"stdout", b"stderr"):
        roles[name] = -1
    # what the caller's descriptors are, in order: "stdin", "stdout", "stderr", "console", "pidfd", "log", "extra"
    for index, (name, fd) in enumerate(zip(descriptors, given)):
        roles[b"extra:%d" % index if name == b"extra" else name] = fd
    wanted = container["log"] or container["stdin"]
    if wanted and b"stdout" not in descriptors and not process_["terminal"]:
        _make_pipes(bool(container["stdin"]), roles, started)
    if owner:
        for name in (b"stdin", b"stdout", b"stderr"):
            if roles[name] >= 0:
                fs.give_pipe(roles[name], owner)


def _closed_directory(bundle: bytes) -> bytes:
    """The first directory on the way to the bundle that others may not enter; b"" when they may go all the way."""
    way = os.path.realpath(bundle).split(b"/")
    for depth in range(2, len(way)):
        directory = b"/".join(way[:depth])
        if not os.stat(directory).st_mode & 0o001:
            return directory
    return b""


def _move_net_devices(pod: Pod, container: dict[str, object], opened: Opened, answer: socket) -> None:
    """Into the namespace that the init will be born in; the monitor is told at once, since it will give them back."""
    home = pod.home.get(process.CLONE_NEWNET, -1)
    target = opened.by_role.get(b"ns:net", -1)
    if home < 0 and target < 0:
        raise StepFailed("net_devices: the container has the host's network, where the devices are")
    try:
        moved = net_devices.move_in(container["net_devices"], pod.seed.proc, home, target)  # type: ignore[arg-type]
    except OSError as error:
        raise StepFailed(f"net_devices: {os.strerror(error.errno or 0).lower()}") from None
    wire.send(answer, net_devices.MOVED, 0, b"", moved.to_value(), moved.fds())
    moved.close()


def _make_pipes(stdin: bool, roles: dict[bytes, int], started: Started) -> None:
    for stream, name in ((1, b"stdout"), (2, b"stderr")):
        ours, roles[name] = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(ours, False)
        started.outputs.append((ours, stream))
    if stdin:
        roles[b"stdin"], started.stdin = os.pipe2(os.O_CLOEXEC)


def _owner(pod: Pod, container: dict[str, object]) -> int:
    """The host's number of the user that the process will be: who may open /proc/self/fd/1 again."""
    uid: int = container["process"]["uid"]  # type: ignore[index]
    if pod.user is None:
        return uid
    try:
        return pod.user.host_uid(uid)
    except OSError:
        raise StepFailed(f"uid {uid} is not mapped in the pod's user namespace") from None


def _await_report(
    started: Started,
    steps: list[plan.Step],
    report: socket,
    roles: dict[bytes, int],
    outside: _Outside,
) -> None:
    """Until the child reached execve(2) (end of file) or told what failed.

    When it stands still, something is done for it on the host.
    """
    ready = False
    while True:
        try:
            data, ancillary, _, _ = report.recvmsg(4096, 64, MSG_CMSG_CLOEXEC)
        except TimeoutError:
            assert outside.courier is not None
            raise StepFailed(outside.courier.unanswered()) from None
        for level, kind, content in ancillary:
            if level == SOL_SOCKET and kind == SCM_RIGHTS:
                _take_console(started, int.from_bytes(content[:4], "little"), roles)
        if not data and ready:
            return
        if not data:
            raise StepFailed("the process was killed while it was being set up (is its memory limit too low?)")
        kind, index, code = child.REPORT.unpack_from(data)
        ready = ready or kind == child.READY
        if kind == child.HOOKS:
            assert outside.hooks is not None
            outside.hooks.run(index, started.pid, started.pidfd)
            report.send(b"1", MSG_NOSIGNAL)
        if kind == child.LISTENER:
            assert outside.courier is not None
            outside.courier.hand_over(b"creating", started.pid, started.pid, started.pidfd, code)
            report.settimeout(outside.courier.limit_s)
            report.send(b"1", MSG_NOSIGNAL)
        if kind == child.SCHEDULER:
            assert outside.scheduler is not None
            outside.scheduler.ask(started.pid, {}, [])
            report.send(b"1", MSG_NOSIGNAL)
        if kind == child.FAILED:
            why = sentences.describe(steps[index], code, data[child.REPORT.size :])
            raise StepFailed(why + scheduling.cause(steps[index], code, outside.task_files()))


def _take_console(started: Started, master: int, roles: dict[bytes, int]) -> None:
    if b"console" in roles:
        wire.hand_over(roles[b"console"], master, b"console")
        os.close(master)
        return
    os.set_blocking(master, False)
    started.outputs.append((master, 1))
    started.stdin = os.dup(master)
