"""Classes of service and monitoring groups of resctrl: caches and memory bandwidth that processes share or do not.

A class is a directory of the resctrl file system, a monitoring group one below it; a process is put into either by a
write to its `tasks`, as into a cgroup of v1. Source: Documentation/filesystems/resctrl.rst of Linux. Nothing of it was
tried on a machine that has it.
"""

from __future__ import annotations

import errno
import os

from crishim.cgroups.files import write

#: group (a class's name), own (it is the container's, and goes with it), schemata (lines), monitor ("" or a name)
Value = dict[str, object]


def find(mounts: bytes = b"/proc/self/mountinfo") -> bytes:
    """Where resctrl is mounted; b"" when it is not."""
    with open(mounts, "rb") as table:
        for line in table:
            before, _, after = line.partition(b" - ")
            if after.startswith(b"resctrl "):
                return before.split(b" ")[4]
    return b""


def create(root: bytes, value: Value) -> None:
    """Make the class and the monitoring group of a container, with its schemata.

    A class that somebody else made stays as it is, and must have the schemata asked for. OSError says what is at fault;
    nothing that was made here is left then.
    """
    directory = _class(root, value)
    lines: list[str] = value["schemata"]  # type: ignore[assignment]
    made = []
    try:
        try:
            if value["own"] or lines:  # one that is only named has to be there
                os.mkdir(directory, 0o755)
                made.append(directory)
        except FileExistsError:
            pass
        if made and lines:
            _write_schemata(root, directory, lines)
        elif lines:
            _check_schemata(directory, lines)
        elif not os.path.isdir(directory):
            raise OSError(errno.ENOENT, "there is no such class of service", directory)
        if value["monitor"]:
            monitor = _monitor(root, value)
            try:
                os.mkdir(monitor, 0o755)
                made.append(monitor)
            except FileExistsError:
                pass
    except OSError:
        for each in reversed(made):
            os.rmdir(each)
        raise


def task_files(root: bytes, value: Value) -> list[bytes]:
    """The files that a process of the container writes "0" to, in order."""
    files = [_class(root, value) + b"/tasks"]
    return [*files, _monitor(root, value) + b"/tasks"] if value["monitor"] else files


def remove(root: bytes, value: Value) -> None:
    """Remove what is the container's own; what is gone is fine."""
    for directory in ([_monitor(root, value)] if value["monitor"] else []) + (
        [_class(root, value)] if value["own"] else []
    ):
        try:
            os.rmdir(directory)
        except OSError:
            pass  # a process may be in it, and the kernel has put it back to the default class by then


def _class(root: bytes, value: Value) -> bytes:
    return root + b"/" + os.fsencode(str(value["group"]))


def _monitor(root: bytes, value: Value) -> bytes:
    return _class(root, value) + b"/mon_groups/" + os.fsencode(str(value["monitor"]))


def _write_schemata(root: bytes, directory: bytes, lines: list[str]) -> None:
    try:
        write(directory + b"/schemata", "\n".join(lines) + "\n")
    except OSError as error:
        try:
            with open(root + b"/info/last_cmd_status", "rb") as file:
                told = file.read(200).decode("utf-8", "replace").strip()
        except OSError:
            told = ""
        raise OSError(error.errno, f"schemata {lines!r}: {told or error.strerror}", directory) from None


def _check_schemata(directory: bytes, lines: list[str]) -> None:
    with open(directory + b"/schemata", "rb") as file:
        present = _parsed(file.read(1 << 16).decode("utf-8", "replace").splitlines())
    for resource, domains in _parsed(lines).items():
        if any(present.get(resource, {}).get(domain) != mask for domain, mask in domains.items()):
            raise OSError(errno.EEXIST, f"the class has other schemata than {lines!r}", directory)


def _parsed(lines: list[str]) -> dict[str, dict[str, str]]:
    """Resource to the masks of its domains, without leading zeros: "L3:0=00f;1=f" is {"L3": {"0": "f", "1": "f"}}."""
    found: dict[str, dict[str, str]] = {}
    for line in lines:
        resource, mark, rest = line.partition(":")
        if mark:
            pairs = (part.partition("=") for part in rest.split(";"))
            masks = {domain.strip(): mask.strip().lower().lstrip("0") or "0" for domain, _, mask in pairs}
            found.setdefault(resource.strip(), {}).update(masks)
    return found
