"""The server's side of every recorded conversation, said to the zygote and the monitors of today.

What an old server asked must still be answered as it was: the same kinds, in the same order, with the same
descriptors, and with everything in the body that the old server reads.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crishim.cgroups import effects
from crishim.cgroups.hierarchy import detect
from crishim.cgroups.plan import plan
from crishim.executor import launch, wire
from crishim.model.process import DeviceRule
from crishim.model.resources import Resources
from tests.support import conversations
from tests.support.container import make_busybox_root, wait_until
from tests.support.conversations import (
    Conversation,
    Done,
    Said,
    differences,
    fold,
    kind_of,
    recorded,
    translate,
    unfold,
)
from tests.support.record_conversations import ROLES
from tests.support.scenarios import children, freeze, thaw

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

CONVERSATIONS = dict(recorded())
DEADLINE_S = 20.0


class OldServer:
    """Says what was recorded. Owns every descriptor that it makes or is given, until `close`."""

    def __init__(self, conversation: Conversation, home: Path, cgroup: str) -> None:
        self.conversation = conversation
        self.home = home
        self.cgroup = cgroup
        self.hierarchy = detect()
        self.words = {"{home}": str(home), "{cgroup}": cgroup}
        self.directory = home / "sandbox-recorded"
        self.fds: list[int] = []
        self.pidfds: list[int] = []
        self.monitor_pid = 0
        self.sockets: dict[str, Any] = {}
        interpreter = launch.sealed_interpreter()
        self.fds.append(interpreter)
        arguments = launch.arguments(self.hierarchy.to_value(), f"{cgroup}/monitors", ROLES)
        self.zygote, self.sockets["zygote"] = launch.spawn_zygote(interpreter, arguments)
        self.hears("zygote")

    def play(self) -> None:
        for event in self.conversation.events:
            if isinstance(event, Done):
                self.do(event.act)
            elif event.sender == "server":
                self.say(event)
            else:
                self.hear(event)

    def say(self, said: Said) -> None:
        body = fold(translate(said.body, self.words))
        if said.kind == "START_CONTAINER":
            (self.home / f"upper-{_text(body['id'])}").mkdir()
            (self.home / f"work-{_text(body['id'])}").mkdir()
        elif said.kind == "EXEC":
            effects.exec_leaf(self.hierarchy, os.path.dirname(body["leaf"]), 0)
        if self.conversation.hierarchy != self.hierarchy.mode:
            body = self._of_this_machine(said.kind, body)
        fds = [self._descriptor(said, kind, body) for kind in said.fds]
        sock = self.sockets[said.receiver]
        wire.send(sock, conversations.NUMBERS[said.kind], said.seq, b"recorded", body, fds, self.conversation.version)

    def _of_this_machine(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        """Paths of cgroup trees are not the conversation's: a server knows those of its machine."""
        if kind == "START_CONTAINER":
            spec: Any = wire.decode(body["spec"])
            made = plan(spec["cgroup"], Resources(), (DeviceRule(False),), self.hierarchy).to_value()
            return {**body, "spec": wire.encode({**spec, "cgroup_plan": made})}
        if kind == "EXEC":
            return {**body, "cgroup_procs": effects.task_files(self.hierarchy, os.path.dirname(body["leaf"]))}
        return body

    def _descriptor(self, said: Said, kind: str, body: dict[str, Any]) -> int:
        if kind == "pidfd":
            return self.pidfds[-1]
        made: list[int] = []
        if kind == "socket":
            ours, theirs = wire.pair()
            ours.settimeout(DEADLINE_S)
            self.sockets["monitor" if said.kind == "START_MONITOR" else "role"] = ours
            made = [theirs.detach()]
        elif kind == "pipe":
            reading, writing = os.pipe()
            made = [writing, reading]
        elif kind == "null":
            made = [os.open("/dev/null", os.O_RDWR)]
        elif said.kind == "EXEC":
            made = [effects.open_dir(self.hierarchy, body["leaf"])]
        else:
            self.directory.mkdir()
            made = [os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)]
        self.fds += made
        return made[0]

    def hears(self, sender: str) -> wire.Message:
        self.sockets[sender].settimeout(DEADLINE_S)
        message = wire.receive(self.sockets[sender])
        assert message is not None, f"the {sender} ended the conversation"
        self.fds += message.fds
        return message

    def hear(self, said: Said) -> None:
        """The next message of the sender has all that was recorded of it."""
        message = self.hears(said.sender)
        kind = conversations.KINDS[message.kind]
        assert (kind, message.seq) == (said.kind, said.seq), (kind, message.body)
        assert message.version in (self.conversation.version, wire.VERSION)
        assert tuple(kind_of(fd) for fd in message.fds) == said.fds
        assert differences(said.body, unfold(message.body)) == []
        if said.sender == "monitor":
            self.monitor_pid = message.body.get("pid", 0) if said.seq == 0 and kind == "OK" else self.monitor_pid
            self.pidfds += [fd for fd, what in zip(message.fds, said.fds) if what == "pidfd"]

    def do(self, act: str) -> None:
        word, _, what = act.partition(" ")
        if act == "kill pod init":
            os.kill(children(self.monitor_pid)[0], signal.SIGKILL)
        elif word == "kill":
            assert what == "recorded-c1", "conversations kill their first container"
            signal.pidfd_send_signal(self.pidfds[0], signal.SIGKILL)
        elif word == "rotate":
            os.rename(self.home / "log", self.home / "log.1")
        elif word == "freeze":
            freeze(self.monitor_pid)
        else:
            self.reconnect()
            if word == "thaw":
                thaw(self.monitor_pid)

    def reconnect(self) -> None:
        self.sockets["monitor"].close()
        sock = type(self.sockets["zygote"])(1, 5)  # AF_UNIX, SOCK_SEQPACKET
        place = os.open(self.directory, os.O_PATH)
        sock.connect(f"/proc/self/fd/{place}/monitor.sock")
        os.close(place)
        self.sockets["monitor"] = sock

    def close(self) -> None:
        for sock in self.sockets.values():
            sock.close()
        for fd in {*self.fds}:
            os.close(fd)
        effects.kill(self.hierarchy, self.cgroup)
        os.waitpid(self.zygote, 0)
        wait_until(lambda: effects.remove(self.hierarchy, self.cgroup, tries=1), "removal of the cgroups")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "root").mkdir()
    make_busybox_root(tmp_path / "root")
    yield tmp_path


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_what_an_old_server_says_is_still_understood(name: str, home: Path) -> None:
    server = OldServer(CONVERSATIONS[name], home, f"/crishim-executor-test-{os.getpid()}-recorded")
    try:
        server.play()
    finally:
        server.close()


def _text(value: bytes) -> str:
    return value.decode()
