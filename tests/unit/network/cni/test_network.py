"""The order of commands and what each plugin is told, with plugins that are small shell scripts."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crishim.errors import TimedOut, Unavailable, Unsupported
from crishim.model.sandbox import PortMapping, SandboxConfig
from crishim.network.cni import network as module
from crishim.network.cni.network import CniNetwork
from crishim.network.cni.records import AttachmentRecords
from crishim.network.door import Attachment

RESULT = {"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.5/24"}]}

PLUGIN = """#!/bin/sh
name=${0##*/}
request=$(cat)
printf '%s\\n' "$name $CNI_COMMAND $CNI_CONTAINERID [$CNI_NETNS] $CNI_IFNAME" >> DIR/calls
printf '%s' "$request" > "DIR/$name.$CNI_COMMAND"
if [ -e "DIR/fail.$name.$CNI_COMMAND" ]; then
  echo "a diagnostic" >&2
  echo '{"code": 11, "msg": "not now"}'
  exit 1
fi
if [ -e "DIR/hang.$name.$CNI_COMMAND" ]; then
  echo $$ > DIR/hanging
  sleep 600 & wait
fi
if [ "$CNI_COMMAND" = ADD ]; then printf '%s' 'RESULT'; fi
"""


class Node:
    """A node's directories, with plugins `one` and `two` in a chain."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.conf_dir, self.bin_dir = directory / "net.d", directory / "bin"
        self.conf_dir.mkdir()
        self.bin_dir.mkdir()
        for name in ("one", "two"):
            script = PLUGIN.replace("DIR", str(directory)).replace("RESULT", json.dumps(RESULT))
            (self.bin_dir / name).write_text(script)
            (self.bin_dir / name).chmod(0o755)
        self.configure()
        self.network = self.restarted()

    def configure(self, **change: Any) -> None:
        plugins = [{"type": "one", "capabilities": {"portMappings": True}}, {"type": "two", "extra": 1}]
        document = {"cniVersion": "1.1.0", "name": "pods", "plugins": plugins} | change
        (self.conf_dir / "10.conflist").write_text(json.dumps(document))

    def restarted(self) -> CniNetwork:
        return CniNetwork(self.conf_dir, (self.directory / "nowhere", self.bin_dir), self.directory / "records")

    def set_up(self, flag: str) -> None:
        (self.directory / flag).touch()

    def calls(self) -> list[str]:
        """Since the last time; without the parts that are always equal."""
        path = self.directory / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def request(self, plugin: str, command: str) -> Any:
        return json.loads((self.directory / f"{plugin}.{command}").read_text())

    def records(self) -> list[str]:
        return list(AttachmentRecords(self.directory / "records").ids())


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    # the loopback device of a pod is the kernel's matter; tests/integration has it
    monkeypatch.setattr(module, "_set_loopback_up", lambda _: None)
    yield Node(tmp_path)


def _alive_in_session(leader: int) -> list[str]:
    """Processes of a session that are not zombies, see proc_pid_stat(5)."""
    alive = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                alive.append(path.parent.name)
    return alive


def _attachment(sandbox_id: str = "a") -> Attachment:
    sandbox = SandboxConfig("pod", "uid", "ns", port_mappings=(PortMapping("tcp", 80, 8080),))
    return Attachment(sandbox_id, sandbox, "/run/netns/a", -1, -1)


def test_a_chain_is_added_in_order_and_deleted_in_reverse_with_its_result(node: Node) -> None:
    async def scenario() -> None:
        assert (await node.network.attach(_attachment(), deadline_s=30)).ips == ("10.1.0.5",)
        assert node.calls() == ["one ADD a [/run/netns/a] eth0", "two ADD a [/run/netns/a] eth0"]
        first, second = node.request("one", "ADD"), node.request("two", "ADD")
        assert first["runtimeConfig"] == {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
        assert (first["name"], first["cniVersion"], "prevResult" in first) == ("pods", "1.1.0", False)
        assert (second["prevResult"], second["extra"], "runtimeConfig" in second) == (RESULT, 1, False)
        await node.network.check("a", "/run/netns/a", deadline_s=30)
        assert node.calls() == ["one CHECK a [/run/netns/a] eth0", "two CHECK a [/run/netns/a] eth0"]
        await node.network.detach("a", "/run/netns/a", deadline_s=30)
        assert node.calls() == ["two DEL a [/run/netns/a] eth0", "one DEL a [/run/netns/a] eth0"]
        assert node.request("one", "DEL")["prevResult"] == RESULT
        await node.network.detach("a", None, deadline_s=30)
        assert (node.calls(), node.records()) == ([], [])

    asyncio.run(scenario())


def test_a_detach_after_a_restart_uses_the_configuration_of_the_attach(node: Node) -> None:
    async def scenario() -> None:
        await node.network.attach(_attachment(), deadline_s=30)
        node.calls()
        node.configure(name="changed", plugins=[{"type": "two"}])
        await node.restarted().detach("a", None, deadline_s=30)
        assert node.calls() == ["two DEL a [] eth0", "one DEL a [] eth0"]
        assert node.request("one", "DEL")["name"] == "pods"

    asyncio.run(scenario())


def test_an_add_that_fails_is_undone_and_told_in_the_plugins_words(node: Node) -> None:
    async def scenario() -> None:
        node.set_up("fail.two.ADD")
        with pytest.raises(Unavailable, match=r"'two' refused ADD: not now \(CNI code 11\); stderr: a diagnostic"):
            await node.network.attach(_attachment(), deadline_s=30)
        assert [call.split()[:2] for call in node.calls()] == [
            ["one", "ADD"],
            ["two", "ADD"],
            ["two", "DEL"],
            ["one", "DEL"],
        ]
        assert node.records() == []

    asyncio.run(scenario())


def test_an_undo_that_fails_is_noted_and_repeated_before_the_next_add(node: Node) -> None:
    async def scenario() -> None:
        node.set_up("fail.two.ADD")
        node.set_up("fail.one.DEL")
        with pytest.raises(Unavailable) as caught:
            await node.network.attach(_attachment(), deadline_s=30)
        assert "was not undone" in caught.value.__notes__[0]
        assert node.records() == ["a"]
        node.calls()
        for flag in ("fail.two.ADD", "fail.one.DEL"):
            (node.directory / flag).unlink()
        await node.restarted().attach(_attachment(), deadline_s=30)
        assert [call.split()[:2] for call in node.calls()] == [
            ["two", "DEL"],
            ["one", "DEL"],
            ["one", "ADD"],
            ["two", "ADD"],
        ]

    asyncio.run(scenario())


def test_a_plugin_that_hangs_is_killed_with_its_children_at_the_deadline(node: Node) -> None:
    async def scenario() -> None:
        node.set_up("hang.one.ADD")
        with pytest.raises(TimedOut, match="network of sandbox a was not set up within 1 s"):
            await node.network.attach(_attachment(), deadline_s=1)
        leader = int((node.directory / "hanging").read_text())
        end = time.monotonic() + 5
        while _alive_in_session(leader):
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        assert node.records() == []

    asyncio.run(scenario())


def test_a_daemon_that_keeps_the_output_open_holds_nobody_up(node: Node) -> None:
    script = f"#!/bin/sh\nsleep 600 & echo $! >> {node.directory}/daemons\necho '{json.dumps(RESULT)}'\n"
    (node.bin_dir / "one").write_text(script)

    async def scenario() -> None:
        assert (await node.network.attach(_attachment(), deadline_s=10)).ips
        await node.network.detach("a", None, deadline_s=10)

    try:
        asyncio.run(scenario())
    finally:
        for daemon in (node.directory / "daemons").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(daemon), 9)


def test_readiness_follows_the_directory_without_a_restart(node: Node) -> None:
    async def scenario() -> None:
        assert (await node.network.ready()).ready
        (node.conf_dir / "10.conflist").write_text("{")
        readiness = await node.network.ready()
        assert (readiness.ready, readiness.reason) == (False, "NetworkPluginNotReady")
        assert f"no CNI configuration in {node.conf_dir}; " in readiness.message and "10.conflist" in readiness.message
        with pytest.raises(Unavailable, match="no CNI configuration"):
            await node.network.attach(_attachment(), deadline_s=30)
        node.configure(plugins=[{"type": "missing"}])
        assert "CNI plugin 'missing' is not in" in (await node.network.ready()).message
        node.configure()
        assert (await node.network.ready()).ready

    asyncio.run(scenario())


def test_a_plugin_that_says_it_is_not_available_makes_the_network_not_ready(node: Node) -> None:
    async def scenario() -> None:
        node.set_up("fail.two.STATUS")
        readiness = await node.network.ready()
        assert not readiness.ready and "'two' refused STATUS: not now" in readiness.message
        assert len(node.calls()) == 2
        assert await node.network.ready() == readiness
        assert node.calls() == [], "the answer is kept for some seconds"
        node.configure(cniVersion="1.0.0")
        assert (await node.network.ready()).ready
        assert node.calls() == [], "STATUS came with 1.1.0"

    asyncio.run(scenario())


def test_reconcile_deletes_what_is_not_live_and_collects_with_what_is(node: Node) -> None:
    async def scenario() -> None:
        for name in "abc":
            await node.network.attach(_attachment(name), deadline_s=30)
        node.calls()
        assert await node.restarted().reconcile({"b"}, deadline_s=30) == ()
        assert [call.split()[:2] for call in node.calls()[-2:]] == [["one", "GC"], ["two", "GC"]]
        assert node.request("two", "GC")["cni.dev/valid-attachments"] == [{"containerID": "b", "ifname": "eth0"}]
        assert node.records() == ["b"]
        node.set_up("fail.one.DEL")
        assert await node.network.reconcile((), deadline_s=30) == ("b",)
        assert node.records() == ["b"]

    asyncio.run(scenario())


def test_a_record_that_is_damaged_is_put_aside(node: Node) -> None:
    async def scenario() -> None:
        await node.network.attach(_attachment(), deadline_s=30)
        (node.directory / "records" / "a.json").write_text('{"version": 1}')
        await node.network.detach("a", None, deadline_s=30)
        assert (node.directory / "records" / "a.damaged").exists()
        assert (await node.network.attach(_attachment(), deadline_s=30)).ips

    asyncio.run(scenario())


@pytest.mark.parametrize("change", [{"version": 2}, {"colour": "red"}])
def test_a_record_of_a_newer_crishim_is_refused_and_stays(node: Node, change: dict[str, Any]) -> None:
    async def scenario() -> None:
        await node.network.attach(_attachment(), deadline_s=30)
        path = node.directory / "records" / "a.json"
        text = json.dumps(json.loads(path.read_text()) | change)
        path.write_text(text)
        node.calls()
        with pytest.raises(Unsupported, match=r"a\.json was written by a newer crishim"):
            await node.restarted().open()
        with pytest.raises(Unsupported, match="newer crishim"):
            await node.network.detach("a", None, deadline_s=30)
        assert (await node.network.reconcile((), deadline_s=30), path.read_text()) == (("a",), text)
        assert not [call for call in node.calls() if " DEL " in call]

    asyncio.run(scenario())


def test_an_old_configuration_gets_no_previous_result_with_del_and_no_check(node: Node) -> None:
    async def scenario() -> None:
        node.configure(cniVersion="0.3.1")
        await node.network.attach(_attachment(), deadline_s=30)
        await node.network.check("a", "/run/netns/a", deadline_s=30)
        await node.network.detach("a", None, deadline_s=30)
        assert "prevResult" in node.request("two", "ADD") and "prevResult" not in node.request("two", "DEL")
        assert [call.split()[1] for call in node.calls()] == ["ADD", "ADD", "DEL", "DEL"]

    asyncio.run(scenario())


def test_a_chain_without_an_address_is_an_error_and_undone(node: Node) -> None:
    script = (node.bin_dir / "two").read_text().replace(json.dumps(RESULT), "{}")
    (node.bin_dir / "two").write_text(script)

    async def scenario() -> None:
        with pytest.raises(Unavailable, match="no IP address for eth0"):
            await node.network.attach(_attachment(), deadline_s=30)
        assert node.records() == []

    asyncio.run(scenario())


def test_nothing_is_added_while_garbage_is_collected(node: Node) -> None:
    async def scenario() -> None:
        async with asyncio.TaskGroup() as group:
            for name in "abcd":
                group.create_task(node.network.attach(_attachment(name), deadline_s=30))
                group.create_task(node.network.reconcile("abcd", deadline_s=30))
        lines = [call.split()[:3] for call in node.calls()]
        collected = [index for index, line in enumerate(lines) if line[1] == "GC"]
        # GC runs in pairs, so no ADD may stand between the two plugins of one
        for first, second in zip(collected[::2], collected[1::2], strict=True):
            assert second == first + 1

    asyncio.run(scenario())


def test_a_sandbox_id_that_is_a_path_is_refused(node: Node) -> None:
    async def scenario() -> None:
        with pytest.raises(Exception, match=r"sandbox id: '\.\./x'"):
            await node.network.attach(replace(_attachment(), sandbox_id="../x"), deadline_s=30)

    asyncio.run(scenario())


def test_the_loopback_of_a_descriptor_that_is_no_netlink_socket_is_an_error(tmp_path: Path) -> None:
    node = Node(tmp_path)
    with socket.socket() as other:
        attachment = replace(_attachment(), pod_netlink_fd=other.fileno())
        with pytest.raises(Unavailable, match="loopback device"):
            asyncio.run(node.network.attach(attachment, deadline_s=30))
