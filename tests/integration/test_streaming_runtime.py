"""Sessions in real containers: exec with pipes and a terminal, attach through the monitor, ports of a pod's netns."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from crishim.cgroups import effects
from crishim.errors import InvalidSpec, WrongState
from crishim.model.container import Container as ContainerRecord
from crishim.model.container import ContainerConfig, ContainerState, ContainerUser
from crishim.model.exit import ExitRecord
from crishim.model.process import LogTarget
from crishim.model.sandbox import NamespaceMode, NamespaceOptions, Sandbox, SandboxConfig, SandboxSecurity, SandboxState
from crishim.runtime.helper import Helper
from crishim.runtime.live import Live, LiveContainer
from crishim.runtime.operations import Operations
from crishim.runtime.sessions.use_cases import Sessions
from crishim.store.store import Store
from crishim.streaming.server import StreamingServer
from tests.support.container import IDLE, Container, Pod, all_capabilities, program, script
from tests.support.streaming import DEADLINE_S, ExecClient, SpdyClient, exit_code

ALL = {"stdin": False, "stdout": True, "stderr": True}
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]
TYPED = {"stdin": True, "stdout": True, "stderr": False}


class Runtime:
    """The rooms that sessions need, with one running container."""

    def __init__(self, pod: Pod, container: Container, state: Path, *, host_network: bool = False) -> None:
        self.pod = pod
        self.container = container
        self.live = Live()
        self.live.add_monitor(pod.monitor)
        self.entry = LiveContainer(pod.name, container.spec, container.pid, os.dup(container.pidfd))
        self.live.add(self.entry)
        self.store = Store(state, "boot")
        network = NamespaceMode.NODE if host_network else NamespaceMode.POD
        security = SandboxSecurity(namespaces=NamespaceOptions(network=network))
        config = SandboxConfig("name", "uid", "namespace", security=security)
        self.store.put_sandbox(Sandbox(pod.name, config, SandboxState.READY, 1))
        self.store.put_container(
            ContainerRecord(
                id=container.id,
                sandbox_id=pod.name,
                config=ContainerConfig("name"),
                state=ContainerState.RUNNING,
                created_at_ns=1,
                image_id="image",
                image_ref="image",
                image_name="image",
                user=ContainerUser(0, 0),
            )
        )
        self.operations = Operations()
        self.helper = Helper()
        self.sessions = Sessions(
            self.store, self.live, pod.node.executor, self.operations, self.helper, mock.Mock(), hang_up_s=0.3
        )
        self.server = StreamingServer(self.sessions)
        pod.monitor.on_exit = self._exited

    async def url(self, *args: str, tty: bool = False, **streams: bool) -> str:
        return await self.sessions.exec(self.container.id, args, tty=tty, **(streams or ALL))

    def _exited(self, record: ExitRecord) -> None:
        self.pod.exits[record.container_id].set_result(record)
        self.live.ended(record.container_id)

    def leaves(self) -> list[int]:
        """Processes of all execs."""
        pids = effects.pids(self.pod.node.hierarchy, self.container.spec.cgroup.path)
        return [pid for pid in pids if pid != self.container.pid]

    def commands(self) -> list[bytes]:
        """Command lines of those."""
        return [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in self.leaves()]

    async def close(self) -> None:
        await self.server.stop(1)
        await self.operations.close(5)
        self.helper.close()
        self.live.ended(self.container.id)


@pytest.fixture
def run(make_pod: Callable[..., Pod], tmp_path: Path) -> Callable[..., None]:
    """Runs a test on the executor's loop, with a container of these fields."""

    def start(
        test: Callable[[Runtime], Coroutine[Any, Any, None]], *, pod: dict[str, Any] | None = None, **fields: Any
    ) -> None:
        host_network = bool((pod or {}).pop("host_network", False))
        made = make_pod(**(pod or {"network": True}))
        process = fields.pop("process", program(*IDLE))
        if fields.pop("privileged", False):
            process = replace(process, capabilities=all_capabilities(made.node))
        container = made.start(process, **fields)
        state = tmp_path / "state"

        async def body() -> None:
            runtime = Runtime(made, container, state, host_network=host_network)
            try:
                await runtime.server.start("127.0.0.1", 0)
                await test(runtime)
            finally:
                await runtime.close()

        made.node.run(body(), 4 * DEADLINE_S)

    return start


async def until(condition: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"{what} did not come") from None


