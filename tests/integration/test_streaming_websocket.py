"""Exec over WebSocket: clients of Kubernetes and others against the server, with processes of this machine."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from typing import Any

import pytest
import websockets
from kubernetes.client import Configuration
from kubernetes.stream import ws_client

from crishim.model.session import ExecRequest
from tests.support.streaming import DEADLINE_S, Machine, exit_code, run, serving, sh


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
