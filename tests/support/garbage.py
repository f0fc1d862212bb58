"""Bytes that are almost HTTP: frames for a gRPC socket, requests for the streaming server. Drawn from a seed.

`python -m tests.support.garbage URL SEED COUNT` sends requests like that of URL and prints the codes of the answers.
"""

from __future__ import annotations

import random
import socket
import struct
import sys
from urllib.parse import urlsplit

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
