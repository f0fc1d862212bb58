"""The monitor's side of every recorded conversation, said to the server's code of today.

What an old monitor reads must still be in our requests, and what it answers and tells must still be understood.
Zygotes are left out: a server's own is never older than the server.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from crishim.cgroups.hierarchy import Hierarchy
from crishim.errors import StartFailed, Unsupported
from crishim.executor import wire
from crishim.executor.client import Monitor, MonitoredContainer, StartedContainer
from crishim.model.exit import ExitRecord
from crishim.model.process import (
    CgroupSpec,
    ContainerSpec,
    LogTarget,
    MountSpec,
    Namespace,
    NamespaceKind,
    ProcessSpec,
    RootFs,
)
from tests.support import conversations
from tests.support.conversations import Conversation, Done, Said, differences, fold, recorded, unfold

CONVERSATIONS = {name: each for name, each in recorded() if name.rpartition("/")[2] != "role_answers"}
V1_TREES = Hierarchy("hybrid", b"/sys/fs/cgroup/unified", {"devices": b"/sys/fs/cgroup/devices"})


class OldMonitor:
    """Answers today's server with what was recorded."""

    def __init__(self, conversation: Conversation, directory: Path) -> None:
        self.conversation = conversation
        self.directory = directory
        self.exits: list[ExitRecord] = []
        self.started: list[MonitoredContainer] = []
        self.pod_init_deaths = 0
        self.asking: list[tuple[Said, int, asyncio.Future[Any]]] = []
        self.begin()

    def begin(self) -> None:
        """A connection of a server that finds the monitor."""
        self.sock, ours = wire.pair()
        self.sock.setblocking(False)
        self.monitor = Monitor("recorded", self.directory, V1_TREES, "/monitors")
        self.monitor.connect(ours, wire.ACCEPTED_VERSIONS[0])
        self.monitor.on_exit = self.exits.append
        self.monitor.on_started = self.started.append
        self.monitor.on_pod_init_exited = self.pod_init_died

    def pod_init_died(self) -> None:
        self.pod_init_deaths += 1

    async def play(self) -> None:
        for event in self.conversation.events:
            if isinstance(event, Done):
                if "reconnect" in event.act:
                    self.end()
                    self.begin()
            elif event.receiver == "monitor":
                await self.be_asked(event)
            elif event.sender == "monitor":
                await self.answer(event)
        self.end()

    async def be_asked(self, said: Said) -> None:
        """Have the server ask, and look for all that an old monitor reads."""
        asking = asyncio.ensure_future(self._request(said))
        message = await self._next()
        assert message.kind == conversations.NUMBERS[said.kind]
        assert message.version <= self.conversation.version, "an old monitor would hang up"
        assert differences(_comparable(said.body), _comparable(unfold(message.body))) == []
        assert len(message.fds) == len(said.fds)
        message.close()
        self.asking.append((said, message.seq, asking))

    def _request(self, said: Said) -> Coroutine[Any, Any, Any]:
        monitor, name = self.monitor, said.body.get("id", b"").decode()
        if said.kind == "START_CONTAINER":
            null = os.open("/dev/null", os.O_RDWR)
            return _closing(null, monitor.start_container(_spec(said.body), stdio=[null] * len(said.fds)))
        if said.kind == "OPEN_SOCKET":
            return monitor.open_socket(said.body["family"], said.body["kind"], said.body["protocol"])
        simple = {"STATE": monitor.refresh, "STOP": monitor.stop, "OPEN_NETNS": monitor.open_netns}
        if said.kind in simple:
            return simple[said.kind]()
        named = {
            "REOPEN_LOG": monitor.reopen_log, "ATTACH": monitor.attach, "FORGET": monitor.forget,
            "CANCEL_START": monitor.cancel_start,
        }  # fmt: skip
        return named[said.kind](name)

    async def _next(self) -> wire.Message:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self.sock.fileno(), ready.set)
        try:
            await asyncio.wait_for(ready.wait(), 20)
        finally:
            loop.remove_reader(self.sock.fileno())
        message = wire.receive(self.sock)
        assert message is not None
        return message

    async def answer(self, said: Said) -> None:
        """Say what was said, and see the server understand it."""
        body = fold(said.body)
        seq, asking = 0, None
        if said.seq:
            _, seq, asking = self.asking.pop(0)
        if said.kind == "OK" and not said.seq:
            self.monitor.take_about(body)
            return
        fds = [_descriptor(kind) for kind in said.fds]
        heard = len(self.exits) + len(self.started) + self.pod_init_deaths
        wire.send(self.sock, conversations.NUMBERS[said.kind], seq, b"recorded", body, fds, self.conversation.version)
        for fd in fds:
            os.close(fd)
        if asking is None:
            await self._told(said, heard)
        elif said.kind == "ERROR":
            with pytest.raises(StartFailed) as caught:
                await asking
            assert str(caught.value) == said.body["message"]
        else:
            self._understood(said, await asking)

    async def _told(self, said: Said, heard: int) -> None:
        async with asyncio.timeout(20):
            while len(self.exits) + len(self.started) + self.pod_init_deaths == heard:
                await asyncio.sleep(0)
        if said.kind == "EVENT_CONTAINER_EXITED":
            record = self.exits[-1]
            assert (record.container_id.encode(), record.code, record.signal, record.ended_at_ns) == tuple(
                said.body[key] for key in ("id", "code", "signal", "ended_at_ns")
            )
        elif said.kind == "EVENT_CONTAINER_STARTED":
            started = self.started[-1]
            assert (started.id.encode(), started.pid) == (said.body["id"], said.body["pid"])
            assert started.pidfd is not None
            os.close(started.pidfd)

    def _understood(self, said: Said, result: Any) -> None:
        if isinstance(result, StartedContainer):
            assert (result.pid, result.started_at_ns) == (said.body["pid"], said.body["started_at_ns"])
            os.close(result.pidfd)
        elif isinstance(result, int):
            os.close(result)
        if "containers" in said.body:
            assert self.monitor.pid == said.body["pid"]
            found = {each["id"].decode(): each for each in said.body["containers"]}
            assert self.monitor.containers.keys() == found.keys()
            for container in self.monitor.containers.values():
                ended = found[container.id]["exit"]
                assert (container.exit is None) == (ended is None) == (container.pidfd is not None)
                if container.pidfd is not None:
                    os.close(container.pidfd)

    def end(self) -> None:
        self.monitor.close()
        self.sock.close()
        for _, _, asking in self.asking:
            asking.cancel()
        self.asking.clear()