def test_output_and_exit_code_of_an_exec(run: Callable[..., None]) -> None:
    async def test(runtime: Runtime) -> None:
        url = await runtime.url("/bin/sh", "-c", "echo out; echo err >&2; exit 9")
        client = await ExecClient.connect(url, "stdout", "stderr")
        assert exit_code(await client.status()) == 9
        assert (client.received("stdout"), client.received("stderr")) == (b"out\n", b"err\n")

    run(test)


def test_a_program_that_is_not_there_is_a_sentence(run: Callable[..., None]) -> None:
    async def test(runtime: Runtime) -> None:
        for tty in (False, True):
            streams = {"stdin": False, "stdout": True, "stderr": not tty}
            url = await runtime.url("/bin/nothing", tty=tty, **streams)
            types = ["stdout", "resize"] if tty else ["stdout", "stderr"]
            status = await (await ExecClient.connect(url, *types)).status()
            assert status["reason"] == "InternalError"
            assert "/bin/nothing" in status["message"]

    run(test)


def test_50_mb_through_a_container_and_back(run: Callable[..., None]) -> None:
    async def test(runtime: Runtime) -> None:
        data = os.urandom(1 << 20) * 50
        client = await ExecClient.connect(await runtime.url("/bin/cat", **TYPED), "stdin", "stdout")
        sending = asyncio.ensure_future(client.client.send_all(client.streams["stdin"], data))
        assert exit_code(await client.status()) == 0
        await sending
        assert hashlib.sha256(client.received("stdout")).digest() == hashlib.sha256(data).digest()

    run(test)


def test_a_terminal_in_a_container(run: Callable[..., None]) -> None:
    async def test(runtime: Runtime) -> None:
        client = await ExecClient.connect(await runtime.url("/bin/sh", tty=True, **TYPED), "stdin", "stdout", "resize")
        client.resize(31, 97)
        client.type(b"tty; until stty size | grep '31 97'; do :; done\n")
        await client.until_shown(b"31 97\r\n")
        assert b"/dev/pts/" in client.received("stdout")
        client.type(b"sh -c 'echo in $((6 * 7)); exec cat'\n")
        await client.until_shown(b"in 42\r\n")  # from the process that Ctrl-C is for
        client.type(b"\x03")
        # the shell drops what is typed before its prompt
        await client.client.until(lambda: b"# " in client.received("stdout").partition(b"^C")[2])
        client.type(b"exit 3\n")
        assert exit_code(await client.status()) == 3

    run(test)


@pytest.mark.parametrize("tty", [False, True])
def test_dropped_clients_leave_no_process_and_no_leaf_in_use(run: Callable[..., None], tty: bool) -> None:
    async def test(runtime: Runtime) -> None:
        async def visit() -> None:
            url = await runtime.url("/bin/sh", "-c", "sleep 1000 & echo ready; sleep 1000; true", tty=tty, **TYPED)
            client = await ExecClient.connect(url, "stdin", "stdout", *(["resize"] if tty else []))
            await client.until_shown(b"ready")
            client.client.drop()

        for _ in range(10):
            await asyncio.gather(*(visit() for _ in range(5)))
        await until(lambda: not runtime.leaves(), "the end of all processes")
        await until(lambda: not runtime.entry.busy_leaves, "the end of all execs")

    run(test)


def test_a_process_that_ignores_the_hang_up_is_killed_and_one_made_to_live_on_is_not(run: Callable[..., None]) -> None:
    async def test(runtime: Runtime) -> None:
        url = await runtime.url("/bin/sh", "-c", "trap '' HUP; echo ready; sleep 1000", **TYPED)
        client = await ExecClient.connect(url, "stdin", "stdout")
        await client.until_shown(b"ready")
        client.client.drop()
        await until(lambda: not runtime.leaves(), "the end of what ignores SIGHUP")
        background = "(trap '' HUP; exec sleep 1000) >/dev/null 2>&1 &"
        url = await runtime.url("/bin/sh", "-c", f"{background} echo ready; cat", **TYPED)
        client = await ExecClient.connect(url, "stdin", "stdout")
        await client.until_shown(b"ready")
        await until(lambda: any(command.startswith(b"sleep") for command in runtime.commands()), "the sleep")
        client.client.drop()
        await until(lambda: not runtime.entry.busy_leaves, "the end of the exec")
        assert [command.split(b"\0")[0] for command in runtime.commands()] == [b"sleep"]

    run(test)


