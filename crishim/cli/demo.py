"""`crishim demo`: a server of its own and one pod on it, through the CRI socket, each step with its time.

It needs nothing but programs of this machine: the image is made from them, and the network is the embedded bridge.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from crishim.app.client import Client, messages
from crishim.app.demo import IMAGE, build_image
from crishim.app.serve import with_root
from crishim.cli.output import print_json
from crishim.errors import CrishimError, Unavailable

T = TypeVar("T")

_START_S = 60.0
#: a monitor that outlives the server may keep the pipe open
_LAST_WORDS_S = 2.0
_COUNTER = re.compile(r"^(crishim_\S+?_(?:total|count)(?:\{[^}]*\})?) ([0-9.e+]+)$", re.MULTILINE)
_SCRIPT = """
echo "hello from $(hostname), process $$ as $(id -u)"
echo "this is stderr" >&2
trap "exit 0" TERM
sleep 1000 &
wait
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where it happens and when it ends."""
    parser.add_argument("--once", action="store_true", help="end after the pod; the exit status is its result")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="root and state of the server (a temporary directory)")
    parser.add_argument("--json", action="store_true", help="print the steps as JSON at the end")


def run(arguments: argparse.Namespace) -> int:
    """0 when every step did what it should."""
    with_root()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the server has to be ended too
    directory = arguments.dir or Path(tempfile.mkdtemp(prefix="crishim-demo-"))
    try:
        demo = Demo(directory, quiet=arguments.json)
        try:
            demo.start_server()
            demo.run_pod()
            if arguments.json:
                print_json(demo.steps)
            if not arguments.once:
                demo.serve()
        finally:
            demo.stop_server()
    finally:
        if arguments.dir is None:
            shutil.rmtree(directory, ignore_errors=True)
    return 0


class Demo:
    """A server in `directory` and what is done with it."""

    def __init__(self, directory: Path, *, quiet: bool) -> None:
        self._directory = directory
        self._quiet = quiet
        self._server: subprocess.Popen[bytes] | None = None
        self._client: Client | None = None
        self._metrics = ""
        #: set when `_metrics` is known, or the server has ended
        self._ready = threading.Event()
        self._reader: threading.Thread | None = None
        self._counters: dict[str, float] = {}
        self.steps: list[dict[str, Any]] = []

    # -- the server

    def start_server(self) -> None:
        """Start `crishim serve` and wait until it is ready; Unavailable when it is not."""
        state = self._directory / "state"
        address = f"unix://{state}/crishim.sock"
        command = [sys.executable, "-m", "crishim", "serve", "--listen", address, "--network", "bridge"]
        command += ["--root", str(self._directory / "root"), "--state", str(state), "--metrics", "127.0.0.1:0"]
        command += ["--config", str(self._configuration()), "--log-level", "warning"]
        began = time.monotonic()
        self._server = subprocess.Popen(command, stderr=subprocess.PIPE)
        assert self._server.stderr is not None
        self._reader = threading.Thread(target=self._read_errors, args=(self._server.stderr,), daemon=True)
        self._reader.start()
        if not self._ready.wait(_START_S):
            raise Unavailable(f"the server was not ready within {_START_S:g} s")
        if not self._metrics:
            raise Unavailable("the server did not start; the lines above say why")
        self._client = Client(address)
        self._note("server is ready", time.monotonic() - began, address)
        if not self._quiet:
            print(f"  metrics: {self._metrics}")

    def _read_errors(self, lines: Iterable[bytes]) -> None:
        """The server says "ready" and then where its metrics are; everything else goes to our own standard error.

        To the end, in a thread: a server whose pipe is full would stand still.
        """
        for line in lines:
            text = line.decode("utf-8", "replace").rstrip()
            if not self._metrics and (match := re.search(r"metrics on (http://\S+)", text)):
                self._metrics = match[1]
                self._ready.set()
            elif self._metrics or "is ready" not in text:
                print(text, file=sys.stderr, flush=True)
        self._ready.set()  # its end is an answer too

    def stop_server(self) -> None:
        """SIGTERM, then wait."""
        if self._client is not None:
            self._client.close()
        if self._server is None:
            return
        self._server.send_signal(signal.SIGTERM)
        try:
            self._server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        if self._reader is not None:
            self._reader.join(_LAST_WORDS_S)

    def serve(self) -> None:
        """Until Ctrl-C, or until the server ends."""
        assert self._server is not None
        state = self._directory / "state"
        print(
            f"serving on unix://{state}/crishim.sock until Ctrl-C; try: crishim ps --address unix://{state}/crishim.sock"
        )
        try:
            self._server.wait()
        except KeyboardInterrupt:
            print()

    def _configuration(self) -> Path:
        """The machine's configuration is not this server's, and its pods need a subnet that nobody else has."""
        path = self._directory / "config.toml"
        subnet = f"10.{random.randrange(224, 255)}.{random.randrange(256)}.0/24"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            path.write_text(f'[network.bridge]\nsubnets = ["{subnet}"]\n')
        except OSError as error:
            reason = (error.strerror or "").lower()
            raise Unavailable(f"--dir: {self._directory} cannot be used: {reason}") from error
        return path

    # -- the pod

    def run_pod(self) -> None:
        """Sandbox, container, exec, log, stop, remove; CrishimError when one of them is not as it should be."""
        client = self._client
        assert client is not None
        archive = self._directory / "demo.tar"
        self._step("image made", lambda: build_image(archive))
        self._step("image loaded", lambda: client.load(str(archive)).images[0].id)
        logs = self._directory / "logs"
        (logs / "hello").mkdir(parents=True, exist_ok=True)
        pod = messages.PodSandboxConfig(
            metadata=messages.PodSandboxMetadata(name="hello", namespace="demo", uid="demo-1"),
            hostname="hello",
            log_directory=str(logs),
            linux=messages.LinuxPodSandboxConfig(
                security_context=messages.LinuxSandboxSecurityContext(
                    namespace_options=messages.NamespaceOption(pid=messages.CONTAINER)
                )
            ),
        )
        sandbox = self._step(
            "sandbox runs",
            lambda: client.runtime("RunPodSandbox", messages.RunPodSandboxRequest(config=pod)).pod_sandbox_id,
        )
        try:
            self._run_container(client, pod, sandbox, logs)
        finally:
            self._step(
                "sandbox stopped",
                lambda: client.runtime("StopPodSandbox", messages.StopPodSandboxRequest(pod_sandbox_id=sandbox)),
                show=False,
            )
            self._step(
                "sandbox removed",
                lambda: client.runtime("RemovePodSandbox", messages.RemovePodSandboxRequest(pod_sandbox_id=sandbox)),
                show=False,
            )

    def _run_container(self, client: Client, pod: Any, sandbox: str, logs: Path) -> None:
        status = client.runtime("PodSandboxStatus", messages.PodSandboxStatusRequest(pod_sandbox_id=sandbox)).status
        config = messages.ContainerConfig(
            metadata=messages.ContainerMetadata(name="hello"),
            image=messages.ImageSpec(image=IMAGE),
            command=["sh", "-c", _SCRIPT],
            log_path="hello/0.log",
            linux=messages.LinuxContainerConfig(
                resources=messages.LinuxContainerResources(memory_limit_in_bytes=64 << 20, cpu_shares=512),
                security_context=messages.LinuxContainerSecurityContext(
                    namespace_options=messages.NamespaceOption(pid=messages.CONTAINER),
                    seccomp=messages.SecurityProfile(profile_type=messages.SecurityProfile.RuntimeDefault),
                ),
            ),
        )
        create = messages.CreateContainerRequest(pod_sandbox_id=sandbox, config=config, sandbox_config=pod)
        container = self._step("container created", lambda: client.runtime("CreateContainer", create).container_id)
        start = messages.StartContainerRequest(container_id=container)
        self._step("container started", lambda: client.runtime("StartContainer", start), show=False)
        command = ["sh", "-c", "id; cat /etc/resolv.conf | head -1; grep Seccomp: /proc/self/status"]
        answer = self._step(
            "exec",
            lambda: client.runtime(
                "ExecSync", messages.ExecSyncRequest(container_id=container, cmd=command, timeout=10)
            ),
            show=False,
        )
        self._quote(f"pod has IP {status.network.ip}\n" + answer.stdout.decode("utf-8", "replace"))
        if answer.exit_code or b"uid=0" not in answer.stdout or b"Seccomp:\t2" not in answer.stdout:
            raise CrishimError(f"the exec ended with {answer.exit_code} and {answer.stdout!r} {answer.stderr!r}")
        self._quote(self._read_log(logs / "hello/0.log"))
        stop = messages.StopContainerRequest(container_id=container, timeout=10)
        self._step("container stopped", lambda: client.runtime("StopContainer", stop), show=False)
        ended = client.runtime("ContainerStatus", messages.ContainerStatusRequest(container_id=container)).status
        self._quote(f"{ended.reason}, exit code {ended.exit_code}")
        if ended.exit_code or ended.reason != "Completed":
            raise CrishimError(f"the container ended with {ended.exit_code} and reason {ended.reason!r}")
        remove = messages.RemoveContainerRequest(container_id=container)
        self._step("container removed", lambda: client.runtime("RemoveContainer", remove), show=False)

    def _read_log(self, path: Path) -> str:
        """Until both lines are there: the log is written while the program runs."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            text = path.read_text() if path.exists() else ""
            if " stdout F hello from hello" in text and " stderr F this is stderr" in text:
                return text
            time.sleep(0.01)
        raise CrishimError(f"the log {path} does not hold what the container said")

    # -- what is shown

    def _step(self, name: str, work: Callable[[], T], *, show: bool = True) -> T:
        began = time.monotonic()
        result = work()
        self._note(name, time.monotonic() - began, str(result) if show else "")
        return result

    def _note(self, name: str, seconds: float, result: str) -> None:
        changes = self._changes()
        self.steps.append({"step": name, "seconds": round(seconds, 6), "result": result, "metrics": changes})
        if self._quiet:
            return
        print(f"{seconds * 1000:9.1f} ms  {name:<20}{result[:64]}")
        for series, change in changes.items():
            print(f"{'':14}{series} +{change:g}")
        sys.stdout.flush()

    def _changes(self) -> dict[str, float]:
        """Counters that rose since the last step; those of the calls themselves say nothing new."""
        with urllib.request.urlopen(self._metrics, timeout=10) as page:
            found = {name: float(value) for name, value in _COUNTER.findall(page.read().decode())}
        changes = {
            name: value - self._counters.get(name, 0.0)
            for name, value in found.items()
            if value != self._counters.get(name, 0.0) and "rpc_seconds" not in name
        }
        self._counters = found
        return changes

    def _quote(self, text: str) -> None:
        if not self._quiet:
            for line in text.splitlines():
                print(f"{'':11}| {line}")
