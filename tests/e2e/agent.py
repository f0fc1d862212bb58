"""Process 1 of a test node: lays out the node's namespaces, then starts, signals and reaps processes on request.

Runs alone, by `python agent.py SETTINGS`, inside new mount, net, pid, uts and ipc namespaces. Requests and answers
are one JSON object a line on stdin and stdout: start, signal, exit_of, alive, http. When it ends, the kernel ends
everything in the pid namespace with it, which is the whole clean-up.
"""

from __future__ import annotations

import json
import os
import select
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXITED: dict[int, int] = {}
"""Exit codes of the processes started here (128 + N when signal N ended one), by pid."""


def set_up(hostname: str, address: str, scratch: str) -> None:
    """Mounts and network of a node: own /proc, /sys and /run, shared propagation, an address that is not loopback.

    scratch: an empty directory; "" without one is the machine itself, which has its mounts and its name.
    """
    gateway = address.rpartition(".")[0] + ".1"
    # where the profiles of AppArmor are loaded; a machine without security modules has none
    security = "mount -t securityfs none /sys/kernel/security" if Path("/sys/kernel/security/lsm").exists() else ""
    mounts = f"""
        mount --make-rprivate /
        mount -t proc proc /proc
        mount --rbind /sys/fs/cgroup {scratch}
        mount -t sysfs sysfs /sys
        mount --move {scratch} /sys/fs/cgroup
        {security}
        mount --make-rshared /
        mount -t tmpfs -o mode=755,size=64m tmpfs /run
        hostname {hostname}
    """
    network = f"""
        ip link set lo up
        ip link add node0 type bridge
        ip address add {address}/24 dev node0
        ip link set node0 up
        ip route add default via {gateway} dev node0 onlink
    """
    commands = mounts + network if scratch else network
    for command in filter(None, map(str.strip, commands.splitlines())):
        subprocess.run(command.split(), check=True)
    for name in ("ip_forward", "conf/all/route_localnet"):
        Path("/proc/sys/net/ipv4", name).write_text("1")


def start(argv: list[str], log: str, env: dict[str, str], cgroups: list[str]) -> dict[str, Any]:
    """Starts a program with its output in a file, in the given cgroup directories; returns when it was executed."""
    executed, executing = os.pipe()  # close-on-exec: the end of this stream is the execve
    pid = os.fork()
    if pid == 0:
        try:
            for directory in cgroups:
                Path(directory, "cgroup.procs").write_text("0")
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.setsid()
            signal.set_wakeup_fd(-1)
            os.execvpe(argv[0], argv, os.environ | env)
        except BaseException as error:  # the child of a fork must not return into the loop
            os.write(2, f"{argv[0]}: {error}\n".encode())
            os._exit(127)
    os.close(executing)
    os.read(executed, 1)
    os.close(executed)
    return {"pid": pid}


def send_signal(pid: int, number: int) -> dict[str, Any]:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return {"sent": False}
    return {"sent": True}


def http(method: str, url: str, timeout_s: float) -> dict[str, Any]:
    """Status and body of a request from inside the node; status 0 and the reason when there was no answer."""
    trusting = ssl._create_unverified_context()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, method=method), timeout=timeout_s, context=trusting
        ) as reply:
            return {"status": reply.status, "body": reply.read().decode(errors="replace")}
    except urllib.error.HTTPError as error:
        return {"status": error.code, "body": error.read().decode(errors="replace")}
    except OSError as error:
        return {"status": 0, "body": str(error)}


REQUESTS: dict[str, Callable[..., dict[str, Any]]] = {
    "start": start,
    "signal": send_signal,
    "http": http,
    "exit_of": lambda pid: {"code": EXITED.get(pid)},
    "pids": lambda: {"pids": [int(name) for name in os.listdir("/proc") if name.isdigit()]},
}


def reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        code = os.waitstatus_to_exitcode(status)
        EXITED[pid] = code if code >= 0 else 128 - code


def serve() -> None:
    """Answers requests until stdin ends; reaps between them, since orphans of a killed server become ours."""
    wakeup, notify = os.pipe()
    os.set_blocking(wakeup, False)
    os.set_blocking(notify, False)
    signal.set_wakeup_fd(notify, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    pending = b""
    print("ready", flush=True)
    while True:
        readable, _, _ = select.select([0, wakeup], [], [])
        if wakeup in readable:
            os.read(wakeup, 4096)
        reap()
        if 0 not in readable:
            continue
        received = os.read(0, 65536)
        if not received:
            return
        pending += received
        while b"\n" in pending:
            line, pending = pending.split(b"\n", 1)
            request = json.loads(line)
            print(json.dumps(REQUESTS[request.pop("do")](**request)), flush=True)


if __name__ == "__main__":
    set_up(**json.loads(sys.argv[1]))
    serve()
