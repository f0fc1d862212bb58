"""A small HTTP server in front of a registry (or alone), whose answers a test decides request by request."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass
class Answer:
    """What to send. cut_after: bytes of the body after which the connection is closed."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    #: what the server waits for, at most 10 seconds, before it closes a connection that is cut
    hold: threading.Event | None = None


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Front:
    """The server; `requests` are those it got, in order."""

    host: str = ""
    requests: list[Request] = field(default_factory=list)

    def seen(self, part: str) -> list[Request]:
        """Requests whose path holds `part`."""
        return [request for request in self.requests if part in request.path]


@contextlib.contextmanager
def running_front(answer: Callable[[Request], Answer]) -> Iterator[Front]:
    """Serve on a loopback port until the block ends."""
    front = Front()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            request = Request(self.command, self.path, dict(self.headers), self.rfile.read(length))
            front.requests.append(request)
            reply = answer(request)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body[: reply.cut_after])
            if reply.hold is not None:
                reply.hold.wait(10)
            self.close_connection = reply.cut_after is not None

        do_POST = do_GET

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        # the default handler prints the traceback of a client that went away
        def handle_error(self, request: object, address: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    front.host = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield front
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
