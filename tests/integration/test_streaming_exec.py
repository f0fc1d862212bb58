"""Exec and attach over real sockets: SPDY and WebSocket clients against the server, with processes of this machine."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import ssl
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import websockets
from kubernetes.client import Configuration
from kubernetes.stream import ws_client

from crishim.errors import WrongState
from crishim.model.session import AttachRequest, ExecRequest, PortForwardRequest
from crishim.runtime.sessions.tokens import MAX_TOKENS
from tests.support.streaming import DEADLINE_S, ExecClient, Machine, Refused, SpdyClient, exit_code, serving


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(4 * DEADLINE_S):
            await test()

    asyncio.run(bounded())


def sh(script: str, **streams: bool) -> ExecRequest:
    return ExecRequest("container", ("sh", "-c", script), **streams)


async def until(condition: Callable[[], bool], what: str) -> None:
    """Polls, since nothing tells of what the kernel does."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)
    assert condition(), what


# -- SPDY


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


# -- tokens and bad input


def test_a_token_is_good_once_and_only_for_its_purpose() -> None:
    async def test() -> None:
        async with serving() as (machine, _):
            url = machine.url(sh("true"))
            assert exit_code(await (await ExecClient.connect(url, "stdout", "stderr")).status()) == 0
            wrong = machine.url(sh("true")).replace("/exec/", "/attach/")
            for bad in (url, url + "x", wrong, f"{machine.base_url}/", f"{machine.base_url}/exec/forged"):
                with pytest.raises(Refused) as refused:
                    await SpdyClient.connect(bad, "v4.channel.k8s.io")
                assert refused.value.args[0] == 404

    run(test)


@pytest.mark.parametrize(
    ("protocols", "status"), [((), 400), (("v9.channel.k8s.io",), 403), (("portforward.k8s.io",), 403)]
)
def test_a_wrong_protocol_is_refused_and_uses_the_token_up(protocols: tuple[str, ...], status: int) -> None:
    async def test() -> None:
        async with serving() as (machine, _):
            url = machine.url(sh("true"))
            with pytest.raises(Refused) as refused:
                await SpdyClient.connect(url, *protocols)
            assert refused.value.args[0] == status
            with pytest.raises(Refused) as again:
                await SpdyClient.connect(url, "v4.channel.k8s.io")
            assert again.value.args[0] == 404

    run(test)


def test_too_many_tokens_are_refused() -> None:
    async def test() -> None:
        async with serving() as (machine, _):
            for _ in range(MAX_TOKENS):
                machine.url(sh("true"))
            with pytest.raises(Exception, match="streaming sessions"):
                machine.url(sh("true"))

    run(test)


@pytest.mark.parametrize(
    "junk",
    [
        b"\x80\x03\x00\x01\x00\xff\xff\xff",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x80\x02\x00\x01\x00\x00\x00\x00",
        b"\x80\x03\x00\x01\x00\x00\x00\x10" + b"\xff" * 16,
        b"\x00\x00\x00\x00\x00\x00\x00\x00",
    ],
)
def test_hostile_frames_end_the_session(junk: bytes) -> None:
    async def test() -> None:
        async with serving() as (machine, server):
            client = await ExecClient.connect(machine.url(sh("sleep 1000")), "stdout", "stderr")
            client.client._writer.write(junk)
            await client.client.closed_by_server()
            await client.client.close()
            await until(lambda: server.sessions == 0, "the end of the session")
            await until(lambda: machine.sessions[0]._ended.done(), "the end of the process")

    run(test)


def test_a_flood_of_pings_by_a_client_that_does_not_read_is_cut() -> None:
    async def test() -> None:
        async with serving() as (machine, server):
            client = await ExecClient.connect(machine.url(sh("sleep 1000")), "stdout", "stderr")
            flood = b"\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x01" * 50_000
            with pytest.raises(OSError):
                for _ in range(200):
                    client.client._writer.write(flood)
                    await client.client._writer.drain()
            client.client.drop()
            await until(lambda: server.sessions == 0, "the end of the session")

    run(test)


def test_a_request_that_does_not_come_is_not_waited_for() -> None:
    async def test() -> None:
        async with serving(creation_s=0.2) as (machine, _):
            host, port = str(machine.base_url).removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /exec/")
            assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b""
            writer.close()
            await writer.wait_closed()

    run(test)


def test_the_server_speaks_tls_when_it_has_a_certificate(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate]
    extra = ["-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, *extra], check=True, capture_output=True)

    async def test() -> None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate, key)
        async with serving(tls=tls) as (machine, _):
            assert str(machine.base_url).startswith("https://")
            port = int(str(machine.base_url).rsplit(":", 1)[1])
            context = ssl.create_default_context(cafile=str(certificate))
            connection = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            client = await ExecClient.connect(machine.url(sh("echo safe")), "stdout", "stderr", connection=connection)
            assert exit_code(await client.status()) == 0
            assert client.received("stdout") == b"safe\n"

    run(test)


# -- attach


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


