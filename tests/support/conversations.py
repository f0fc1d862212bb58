"""Recorded conversations between a server and its zygote and monitors: how they are written, read and taken.

A file is a sequence of messages, `FROM > TO KIND seq N fds [kinds]` and the body as a Python literal, and of acts of
the server that are not messages (`server does ...`). `{home}` and `{cgroup}` stand for places of the run. A body that
travels encoded inside another is ("wire", value). `python -m tests.support.record_conversations` writes the files.
"""

from __future__ import annotations

import ast
import fcntl
import os
import pprint
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crishim.executor import wire

DIRECTORY = Path(__file__).parents[1] / "wire"
KINDS = {
    value: name
    for name, value in vars(wire).items()
    if isinstance(value, int)
    and (name in ("OK", "ERROR") or 10 <= value < 60)
    and not name.startswith(("_", "MSG_", "AF_", "SOCK_"))
}
NUMBERS = {name: number for number, name in KINDS.items()}
_MESSAGE = re.compile(r"(\w+) > (\w+) (\w+) seq (\d+) fds (\[.*\])")


@dataclass(frozen=True)
class Said:
    """One message. fds: "pidfd", "socket", "pipe", "netns", "null", or "directory" and its path."""

    sender: str
    receiver: str
    kind: str
    seq: int
    fds: tuple[str, ...]
    body: dict[str, Any]


@dataclass(frozen=True)
class Done:
    """An act of the server: "kill ID", "rotate", "reconnect", "freeze", "thaw", "kill pod init"."""

    act: str


@dataclass
class Conversation:
    """What was said and done. version: of the messages; hierarchy: cgroup mode of the machine that recorded it."""

    title: str
    version: int
    hierarchy: str
    events: list[Said | Done] = field(default_factory=list)

    def text(self) -> str:
        """The file's content."""
        parts = [f"# {self.title}\n# version {self.version}, cgroups {self.hierarchy}\n"]
        for event in self.events:
            if isinstance(event, Done):
                parts.append(f"server does {event.act}\n")
                continue
            head = f"{event.sender} > {event.receiver} {event.kind} seq {event.seq} fds {list(event.fds)!r}"
            parts.append(f"{head}\n{pprint.pformat(event.body, width=118, sort_dicts=False)}\n")
        return "\n".join(parts)


def parse(text: str) -> Conversation:
    """The conversation of a file's content; ValueError for what is none."""
    title, about, *blocks = [block for block in re.split(r"\n(?=#)|\n\n", text) if block.strip()]
    found = re.fullmatch(r"# version (\d+), cgroups (\w+)\n?", about)
    if found is None:
        raise ValueError(f"not a conversation: {about!r}")
    conversation = Conversation(title.removeprefix("# "), int(found[1]), found[2])
    for block in blocks:
        head, _, body = block.partition("\n")
        if head.startswith("server does "):
            conversation.events.append(Done(head.removeprefix("server does ")))
            continue
        said = _MESSAGE.fullmatch(head)
        if said is None:
            raise ValueError(f"not a message: {head!r}")
        fds = tuple(ast.literal_eval(said[5]))
        conversation.events.append(Said(said[1], said[2], said[3], int(said[4]), fds, ast.literal_eval(body)))
    return conversation


def recorded() -> Iterator[tuple[str, Conversation]]:
    """(name, conversation) of every file, of all versions."""
    for path in sorted(DIRECTORY.glob("v*/*.txt")):
        yield f"{path.parent.name}/{path.stem}", parse(path.read_text())


def translate(value: Any, words: Mapping[str, str]) -> Any:
    """`value` with each word replaced, in texts and bytes at any depth."""
    if isinstance(value, bytes):
        for old, new in words.items():
            value = value.replace(os.fsencode(old), os.fsencode(new))
        return value
    if isinstance(value, str):
        for old, new in words.items():
            value = value.replace(old, new)
        return value
    if isinstance(value, dict):
        return {translate(key, words): translate(item, words) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(translate(item, words) for item in value)
    return value


def unfold(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body as it is written: what is encoded in it is shown."""
    if isinstance(body.get("spec"), bytes):
        return {**body, "spec": ("wire", wire.decode(body["spec"]))}
    return dict(body)


def fold(body: Mapping[str, Any]) -> dict[str, Any]:
    """The opposite."""
    return {
        key: wire.encode(value[1]) if isinstance(value, tuple) and value[0] == "wire" else value
        for key, value in body.items()
    }


def kind_of(fd: int) -> str:
    """What a descriptor is, as conversations call it."""
    target = os.readlink(f"/proc/self/fd/{fd}")
    mode = os.fstat(fd).st_mode
    if "[pidfd]" in target or target.startswith("pidfd:"):
        return "pidfd"
    if target.startswith("net:["):
        return "netns"
    if stat.S_ISSOCK(mode):
        return "socket"
    if stat.S_ISFIFO(mode):
        return "pipe"
    if stat.S_ISDIR(mode):
        return f"directory {target}"
    writes = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    return "null" if target == "/dev/null" else f"file {target} {writes}"


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """What a peer that knows `old` would miss in `new`: keys, types, lengths of lists of mappings, and fixed values."""
    if isinstance(old, tuple):
        old = old[1]
    if isinstance(new, tuple):
        new = new[1]
    if isinstance(old, dict) and isinstance(new, dict):
        missing = [f"{where}.{key} is missing" for key in old.keys() - new.keys()]
        return missing + [text for key in old.keys() & new.keys() for text in _differences(key, old, new, where)]
    if isinstance(old, list) and isinstance(new, list) and any(isinstance(item, dict) for item in old):
        if len(old) != len(new):
            return [f"{where} has {len(new)} entries instead of {len(old)}"]
        pairs = enumerate(zip(old, new))
        return [text for index, (a, b) in pairs for text in differences(a, b, f"{where}[{index}]")]
    return [] if type(old) is type(new) else [f"{where} is {new!r}, which was {old!r}"]


#: values that are the same in every run
_FIXED = {"id", "code", "signal", "streams", "oom_kills", "pod_init_died", "log_bytes_lost", "pidfd", "sum"}


def _differences(key: Any, old: dict[Any, Any], new: dict[Any, Any], where: str) -> list[str]:
    if key in _FIXED and old[key] != new[key]:
        return [f"{where}.{key} is {new[key]!r}, which was {old[key]!r}"]
    return differences(old[key], new[key], f"{where}.{key}")
