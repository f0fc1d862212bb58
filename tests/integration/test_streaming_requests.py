"""Tokens, protocols, TLS, and what hostile clients send to the streaming server."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from crishim.runtime.sessions.tokens import MAX_TOKENS
from tests.support.streaming import DEADLINE_S, ExecClient, Refused, SpdyClient, exit_code, run, serving, sh, until


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
            # each megabyte of answers that the kernel takes is a hundred thousand pings more; connections inherit it
            server._server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
            client = await ExecClient.connect(machine.url(sh("sleep 1000")), "stdout", "stderr")
            sock = client.client._writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            flood = b"\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x01" * 50_000
            with pytest.raises(OSError):
                for _ in range(50):
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
