"""exec, attach and port-forward without an API server: crictl at the runtime, SPDY and WebSocket at the kubelet's port.

What the kubelet is asked here is what an API server asks it for kubectl; the runtime's URLs are behind it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import ssl
import subprocess
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import pytest
import websockets

from tests.e2e import tools
from tests.e2e.kubelet import PORT, Kubelet
from tests.e2e.node import Node, wait_until
from tests.e2e.pods import SERVER, container, exchange, forwarded, pod
from tests.e2e.runtimes import NO_HALF_CLOSE, Containerd, Crishim, chosen, skip_on_containerd
from tests.e2e.terminal import Terminal, running
from tests.support.streaming import ExecClient, SpdyClient, exit_code

PAYLOAD = os.urandom(20 << 20)
SUM = hashlib.sha256(PAYLOAD).hexdigest()
_DEADLINE_S = 120.0
WEB = pod("web", container("server", SERVER), container("talk", "exec cat", stdin=True))
#: of these each test that attaches to the end of stdin uses up its own
ONCE = {
    name: pod(f"once-{name}", container("main", "cat; echo bye", stdin=True, stdinOnce=True), restartPolicy="Never")
    for name in ("crictl-spdy", "crictl-websocket", "kubelet-spdy")
}


@dataclass(frozen=True)
class Clients:
    """A node with the pod `web`, and who may talk to it."""

    node: Node
    kubelet: Kubelet
    runtime: Crishim | Containerd

    def crictl(self, *words: str) -> list[str]:
        """A command line."""
        program = tools.build(["crictl"])[0]
        return self.node.inside(program, f"--runtime-endpoint=unix://{self.runtime.socket}", "--timeout=30s", *words)

    def run(self, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """crictl to its end."""
        return subprocess.run(self.crictl(*words), input=stdin, capture_output=True, timeout=_DEADLINE_S)

    def container_id(self, name: str, container: str) -> str:
        status = self.kubelet.container_status(name, container)
        return str(status["containerID"]).partition("://")[2]

    def url(self, kind: str, name: str, container: str = "", **query: Any) -> str:
        """Where the kubelet serves a session of a pod."""
        path = "/".join(filter(None, (kind, "default", f"{name}-{self.node.hostname}", container)))
        return f"https://127.0.0.1:{PORT}/{path}?{urlencode(query, doseq=True)}"

    async def spdy(self, url: str) -> dict[str, Any]:
        """The transport of a SPDY client to the kubelet."""
        sock = await asyncio.to_thread(self.node.dial, PORT)
        return {"connection": await asyncio.open_connection(sock=sock, ssl=_trusting(), server_hostname="node")}

    async def websocket(self, url: str, *protocols: str) -> Any:
        """A WebSocket client of the kubelet, to be entered."""
        sock = await asyncio.to_thread(self.node.dial, PORT)
        return websockets.connect(
            url.replace("https://", "wss://"),
            sock=sock,
            ssl=_trusting(),
            server_hostname="node",
            subprotocols=[websockets.Subprotocol(each) for each in protocols],
            max_size=None,
            ping_interval=None,
            # a proxy of this machine's environment does not know the node
            proxy=None,
        )


def _trusting() -> ssl.SSLContext:
    """The kubelet signs its own certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def bounded(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, _DEADLINE_S))


@pytest.fixture(scope="module")
def clients(node: Node) -> Iterator[Clients]:
    if not_built := [name for name in ("kubelet", "crictl") if tools.find(name) is None]:
        pytest.skip(f"not built, see make e2e-tools: {', '.join(not_built)}")
    runtime = chosen(node)
    kubelet = Kubelet(node, runtime.socket)
    kubelet.start()
    for each in (WEB, *ONCE.values()):
        kubelet.apply(each)
    for each in (WEB, *ONCE.values()):
        kubelet.wait_ready(each["metadata"]["name"])
    yield Clients(node, kubelet, runtime)


@pytest.fixture(params=["spdy", "websocket"])
def transport(clients: Clients, request: pytest.FixtureRequest) -> str:
    if request.param == "websocket":
        skip_on_containerd(clients.runtime, "containerd refuses the WebSocket protocols that crictl offers")
    return str(request.param)


