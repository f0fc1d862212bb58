"""The role that lists what is on this node of one server: a process of its own, since a dead disk may hold it.

It only lists; whose each thing is, and whether it may be there, is decided by `runtime/garbage`. A part that cannot be
looked at is None in the answer, so that nothing is concluded from its absence.
"""

from __future__ import annotations

import os

from crishim.cgroups.files import join_path
from crishim.cgroups.hierarchy import Hierarchy, detect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Entry = list[object]

#: where the directories of containers are in a sandbox's directory: what is made for each container
_OF_CONTAINERS = (b"specs", b"stops", b"exits")
_FILTER_KEY = b'"filter_digest":"'
_DIGEST_CHARACTERS = 64


def inventory(request: dict[str, object], descriptors: list[int]) -> dict[str, object]:
    """What there is. Paths are bytes, names relative to their directory.

    Of the request: "cgroup_pods" and "cgroup_monitors" (paths of the server's own cgroups), "cgroup_parents" (of
    pods' cgroups elsewhere), "zygote" (pid), "monitors" (pids of those that live), "netns_prefix" (of pins), "state"
    and "root".
    """
    state, root = _bytes(request["state"]), _bytes(request["root"])
    pods, watchers = _bytes(request["cgroup_pods"]), _bytes(request["cgroup_monitors"])
    prefix = _bytes(request["netns_prefix"])
    parents, zygote, monitors = request["cgroup_parents"], request["zygote"], request["monitors"]
    assert isinstance(parents, list) and isinstance(zygote, int) and isinstance(monitors, list)
    hierarchy = detect()
    problems: list[str] = []

    def part(what: str, look: Callable[[], object]) -> object:
        try:
            return look()
        except OSError as error:
            problems.append(f"{what}: {os.strerror(error.errno or 0).lower()}")
            return None

    return {
        "cgroups": part("the cgroups", lambda: _cgroups(hierarchy, pods, parents)),
        "processes": part(
            "the processes", lambda: _processes(hierarchy, watchers, zygote, set(monitors), state + b"/sandboxes/")
        ),
        "pins": part("/run/netns", lambda: [each for each in _names(b"/run/netns") if each.startswith(prefix + b"-")]),
        "mounts": part("the mounts", lambda: _mounts((b"/run/netns/" + prefix + b"-", *_mountless(state, root)))),
        "sandboxes": part("the sandboxes' directories", lambda: _sandboxes(state + b"/sandboxes")),
        "filters": part("the filters", lambda: _names(state + b"/filters")),
        "roots": part("the roots of containers", lambda: _names(root + b"/containers")),
        "layers": part("the layers", lambda: _names(root + b"/layers")),
        "blobs": part("the blobs", lambda: _blobs(root + b"/images")),
        "spools": part("the spools", lambda: _spools(root)),
        "problems": problems,
    }


def filter_users(request: dict[str, object], descriptors: list[int]) -> dict[str, object]:
    """Names of the filters that stored specs of the directory "sandboxes" refer to."""
    place = _bytes(request["sandboxes"])
    used: set[bytes] = set()
    for sandbox in _names(place):
        for name in _names(place + b"/" + sandbox + b"/specs"):
            try:
                with open(place + b"/" + sandbox + b"/specs/" + name, "rb") as file:
                    text = file.read()
            except FileNotFoundError:
                continue
            at = text.rfind(_FILTER_KEY)
            if at >= 0:
                at += len(_FILTER_KEY)
                used.add(text[at : at + _DIGEST_CHARACTERS])
    return {"used": sorted(used)}


def _cgroups(hierarchy: Hierarchy, pods: bytes, parents: list[bytes]) -> list[bytes]:
    """Paths of the cgroups of pods and containers below our own, and of all that pods' cgroups elsewhere have."""
    found: set[bytes] = set()
    for tree in hierarchy.trees():
        for pod in _directories(join_path(tree, pods)):
            found.add(pods + b"/" + pod)
            found.update(pods + b"/" + pod + b"/" + name for name in _directories(join_path(tree, pods + b"/" + pod)))
        for parent in parents:
            found.update(parent + b"/" + name for name in _directories(join_path(tree, parent)))
    return sorted(found)


def _processes(hierarchy: Hierarchy, home: bytes, zygote: int, monitors: set[int], sandboxes: bytes) -> list[Entry]:
    """[pid, start time in clock ticks, name, sandbox id or b"", cgroups of its children] of strangers among monitors.

    What a monitor or the zygote has started is no stranger, but for further monitors; and programs of hooks, which
    may leave daemons, are none of our business.
    """
    tree = hierarchy.mount or hierarchy.trees()[0]
    directory = join_path(tree, home)
    try:
        pids = [int(each) for each in _read(directory + b"/cgroup.procs").split()]
    except FileNotFoundError:
        return []
    found: list[Entry] = []
    for pid in pids:
        if pid == zygote or pid in monitors:
            continue
        try:
            name, state, parent, started = _stat(pid)
            if not name.startswith(b"crishim-") or state in (b"Z", b"X") or _is_at_work(name, parent, zygote, monitors):
                continue
            found.append([pid, started, name, _sandbox_of(pid, sandboxes), _child_cgroups(pid, hierarchy)])
        except OSError:  # gone meanwhile
            continue
    return found