# -- WebSocket


def kubernetes_exec(url: str) -> ws_client.WSClient:
    configuration = Configuration()
    return ws_client.WSClient(configuration, url.replace("http://", "ws://"), {}, True)


def test_the_kubernetes_client_runs_a_command_with_input_and_reads_its_exit_code() -> None:
    async def test() -> None:
        async with serving() as (machine, _):
            url = machine.url(sh("read line; echo got $line; echo err >&2; exit 5", stdin=True))

            def use() -> tuple[str, str, int]:
                client = kubernetes_exec(url)
                connection = client.sock.sock
                client.write_stdin("hello\n")
                client.run_forever(timeout=DEADLINE_S)
                found = client.read_stdout(), client.read_stderr(), client.returncode
                connection.close()  # the client forgets it when the server closes
                return found

            assert await asyncio.to_thread(use) == ("got hello\n", "err\n", 5)

    run(test)


def websocket(machine: Machine, request: Any, *protocols: str) -> Any:
    url = machine.url(request).replace("http://", "ws://")
    return websockets.connect(url, subprotocols=protocols or None, max_size=None, ping_interval=None)


def test_a_v5_client_half_closes_stdin_and_gets_50_mb_each_way_whole() -> None:
    async def test() -> None:
        data = os.urandom(1 << 20) * 50
        async with serving() as (machine, _):
            request = sh("cat; exit 2", stdin=True)
            async with websocket(machine, request, "v5.channel.k8s.io", "v4.channel.k8s.io") as client:
                assert client.subprotocol == "v5.channel.k8s.io"
                assert await client.recv() == b"\x01"

                async def send() -> None:
                    for start in range(0, len(data), 1 << 18):
                        await client.send(b"\0" + data[start : start + (1 << 18)])
                    await client.send(b"\xff\0")

                sending = asyncio.ensure_future(send())
                messages = [message async for message in client]
                await sending
                assert client.close_code == 1000
            received = b"".join(message[1:] for message in messages if message[0] == 1)
            assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
            assert exit_code(json.loads(messages[-1][1:])) == 2

    run(test)


def test_one_message_of_50_mb_arrives_whole() -> None:
    async def test() -> None:
        async with serving() as (machine, _):
            request = sh(f"head -c {50 << 20} | sha256sum", stdin=True)
            async with websocket(machine, request, "v4.channel.k8s.io") as client:
                data = os.urandom(1 << 20) * 50
                sending = asyncio.ensure_future(client.send(b"\0" + data))
                messages = [message async for message in client]
                await sending
            output = b"".join(message[1:] for message in messages if message[0] == 1)
            assert output.split()[0].decode() == hashlib.sha256(data).hexdigest()

    run(test)


@pytest.mark.parametrize(
    "protocols", [("base64.channel.k8s.io",), ("v4.base64.channel.k8s.io",), ("channel.k8s.io",), ()]
)
def test_older_websocket_protocols_are_spoken(protocols: tuple[str, ...]) -> None:
    async def test() -> None:
        async with serving() as (machine, _), websocket(machine, sh("echo hi"), *protocols) as client:
            messages = [message async for message in client]
            expected: list[Any] = ["1", "1aGkK"] if "base64" in "".join(protocols) else [b"\x01", b"\x01hi\n"]
            assert messages[:2] == expected

    run(test)


def test_an_unknown_websocket_protocol_is_forbidden() -> None:
    async def test() -> None:
        async with serving() as (machine, _):
            with pytest.raises(websockets.InvalidStatus) as refused:
                async with websocket(machine, sh("true"), "chat"):
                    pass
            assert refused.value.response.status_code == 403

    run(test)


def test_a_terminal_of_a_websocket_client_is_resized() -> None:
    async def test() -> None:
        async with serving() as (machine, _):
            request = ExecRequest("c", ("sh", "-c", "read x; stty size"), tty=True, stdin=True, stderr=False)
            async with websocket(machine, request, "v4.channel.k8s.io") as client:
                await client.send(b'\x04{"Width":77,"Height":22}')
                await client.send(b"\0\n")
                output = b"".join([message[1:] async for message in client if message[0] == 1])
            assert b"22 77" in output

    run(test)


def test_a_stuck_process_does_not_hold_up_websocket_pings() -> None:
    async def test() -> None:
        async with (
            serving() as (machine, _),
            websocket(machine, sh("sleep 1000", stdin=True), "v5.channel.k8s.io") as client,
        ):
            for _ in range(20):
                await client.send(b"\0" + b"x" * (1 << 20))
            await asyncio.wait_for(await client.ping(), DEADLINE_S)
            client.transport.abort()

    run(test)


def test_a_malformed_close_signal_closes_the_connection() -> None:
    async def test() -> None:
        async with (
            serving() as (machine, _),
            websocket(machine, sh("sleep 1000", stdin=True), "v5.channel.k8s.io") as client,
        ):
            await client.send(b"\xff\0\0")
            await client.wait_closed()
            assert client.close_code == 1002

    run(test)