def test_an_exec_ends_with_its_container(run: Callable[..., None]) -> None:
    async def test(runtime: Runtime) -> None:
        url = await runtime.url("/bin/sh", "-c", "echo ready; sleep 1000")
        client = await ExecClient.connect(url, "stdout", "stderr")
        await client.until_shown(b"ready")
        runtime.container.signal(9)
        assert exit_code(await client.status()) == 137

    run(test)


def test_requests_that_cannot_be_are_refused(run: Callable[..., None]) -> None:
    async def test(runtime: Runtime) -> None:
        with pytest.raises(InvalidSpec, match="at least one"):
            await runtime.url("true", stdin=False, stdout=False, stderr=False)
        with pytest.raises(InvalidSpec, match="stderr"):
            await runtime.url("true", tty=True, **ALL)
        with pytest.raises(InvalidSpec, match="cmd"):
            await runtime.url()
        with pytest.raises(InvalidSpec, match="port"):
            await runtime.sessions.port_forward(runtime.pod.name, (0,))
        runtime.live.ended(runtime.container.id)
        with pytest.raises(WrongState, match="not running"):
            await runtime.url("true")

    run(test)


def test_attach_shows_what_comes_feeds_stdin_and_leaves_the_container_alone(
    run: Callable[..., None], tmp_path: Path
) -> None:
    async def test(runtime: Runtime) -> None:
        async def attach() -> ExecClient:
            url = await runtime.sessions.attach(runtime.container.id, tty=False, **TYPED)
            return await ExecClient.connect(url, "stdin", "stdout")

        first, second = await attach(), await attach()
        # the monitor adds a client a moment after its streams are open, and there is no replay
        while b"got" not in second.received("stdout"):
            first.type(b"hello\n")
            with pytest.raises(TimeoutError) if not second.received("stdout") else _nothing():
                await second.client.until(lambda: False, 0.2)
        await first.until_shown(b"got hello\n")
        first.client.drop()
        second.type(b"again\n")
        await second.until_shown(b"got again\n")
        second.type(b"end\n")
        assert exit_code(await second.status()) == 0

    (tmp_path / "log").mkdir()
    run(
        test,
        process=script("while read line; do echo got $line; [ $line = end ] && exit 5; done"),
        stdin=True,
        log=LogTarget(str(tmp_path / "log"), "c.log"),
    )


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield


def test_ports_of_the_pod_are_reached_over_ipv4_then_ipv6(run: Callable[..., None]) -> None:
    async def test(runtime: Runtime) -> None:
        async def four(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"four")
            writer.close()

        async def six(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"six")
            writer.close()

        async def listen(family: int, address: str, port: int, handler: Handler) -> asyncio.Server:
            sock = socket.socket(fileno=await runtime.pod.monitor.open_socket(family, socket.SOCK_STREAM, 0))
            sock.bind((address, port))
            return await asyncio.start_server(handler, sock=sock)

        exec_url = await runtime.url("/bin/sh", "-c", "ip link set lo up")
        assert exit_code(await (await ExecClient.connect(exec_url, "stdout", "stderr")).status()) == 0
        servers = [
            await listen(socket.AF_INET, "127.0.0.1", 8080, four),
            await listen(socket.AF_INET6, "::1", 8081, six),
        ]
        client = await SpdyClient.connect(
            await runtime.sessions.port_forward(runtime.pod.name, ()), "portforward.k8s.io"
        )

        async def ask(port: int, request: int) -> bytes:
            error, stream = await client.open_forward(port, request)
            await client.until(lambda: stream in client.ended and error in client.ended)
            return bytes(client.received[stream] + client.received[error])

        try:
            assert await ask(8080, 0) == b"four"
            assert await ask(8081, 1) == b"six"
            assert b"connection refused" in await ask(9999, 2)
            sandbox = runtime.pod.name
            runtime.store.update_sandbox(sandbox, lambda old: replace(old, state=SandboxState.NOTREADY))
            await client.until(lambda: client.gone)
        finally:
            await client.close()
            for server in servers:
                server.close()
                await server.wait_closed()

    run(test, privileged=True)


def test_what_an_exec_of_a_stopping_server_runs_is_ended(run: Callable[..., None]) -> None:
    async def test(runtime: Runtime) -> None:
        client = await ExecClient.connect(await runtime.url("/bin/sleep", "1000"), "stdout", "stderr")
        await until(lambda: len(runtime.leaves()) == 1, "a process")
        stopping = asyncio.ensure_future(runtime.server.stop(5))
        assert "the server is stopping" in (await client.status())["message"]
        await stopping
        await until(lambda: not runtime.leaves(), "the end of the process")

    run(test)