# -- crictl


def test_crictl_exec_has_both_streams_and_fails_when_the_command_does(clients: Clients, transport: str) -> None:
    ident = clients.container_id("web", "server")
    ended = clients.run("exec", "-r", transport, ident, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert ended.stdout == b"out\n"
    # crictl's own lines are there too
    assert b"err" in ended.stderr.splitlines() and b"exit code 7" in ended.stderr
    assert ended.returncode != 0


def test_crictl_exec_i_carries_megabytes_in_both_directions(clients: Clients, transport: str) -> None:
    ended = clients.run("exec", "-i", "-r", transport, clients.container_id("web", "server"), "cat", stdin=PAYLOAD)
    assert ended.returncode == 0
    assert hashlib.sha256(ended.stdout).hexdigest() == SUM


def test_crictl_exec_it_is_a_terminal_with_its_size_and_its_ctrl_c(clients: Clients, transport: str) -> None:
    command = clients.crictl("exec", "-it", "-r", transport, clients.container_id("web", "server"), "sh")
    with Terminal(command, os.environ, rows=33, columns=101) as terminal:

        def has_size(size: str) -> bool:
            terminal.type("stty size\n")
            return terminal.expect(r"\n(\d+ \d+)\r\n")[1] == size

        wait_until(lambda: has_size("33 101"), deadline_s=20, what="the terminal's size in the container")
        terminal.resize(44, 123)
        wait_until(lambda: has_size("44 123"), deadline_s=20, what="the new size in the container")
        # of a child, so that the shell is past its fork and the child is in the foreground
        terminal.type("sh -c 'echo begun; exec sleep 1000'\n")
        terminal.expect(r"\nbegun\r\n")
        terminal.type("\x03")
        terminal.type("echo code=$?\n")
        terminal.expect(r"\ncode=130\r\n")
        terminal.type("exit\n")
        terminal.expect("exit|130", deadline_s=20)
        terminal.wait()


def test_crictl_attach_ends_with_a_container_that_reads_stdin_once(clients: Clients, transport: str) -> None:
    ident = clients.container_id(f"once-crictl-{transport}", "main")
    ended = clients.run("attach", "-i", "-r", transport, ident, stdin=b"hello\n")
    assert (ended.returncode, ended.stdout) == (0, b"hello\nbye\n")


def test_crictl_port_forward_carries_data_and_its_end(clients: Clients, transport: str) -> None:
    skip_on_containerd(clients.runtime, NO_HALF_CLOSE)
    listed = subprocess.run(clients.crictl("pods", "-q", "--name", "^web-"), capture_output=True, text=True, check=True)
    command = clients.crictl("port-forward", "-r", transport, listed.stdout.strip(), "0:7000")
    with running(command, os.environ) as process:
        (port,) = forwarded(process, 1).values()
        assert exchange(clients.node.dial(port), PAYLOAD).split()[0].decode() == SUM
        assert exchange(clients.node.dial(port), b"").split()[0].decode() == hashlib.sha256(b"").hexdigest()


# -- the kubelet's port


def exec_query(*command: str, **more: int) -> dict[str, Any]:
    return {"command": list(command), "output": 1, **more}


def test_the_kubelet_serves_exec_over_spdy(clients: Clients) -> None:
    async def test() -> None:
        query = exec_query("sh", "-c", "sha256sum; echo err >&2; exit 5", input=1, error=1)
        url = clients.url("exec", "web", "server", **query)
        client = await ExecClient.connect(url, "stdin", "stdout", "stderr", **await clients.spdy(url))
        await client.client.send_all(client.streams["stdin"], PAYLOAD)
        assert exit_code(await client.status()) == 5
        assert client.received("stdout").split()[0].decode() == SUM
        assert client.received("stderr") == b"err\n"

    bounded(test())


def test_the_kubelet_serves_a_terminal_over_spdy(clients: Clients) -> None:
    async def test() -> None:
        url = clients.url("exec", "web", "server", **exec_query("sh", input=1, tty=1))
        client = await ExecClient.connect(url, "stdin", "stdout", "resize", **await clients.spdy(url))
        client.resize(17, 71)
        client.type(b"while [ \"$(stty size)\" != '17 71' ]; do usleep 10000; done; echo re''sized; exit 4\n")
        await client.until_shown(b"resized")
        assert exit_code(await client.status()) == 4

    bounded(test())


@pytest.mark.parametrize("protocol", ["v5.channel.k8s.io", "v4.channel.k8s.io"])
def test_the_kubelet_serves_exec_over_websocket(clients: Clients, protocol: str) -> None:
    async def test() -> None:
        query = exec_query("sh", "-c", "head -c 20971520 | sha256sum; exit 6", input=1)
        url = clients.url("exec", "web", "server", **query)
        async with await clients.websocket(url, protocol) as client:
            assert client.subprotocol == protocol
            for start in range(0, len(PAYLOAD), 1 << 18):
                await client.send(b"\0" + PAYLOAD[start : start + (1 << 18)])
            messages = [message async for message in client]
        assert b"".join(each[1:] for each in messages if each[0] == 1).split()[0].decode() == SUM
        assert exit_code(json.loads(b"".join(each[1:] for each in messages if each[0] == 3))) == 6

    bounded(test())


def test_the_kubelet_serves_attach_over_spdy(clients: Clients) -> None:
    async def test() -> None:
        url = clients.url("attach", "once-kubelet-spdy", "main", input=1, output=1)
        client = await ExecClient.connect(url, "stdin", "stdout", **await clients.spdy(url))
        client.type(b"hello\n")
        await client.until_shown(b"hello\n")
        client.end_input()
        assert (await client.status())["status"] == "Success"
        assert client.received("stdout") == b"hello\nbye\n"

    bounded(test())


def test_two_clients_attach_over_websocket_and_both_see_the_output(clients: Clients) -> None:
    async def test() -> None:
        url = clients.url("attach", "web", "talk", input=1, output=1)
        async with (
            await clients.websocket(url, "v5.channel.k8s.io") as first,
            await clients.websocket(url, "v4.channel.k8s.io") as second,
        ):
            for client, other in ((first, second), (second, first)):
                # a session is told to a client before its view of the output has begun, so both say something first
                await client.send(b"\0ready\n")
                while b"ready" not in await client.recv():
                    pass
                await client.send(b"\0from one\n")
                for each in (client, other):
                    while b"from one" not in await each.recv():
                        pass

    bounded(test())


def test_the_kubelet_forwards_ports_over_spdy(clients: Clients) -> None:
    skip_on_containerd(clients.runtime, NO_HALF_CLOSE)

    async def test() -> None:
        url = clients.url("portForward", "web")
        client = await SpdyClient.connect(url, "portforward.k8s.io", **await clients.spdy(url))
        for request in (1, 2):
            _, data = await client.open_forward(7000, request)
            await client.send_all(data, PAYLOAD)
            await client.until(lambda data=data: data in client.ended)
            assert bytes(client.received[data]).split()[0].decode() == SUM
        await client.close()

    bounded(test())


def test_the_kubelet_forwards_ports_over_websocket(clients: Clients) -> None:
    async def test() -> None:
        url = clients.url("portForward", "web", port=7001)
        async with await clients.websocket(url, "v4.channel.k8s.io") as client:
            assert [await client.recv(), await client.recv()] == [b"\0" + b"\x59\x1b", b"\1" + b"\x59\x1b"]
            await client.send(b"\0" + PAYLOAD[: 1 << 20])
            received = b""
            while len(received) < 1 << 20:
                message = await client.recv()
                assert message[0] == 0, message
                received += message[1:]
        assert received == PAYLOAD[: 1 << 20]

    bounded(test())


def test_a_session_of_a_container_that_does_not_exist_is_refused(clients: Clients) -> None:
    async def test() -> None:
        url = clients.url("exec", "web", "nobody", **exec_query("true"))
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with await clients.websocket(url, "v5.channel.k8s.io"):
                pass
        assert refused.value.response.status_code in (404, 500)

    bounded(test())
