"""The doors of a server besides CRI's socket: the page of metrics, and the port of exec, attach and port-forward."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

from crishim.config import Address, StreamingConfig
from crishim.errors import Unavailable
from crishim.metrics.server import MetricsServer
from crishim.streaming.server import StreamingServer
from crishim.streaming.use_cases import UseCases


async def open_metrics(
    address: Address, render: Callable[[], bytes], problem: Callable[[], str | None]
) -> MetricsServer:
    """A page server that listens; `render` and `problem` are those of MetricsServer. Unavailable names the address."""
    server = MetricsServer(render, problem)
    try:
        await server.start(address.host, address.port)
    except OSError as error:
        raise Unavailable(f"server.metrics: cannot listen on {address.host}:{address.port}: {error}") from error
    return server


async def open_streaming(streaming: StreamingConfig, sessions: UseCases, spool_dir: Path) -> StreamingServer | None:
    """A streaming server that listens, or None when none is configured.

    spool_dir: where what a slow client has not taken is kept. Unavailable names the address or the files at fault.
    """
    if streaming.listen is None:
        return None
    server = StreamingServer(sessions, tls=_tls(streaming), spool_dir=spool_dir)
    host, port = streaming.listen.host, streaming.listen.port
    try:
        await server.start(host, port)
    except OSError as error:
        raise Unavailable(f"streaming.listen: cannot listen on {host}:{port}: {error}") from error
    return server


def _tls(streaming: StreamingConfig) -> ssl.SSLContext | None:
    if streaming.cert_file is None or streaming.key_file is None:
        return None
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        tls.load_cert_chain(streaming.cert_file, streaming.key_file)
    except OSError as error:  # ssl.SSLError is one
        raise Unavailable(f"streaming: {streaming.cert_file} and {streaming.key_file}: {error}") from error
    return tls
