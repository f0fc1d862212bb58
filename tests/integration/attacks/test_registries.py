"""Registries that attack who pulls from them. They need nothing of a node but its name of an image."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crishim.errors import RegistryUnavailable, Unavailable
from crishim.images.download import PartialBlob
from crishim.images.manifests import OCI_LAYER_GZIP, Descriptor
from crishim.images.references import parse_reference
from crishim.images.registry import RegistryClient, RegistryConfig
from crishim.images.repository import Repository

#: a socket's own timeout never comes into it: each byte begins it anew
CONFIG: dict[str, Any] = {"backoff_s": 0.001, "read_timeout_s": 60.0, "window_s": 1.0, "window_bytes": 10_000}
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
SIZE = 1 << 40

#: what a server sends first, and what it goes on with for ever, a byte at a time
DRIPS = {
    "head": (HEAD, b"X-Filler: x\r\n"),
    "header": (HEAD + b"X-Endless: ", b"x"),
    "body": (HEAD + b"Content-Length: %d\r\n\r\n" % SIZE, b"x"),
    "chunk": (CHUNKED + b"1;", b"x"),
    "trailer": (CHUNKED + b"0\r\n", b"X-Filler: x\r\n"),
}


@contextlib.contextmanager
def dripping(first: bytes, again: bytes) -> Iterator[tuple[str, list[int]]]:
    """A server that never ends an answer; yields its address, and a list that grows by each connection."""
    over, taken, threads = threading.Event(), list[int](), list[threading.Thread]()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.recv(4096)
            client.sendall(first)
            for number in range(1 << 30):
                if over.wait(0.01):
                    return
                client.sendall(again[number % len(again) :][:1])

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                taken.append(len(taken))
                threads.append(threading.Thread(target=serve, args=(client,)))
                threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", taken
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for thread in threads:
            thread.join()


@contextlib.contextmanager
def download(host: str, place: Path, stop: threading.Event, **config: Any) -> Iterator[Callable[[], None]]:
    """A function that fetches a layer of 1 TiB from a server, as a pull's thread does."""
    client = RegistryClient(RegistryConfig(**{**CONFIG, **config}))
    with place.open("w+b") as file:
        try:
            blob = PartialBlob(file.fileno(), Descriptor("sha256:" + "0" * 64, SIZE, OCI_LAYER_GZIP), lambda _: None)
            repository = Repository(client, parse_reference(f"{host}/drip"), None, stop)
            yield lambda: repository.download(blob)
        finally:
            client.close()


@pytest.mark.parametrize("part", DRIPS)
def test_t53_a_registry_that_drips_is_given_up(tmp_path: Path, part: str) -> None:
    """A byte now and then keeps the thread of a pull for ever; with all of them taken the node pulls nothing more.

    Defence: a watch cuts what brings too little, wherever it drips.
    """
    with dripping(*DRIPS[part]) as (host, taken), download(host, tmp_path / "blob", threading.Event()) as fetch:
        with pytest.raises(RegistryUnavailable, match="less than 10000 bytes in 1 s"):
            fetch()
        assert len(taken) == 4, "it was tried again as often as for other reasons"


@pytest.mark.parametrize("part", DRIPS)
def test_t53_the_thread_of_a_pull_that_was_given_up_ends(tmp_path: Path, part: str) -> None:
    """The same when the kubelet gives the pull up: its thread must not wait on."""
    stop = threading.Event()
    ended: list[BaseException] = []

    def run(fetch: Callable[[], None]) -> None:
        try:
            fetch()
        except Unavailable as error:
            ended.append(error)

    with (
        dripping(*DRIPS[part]) as (host, taken),
        download(host, tmp_path / "blob", stop, window_s=3600.0) as fetch,
    ):
        thread = threading.Thread(target=run, args=(fetch,))
        thread.start()
        while not taken:
            assert thread.is_alive()
        stop.set()
        thread.join(10)
        assert not thread.is_alive() and "was stopped" in str(ended)


def test_t53_a_byte_for_each_connection_is_no_progress(tmp_path: Path) -> None:
    """The same by answers that end: each brings a byte and is cut, and each was a progress that begins anew."""
    head = HEAD + b"Content-Length: %d\r\n\r\nx" % SIZE
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client:
                        asked.append(client.recv(4096))
                        begin = len(asked) - 1
                        part = b"Content-Range: bytes %d-%d/%d\r\n" % (begin, SIZE - 1, SIZE)
                        client.sendall(head if not begin else head.replace(b"200 OK\r\n", b"206 OK\r\n" + part))

        thread = threading.Thread(target=serve)
        thread.start()
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        try:
            with (
                download(host, tmp_path / "blob", threading.Event()) as fetch,
                pytest.raises(RegistryUnavailable, match="connection"),
            ):
                fetch()
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert len(asked) == 4
    assert [b"bytes=%d-" % number in request for number, request in enumerate(asked)] == [False, True, True, True]