async def _closing(fd: int, work: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await work
    finally:
        os.close(fd)


def _spec(body: dict[str, Any]) -> ContainerSpec:
    """A container like the recorded one."""
    log = body["log"] and LogTarget(*(os.fsdecode(part) for part in body["log"]))
    process = ProcessSpec(args=("/bin/x",), env=("A=b",), cwd="/", capabilities=None, terminal=body["terminal"])
    return ContainerSpec(
        id=body["id"].decode(),
        process=process,
        rootfs=RootFs(lowers=("/root",), upper="/upper", work="/work"),
        cgroup=CgroupSpec(body["cgroup"]),
        namespaces=(Namespace(NamespaceKind.PID), Namespace(NamespaceKind.MOUNT)),
        mounts=(MountSpec("/proc", "proc"),),
        log=log,
    )


def _descriptor(kind: str) -> int:
    if kind == "pidfd":
        return os.pidfd_open(os.getpid())
    if kind == "netns":
        return os.open("/proc/self/ns/net", os.O_RDONLY)
    if kind == "socket":
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours.detach()
    raise AssertionError(f"a monitor sends no {kind}")


def _comparable(body: dict[str, Any]) -> dict[str, Any]:
    """Without what differs between two containers: the first mount stands for all."""
    if "spec" not in body:
        return body
    spec = body["spec"][1]
    process = {**spec["process"], "capabilities": None, "groups": []}
    plan = {key: value for key, value in spec["cgroup_plan"].items() if key != "device_program"}
    return {**body, "spec": {**spec, "process": process, "cgroup_plan": plan, "mounts": spec["mounts"][:1]}}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_what_an_old_monitor_says_is_still_understood(name: str, tmp_path: Path) -> None:
    async def play() -> None:
        await asyncio.wait_for(OldMonitor(CONVERSATIONS[name], tmp_path).play(), 60)

    asyncio.run(play())


def test_the_recordings_hold_every_kind_of_message_of_the_present_version() -> None:
    kinds = Counter(
        event.kind
        for conversation in (each for _, each in recorded())
        if conversation.version == wire.VERSION
        for event in conversation.events
        if isinstance(event, Said)
    )
    # a note tells a bug of ours, so no scenario brings one about
    assert conversations.NUMBERS.keys() - kinds.keys() == {"EVENT_NOTE"}


def test_there_are_recordings_of_every_version_that_is_accepted() -> None:
    assert {each.version for _, each in recorded()} == {*wire.ACCEPTED_VERSIONS}


def test_a_recording_is_read_as_it_was_written() -> None:
    for _, conversation in recorded():
        assert conversations.parse(conversation.text()) == conversation


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ({"pid": 1}, {"pid": 2, "more": 3}, []),
        ({"pid": 1}, {}, [".pid is missing"]),
        ({"pid": 1}, {"pid": b"1"}, [".pid is b'1', which was 1"]),
        ({"code": 7}, {"code": 8}, [".code is 8, which was 7"]),
        ({"a": [{"b": 1}]}, {"a": []}, [".a has 0 entries instead of 1"]),
        ({"a": [{"b": 1}]}, {"a": [{}]}, [".a[0].b is missing"]),
    ],
)
def test_what_an_old_peer_would_miss_is_found(old: Any, new: Any, told: list[str]) -> None:
    assert differences(old, new) == told


def test_a_monitor_that_speaks_an_unknown_version_is_unsupported(tmp_path: Path) -> None:
    async def play() -> None:
        theirs, ours = wire.pair()
        monitor = Monitor("recorded", tmp_path, V1_TREES, "/monitors")
        monitor.connect(ours)
        lost: list[bool] = []
        monitor.on_lost = lambda: lost.append(True)
        asking = asyncio.ensure_future(monitor.refresh())
        await asyncio.sleep(0)
        wire.send(theirs, wire.ERROR, 0, b"recorded", {"message": "later"}, version=999)
        with pytest.raises(Unsupported, match="version 999 of the messages is not understood"):
            await asking
        assert lost == [True]
        theirs.close()

    asyncio.run(play())