def _is_at_work(name: bytes, parent: int, zygote: int, monitors: set[int]) -> bool:
    """Whether a process, by its name and its parent, descends from a monitor that lives, or works for the zygote."""
    while parent > 1:
        if parent in monitors:
            return True
        if parent == zygote:
            return name != b"crishim-monitor"
        name, _, parent, _ = _stat(parent)
    return False


def _stat(pid: int) -> tuple[bytes, bytes, int, int]:
    """(name, state, parent's pid, start time) of a process. Source: proc_pid_stat(5)."""
    text = _read(b"/proc/%d/stat" % pid)
    name = text[text.index(b"(") + 1 : text.rindex(b")")]
    fields = text[text.rindex(b")") + 2 :].split()
    return name, fields[0], int(fields[1]), int(fields[19])


def _sandbox_of(pid: int, sandboxes: bytes) -> bytes:
    """Name of the sandbox directory that a process holds open, as a monitor does; also of one that was removed."""
    for name in _names(b"/proc/%d/fd" % pid):
        try:
            target = os.readlink(b"/proc/%d/fd/%b" % (pid, name))
        except OSError:
            continue
        if target.startswith(sandboxes):
            return target[len(sandboxes) :].removesuffix(b" (deleted)").partition(b"/")[0]
    return b""


def _child_cgroups(pid: int, hierarchy: Hierarchy) -> list[bytes]:
    """Paths of the cgroups that the children of a process are in: a monitor's are the containers of its pod."""
    children = _read(b"/proc/%d/task/%d/children" % (pid, pid)).split()
    found: set[bytes] = set()
    for child in children:
        try:
            lines = _read(b"/proc/%b/cgroup" % child).splitlines()
        except OSError:
            continue
        for line in lines:
            number, controllers, path = line.split(b":", 2)
            if (number == b"0") if hierarchy.mount else (b"freezer" in controllers):
                found.add(path)
    return sorted(found)


def _mountless(state: bytes, root: bytes) -> tuple[bytes, ...]:
    """Directories below which the host has no mount of ours, ever: roots are mounted where nobody else sees them."""
    return (state + b"/sandboxes/", root + b"/containers/", root + b"/layers/", root + b"/images/")


def _mounts(places: tuple[bytes, ...]) -> list[bytes]:
    """Mount points below `places`, one for each mount, the latest first. Source: proc_pid_mountinfo(5)."""
    targets = [line.split(b" ")[4] for line in _read(b"/proc/self/mountinfo").splitlines()]
    return [_unescaped(each) for each in reversed(targets) if _unescaped(each).startswith(places)]


def _unescaped(text: bytes) -> bytes:
    first, *rest = text.split(b"\\")
    return first + b"".join(bytes([int(each[:3], 8)]) + each[3:] for each in rest)


def _sandboxes(place: bytes) -> list[Entry]:
    """[id, whether it has a socket, ids of the containers that have files there]."""
    found: list[Entry] = []
    for sandbox in _names(place):
        directory = place + b"/" + sandbox
        containers: set[bytes] = set()
        for kind in _OF_CONTAINERS:
            containers.update(_names(directory + b"/" + kind))
        # what is being written has a name that begins with "." or ends with ".new"
        whole = [each for each in containers if not each.startswith(b".") and not each.endswith(b".new")]
        found.append([sandbox, os.path.lexists(directory + b"/monitor.sock"), sorted(whole)])
    return found


def _blobs(images: bytes) -> list[Entry]:
    """[directory, name, time of the last change in ns] of what pulls have fetched."""
    found: list[Entry] = []
    for directory in (b"partial", b"blobs"):
        for name in _names(images + b"/" + directory):
            try:
                changed = os.lstat(images + b"/" + directory + b"/" + name).st_mtime_ns
            except FileNotFoundError:
                continue
            found.append([directory, name, changed])
    return found


def _spools(root: bytes) -> list[bytes]:
    """Archives being read, and files that were made to be unlinked at once; relative to the root directory."""
    found = [b"images/spool/" + name for name in _names(root + b"/images/spool")]
    return found + [name for name in _names(root) if name.startswith(b"tmp") and len(name) == len(b"tmp") + 8]


def _directories(place: bytes) -> list[bytes]:
    try:
        if os.stat(place).st_nlink == 2:  # kernfs counts sub-directories, so most need no listing
            return []
        with os.scandir(place) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def _names(place: bytes) -> list[bytes]:
    try:
        return os.listdir(place)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read(path: bytes) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _bytes(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value
