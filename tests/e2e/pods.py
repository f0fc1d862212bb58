"""Pods of the test image, as manifests, and what to say to the servers in them."""

from __future__ import annotations

import re
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.e2e.runtimes import IMAGE

Pod = dict[str, Any]

#: a script that serves /www by HTTP on 80, sums what it gets on 7000 and sends back what it gets on 7001
SERVER = """
mkdir /www && echo hello from web > /www/index.html
httpd -p 80 -h /www
nc -ll -p 7000 -e sha256sum &
nc -ll -p 7001 -e cat &
echo serving; echo warning >&2
wait
"""


def container(name: str, script: str, **fields: Any) -> dict[str, Any]:
    """A container of the test image that runs a shell script; `fields` are of the API's Container."""
    command = ["/bin/sh", "-c", script]
    return {"name": name, "image": IMAGE, "imagePullPolicy": "Never", "command": command} | fields


def pod(name: str, *containers: dict[str, Any], **spec: Any) -> Pod:
    """A pod that ends within a second when it is told to; `spec` are further fields of the API's PodSpec."""
    base = {"containers": list(containers), "terminationGracePeriodSeconds": 1}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": base | spec}


def forwarded(process: subprocess.Popen[bytes], count: int) -> dict[int, int]:
    """Local ports, by port of the pod, once the client has said that many."""
    ports: dict[int, int] = {}
    said = ""
    assert process.stdout is not None
    while len(ports) < count:
        line = process.stdout.readline().decode()
        said += line
        assert line, f"port-forward ended and said {said!r}"
        if found := re.match(r"Forwarding from 127\.0\.0\.1:(\d+) -> (\d+)", line):
            ports[int(found[2])] = int(found[1])
    return ports


def exchange(sock: socket.socket, data: bytes) -> bytes:
    """Sends all of it and its end, and returns all that comes back."""
    with sock, ThreadPoolExecutor(1) as thread:

        def send() -> None:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

        sending = thread.submit(send)
        received = b"".join(iter(lambda: sock.recv(1 << 18), b""))
        sending.result()
        return received
