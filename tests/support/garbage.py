"""Bytes that are almost HTTP: frames for a gRPC socket, requests for the streaming server. Drawn from a seed.

`python -m tests.support.garbage URL SEED COUNT` sends requests like that of URL and prints the codes of the answers.
"""

from __future__ import annotations

import io
import random
import socket
import struct
import sys
import tarfile
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.image_archive import write_layers

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DEADLINE_S = 10.0
_METHODS = ("GET", "POST", "PUT", "CONNECT", "get", "", "X" * 9000)
_HEADERS = (
    "Connection: Upgrade", "Connection: keep-alive", "Upgrade: SPDY/3.1", "Upgrade: websocket", "Upgrade: h2c",
    "X-Stream-Protocol-Version: v4.channel.k8s.io", "X-Stream-Protocol-Version: \x00", "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Version: 99", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Key: short",
    "Sec-WebSocket-Protocol: v5.channel.k8s.io", "Sec-WebSocket-Protocol: ", "Content-Length: 99999999999999999999",
    "Content-Length: -1", "Transfer-Encoding: chunked", "Expect: 100-continue", "Origin: http://elsewhere.example",
    "no colon", ": no name", "Long: " + "x" * 70000, "Host: \xff",
)  # fmt: skip
#: what stands where a document says something else
_JSON = (
    None, True, -1, 0, 1 << 70, 1.5, "", "x", "x" * 70000, "a\0b", "../../x", "/", "sha256:", "sha256:" + "0" * 64,
    "md5:" + "0" * 32, "sha512:00", "linux", [], {}, [[]], [None], {"": ""}, {"digest": 1}, "\ud800", [1] * 5000,
)  # fmt: skip


def http2(draws: random.Random) -> bytes:
    """The beginning of a connection that goes wrong sooner or later."""
    if draws.random() < 0.2:
        return draws.randbytes(draws.randrange(200))
    frames = [_PREFACE, _frame(4, 0, 0, b"")]
    for _ in range(draws.randrange(1, 8)):
        kind, flags, stream = draws.randrange(12), draws.randrange(256), draws.choice((0, 1, 1, 2, 0x7FFFFFFF))
        payload = draws.randbytes(draws.choice((0, 4, 5, 8, 40, 2000)))
        frames.append(_frame(kind, flags, stream, payload, draws.choice((0, 0, 0, 1, -1, 1 << 20))))
    return b"".join(frames)


def _frame(kind: int, flags: int, stream: int, payload: bytes, lie: int = 0) -> bytes:
    """A frame whose header says `lie` bytes more than there are (RFC 9113, 4.1)."""
    length = max(0, len(payload) + lie) & 0xFFFFFF
    return struct.pack(">BHBBI", length >> 16, length & 0xFFFF, kind, flags, stream) + payload


def archive(draws: random.Random, path: Path) -> None:
    """Write the archive of a small image, in whose documents some values are others."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as members:
        members.addfile(tarfile.TarInfo("file"))
    write_layers(
        path,
        draws.choice(("a/b:c", "crishim.local/x:y", "UPPER:x", ":", "a@b", "127.0.0.1:1/a:b", "x" * 300)),
        [layer.getvalue()] * draws.choice((1, 1, 2, 130)),
        {"Env": ["A=b"], "User": "1", "Volumes": {"/v": {}}, "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGTERM"},
        lambda document: _changed(draws, document) if draws.random() < 0.3 else document,
    )


def _changed(draws: random.Random, value: object) -> object:
    """The same document with one value, somewhere in it, replaced, left out or doubled."""
    if not value or not isinstance(value, (dict, list)) or draws.random() < 0.1:
        return draws.choice(_JSON)
    copy = value.copy()
    keys = list(copy) if isinstance(copy, dict) else list(range(len(copy)))
    key = draws.choice(keys)
    way = draws.randrange(8)
    if way == 0:
        del copy[key]
    elif way == 1 and isinstance(copy, list):
        copy *= draws.choice((2, 200))
    else:
        copy[key] = _changed(draws, copy[key])
    return copy


def _request(draws: random.Random, path: str) -> bytes:
    target = draws.choice((path, path + "x", path[:-1], path.upper(), "/", "", "//" + path, path + "?a=b", "*"))
    if draws.random() < 0.2:
        target = "/" + "".join(chr(draws.randrange(256)) for _ in range(draws.choice((3, 30, 20000))))
    lines = [f"{draws.choice(_METHODS)} {target} HTTP/{draws.choice(('1.1', '1.1', '1.0', '2.0', ''))}"]
    lines += draws.sample(_HEADERS, draws.randrange(8))
    lines += ["Host: localhost"] * draws.choice((1, 1, 0, 2, 200))
    data = "\r\n".join([*lines, "", ""]).encode("latin-1") + draws.randbytes(draws.choice((0, 0, 100, 5000)))
    return data[: draws.randrange(len(data))] if draws.random() < 0.1 else data


def _answer(address: tuple[str, int], data: bytes) -> str:
    """The code that is answered to `data`, "nothing" when the connection just ends."""
    received = b""
    with socket.create_connection(address, _DEADLINE_S) as sock:
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while part := sock.recv(1 << 16):
                received += part
        except ConnectionError:
            pass  # it did not want to read all of it
    return received.split(b" ", 2)[1].decode() if received.startswith(b"HTTP/1.1 ") else "nothing"


def main() -> None:
    url, seed, count = sys.argv[1:]
    parts = urlsplit(url)
    draws = random.Random(seed)
    for _ in range(int(count)):
        print(_answer((parts.hostname or "", parts.port or 0), _request(draws, parts.path)))


if __name__ == "__main__":
    main()
