"""Exec and attach over real sockets: SPDY clients against the server, with processes of this machine."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from crishim.errors import WrongState
from crishim.model.session import AttachRequest, ExecRequest, PortForwardRequest
from tests.support.streaming import DEADLINE_S, ExecClient, SpdyClient, exit_code, run, serving, sh, until


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_output_and_exit_code_reach_a_spdy_client(method: str) -> None:
    async def test() -> None:
        async with serving() as (machine, _):
            url = machine.url(sh("echo out; echo err >&2; exit 7"))
            client = await ExecClient.connect(url, "stdout", "stderr", method=method)
            assert exit_code(await client.status()) == 7
            assert client.received("stdout") == b"out\n"
            assert client.received("stderr") == b"err\n"
            assert client.client.gone
            assert b"X-Stream-Protocol-Version: v4.channel.k8s.io" in client.client.head

    run(test)


def test_the_end_of_stdin_reaches_the_process_and_50_mb_each_way_arrive_whole() -> None:
    async def test() -> None:
        data = os.urandom(1 << 20) * 50
        async with serving() as (machine, _):
            client = await ExecClient.connect(machine.url(sh("cat", stdin=True, stderr=False)), "stdin", "stdout")
            sending = asyncio.ensure_future(client.client.send_all(client.streams["stdin"], data))
            status = await client.status()
            await sending
            assert status["status"] == "Success"
            assert hashlib.sha256(client.received("stdout")).digest() == hashlib.sha256(data).digest()

    run(test)


def test_a_terminal_has_the_size_of_the_client_and_its_exit_code_arrives() -> None:
    async def test() -> None:
        async with serving() as (machine, _):
            request = ExecRequest("container", ("sh",), tty=True, stdin=True, stderr=False)
            client = await ExecClient.connect(machine.url(request), "stdin", "stdout", "resize")
            client.resize(33, 101)
            client.type(b"until stty size | grep '33 101'; do :; done\n")
            await client.until_shown(b"33 101\r\n")
            client.resize(44, 55)
            client.type(b"until stty size | grep '44 55'; do :; done\n")
            await client.until_shown(b"44 55\r\n")
            client.type(b"sh -c 'echo in $((6 * 7)); exec sleep 1000'\n")
            await client.until_shown(b"in 42\r\n")  # from the process that Ctrl-C is for
            client.type(b"\x03")
            client.type(b"echo status $?; exit 3\n")
            assert exit_code(await client.status()) == 3

    run(test)


def test_a_process_that_does_not_read_holds_up_neither_pings_nor_its_own_output() -> None:
    async def test() -> None:
        async with serving() as (machine, _):
            script = "echo ready; exec sleep 1000"
            client = await ExecClient.connect(machine.url(sh(script, stdin=True, stderr=False)), "stdin", "stdout")
            await client.until_shown(b"ready")
            for _ in range(40):
                client.type(b"x" * (1 << 20))
            await client.client.ping()
            client.client.drop()
            await until(lambda: machine.sessions[0]._ended.done(), "the end of the process")

    run(test)


def test_a_client_that_does_not_read_makes_the_process_wait_and_nothing_grows() -> None:
    async def test() -> None:
        async with serving() as (machine, server):
            client = await ExecClient.connect(machine.url(sh("yes")), "stdout", "stderr")
            (link,) = server._links
            transport = link._writer.transport
            await until(lambda: transport.get_write_buffer_size() > 0, "a full socket")
            status = Path(f"/proc/{machine.sessions[0].pid}/stat")
            await until(lambda: status.read_text().rsplit(")", 1)[1].split()[0] == "S", "a process that waits")
            assert transport.get_write_buffer_size() < 1 << 20
            client.client.drop()
            await until(lambda: server.sessions == 0, "the end of the session")

    run(test)


def test_an_ended_process_waits_only_shortly_for_a_client_that_does_not_read() -> None:
    async def test() -> None:
        async with serving(linger_s=0.2) as (machine, server):
            client = await ExecClient.connect(machine.url(sh("yes & exit 0")), "stdout", "stderr")
            await until(lambda: server.sessions == 0, "the end of the session")
            client.client.drop()

    run(test)


def test_a_client_that_reads_slowly_gets_all_of_an_ended_process() -> None:
    async def test() -> None:
        async with serving(linger_s=1.0) as (machine, _):
            client = await ExecClient.connect(machine.url(sh("head -c 12000000 /dev/zero")), "stdout", "stderr")
            while client.streams["error"] not in client.client.ended:
                await client.client.receive()
                await asyncio.sleep(0.02)  # slowness is what is tested
            assert len(client.received("stdout")) == 12_000_000
            await client.client.close()

    run(test)


def test_input_that_no_disk_takes_ends_the_session_with_a_sentence(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(spool_dir=tmp_path / "missing") as (machine, _):
            request = sh("exec sleep 1000", stdin=True, stderr=False)
            client = await ExecClient.connect(machine.url(request), "stdin", "stdout")
            for _ in range(4):
                client.type(b"x" * (1 << 20))
            status = await client.status()
            assert "the input cannot be kept: no such file or directory" in status["message"]

    run(test)


def test_a_background_process_that_holds_the_output_does_not_hold_the_session(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving() as (machine, _):
            script = f"sleep 1000 & echo $! > {tmp_path}/pid; echo done; exit 4"
            client = await ExecClient.connect(machine.url(sh(script)), "stdout", "stderr")
            assert exit_code(await client.status()) == 4
            assert client.received("stdout") == b"done\n"
            os.kill(int((tmp_path / "pid").read_text()), 9)

    run(test)


def test_output_of_a_burst_before_the_exit_is_whole() -> None:
    async def test() -> None:
        async with serving() as (machine, _):
            client = await ExecClient.connect(machine.url(sh("head -c 3000000 /dev/zero; exit 1")), "stdout", "stderr")
            assert exit_code(await client.status()) == 1
            assert len(client.received("stdout")) == 3000000

    run(test)


def test_an_exec_that_cannot_start_tells_why() -> None:
    async def test() -> None:
        async with serving() as (machine, _):
            machine.refusal = WrongState("container c is not running")
            client = await ExecClient.connect(machine.url(sh("true")), "stdout", "stderr")
            status = await client.status()
            assert status["reason"] == "InternalError"
            assert "container c is not running" in status["message"]

    run(test)


def test_a_client_that_opens_too_few_streams_is_closed() -> None:
    async def test() -> None:
        async with serving(creation_s=0.2) as (machine, _):
            client = await SpdyClient.connect(machine.url(sh("true")), "v4.channel.k8s.io")
            await client.open(streamtype="error")
            await client.closed_by_server()
            await client.close()
            assert not machine.sessions

    run(test)


def test_a_silent_session_is_cut_and_pings_keep_it() -> None:
    async def test() -> None:
        async with serving(idle_s=0.6) as (machine, _):
            client = await ExecClient.connect(machine.url(sh("sleep 1000")), "stdout", "stderr")
            loop = asyncio.get_running_loop()
            began = loop.time()
            while loop.time() - began < 1.5:
                await client.client.ping()
                await asyncio.sleep(0.1)
            await client.client.closed_by_server()
            await client.client.close()
            await until(lambda: machine.sessions[0]._ended.done(), "the end of the process")

    run(test)


def test_a_server_that_stops_tells_its_clients() -> None:
    async def test() -> None:
        async with serving() as (machine, server):
            client = await ExecClient.connect(machine.url(sh("sleep 1000")), "stdout", "stderr")
            forward = await SpdyClient.connect(machine.url(PortForwardRequest("sandbox")), "portforward.k8s.io")
            stopping = asyncio.ensure_future(server.stop(10))
            status = await client.status()
            assert "the server is stopping" in status["message"]
            await forward.until(lambda: forward.gone)
            await forward.close()
            await stopping

    run(test)


def test_attach_shows_output_feeds_stdin_and_leaves_the_container_alone() -> None:
    async def test() -> None:
        async with serving() as (machine, server):
            request = AttachRequest("container", stdin=True)
            client = await ExecClient.connect(machine.url(request), "stdin", "stdout", "stderr")
            await until(lambda: bool(machine.monitors), "the attach")
            monitor = machine.monitors[0]
            monitor.settimeout(DEADLINE_S)
            monitor.send(b"\x01out")
            monitor.send(b"\x02err")
            await client.until_shown(b"out")
            await client.until_shown(b"err", "stderr")
            client.type(b"typed")
            client.end_input()
            assert await asyncio.to_thread(monitor.recv, 100) == b"\x00typed"
            assert await asyncio.to_thread(monitor.recv, 100) == b"\x05"
            client.client.drop()
            assert await asyncio.to_thread(monitor.recv, 100) == b""
            await until(lambda: server.sessions == 0, "the end of the session")

    run(test)


def test_attach_ends_with_the_container() -> None:
    async def test() -> None:
        async with serving() as (machine, _):
            client = await ExecClient.connect(machine.url(AttachRequest("container")), "stdout", "stderr")
            await until(lambda: bool(machine.monitors), "the attach")
            machine.monitors[0].send(b"\x01last words")
            machine.monitors[0].close()
            assert (await client.status())["status"] == "Success"
            assert client.received("stdout") == b"last words"

    run(test)
