"""Random and mutated requests of every method, those of our own Control service included.

Each gets a documented code in time, and nothing is broken, nothing has grown, nothing is left.
`CRISHIM_FUZZ_EXAMPLES` is the number of requests of a method; the seed is printed and `CRISHIM_FUZZ_SEED` repeats it.
"""

from __future__ import annotations

import os
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.message import Message
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded

from crishim.cri.client import messages as m
from crishim.cri.pb import api_pb2, control_pb2
from tests.support import garbage
from tests.support.faults import resident_bytes, server_with_image
from tests.support.requests import Ground, raw_requests
from tests.support.server import NEEDS_SERVER, Server, container_config, load_demo_image, pod_config

pytestmark = pytest.mark.skipif(not NEEDS_SERVER, reason="a server needs root, nsenter and ip")

EXAMPLES = int(os.environ.get("CRISHIM_FUZZ_EXAMPLES", "15"))
SEED = int(os.environ.get("CRISHIM_FUZZ_SEED", str(int(time.time()))))
DEADLINE_S = 10.0
GROWTH_BYTES = 24 << 20
SERVICES = [each for file in (api_pb2, control_pb2) for each in file.DESCRIPTOR.services_by_name.values()]
METHODS = {method.name: (service.full_name, method) for service in SERVICES for method in service.methods}
#: those that make something, which is started and removed again
MAKERS = ("RunPodSandbox", "CreateContainer")
#: a fault of the program, of its image or of a registry, whose text the kubelet shows: see `crishim/cri/status.py`
UNKNOWN_IS_DOCUMENTED = {"StartContainer", "ExecSync", "PullImage"}
DOCUMENTED = {
    grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED,
}  # fmt: skip
#: ends at once when it is told to, by whatever signal
PROGRAM = ("sh", "-c", "trap 'exit 0' TERM INT HUP USR1 USR2 QUIT; echo here; while :; do sleep 1 & wait; done")


class Target:
    """A server with a valid pod, and a channel that takes bytes."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.sandbox, self.pod = server.run_pod("valid")
        self.container = server.started(self.sandbox, self.pod, *PROGRAM, name="valid")
        self.codes: Counter[str] = Counter()
        self.ground = self._ground()
        self._channel = grpc.insecure_channel(server.address)

    def _ground(self) -> Ground:
        base = self.server.directory / "places"
        if not base.exists():
            (base / "directory").mkdir(parents=True)
            (base / "file").write_text("text")
            os.symlink("/nowhere", base / "link")
            os.mkfifo(base / "pipe")
        hostile = ("", "relative", "a\0b", "\n", f"{base}/{'x' * 5000}")
        paths = (f"{base}/directory", f"{base}/file", f"{base}/link", f"{base}/new", f"{base}/directory/../file")
        logs = f"{self.server.logs}/valid"
        cgroup = f"/crishim-{self.server.instance}.slice/foreign"
        pod = pod_config("fuzz", self.server.logs)
        pod.port_mappings.add(protocol=m.TCP, container_port=80, host_port=8080)
        pod.dns_config.servers.append("10.0.0.1")
        mount = m.Mount(container_path="/data", host_path=f"{base}/directory")
        device = m.Device(container_path="/dev/thing", host_path="/dev/null", permissions="rw")
        config = container_config(*PROGRAM, name="fuzz", mounts=[mount], devices=[device])
        config.linux.resources.memory_limit_in_bytes = 64 << 20
        update = m.UpdateContainerResourcesRequest(container_id=self.container, linux=config.linux.resources)
        create = m.CreateContainerRequest(pod_sandbox_id=self.sandbox, config=config, sandbox_config=self.pod)
        container, sandbox = {"container_id": self.container}, {"pod_sandbox_id": self.sandbox}
        bases: tuple[Message, ...] = (
            m.RunPodSandboxRequest(config=pod),
            create,
            update,
            m.ExecSyncRequest(cmd=["echo", "x"], timeout=1, **container),
            m.ExecRequest(cmd=["true"], stdout=True, **container),
            m.AttachRequest(stdout=True, **container),
            m.PortForwardRequest(port=[80], **sandbox),
            m.PullImageRequest(image=m.ImageSpec(image="127.0.0.1:1/a:b"), auth=m.AuthConfig(username="a")),
            m.ImageStatusRequest(image=m.ImageSpec(image="crishim.local/demo:latest")),
            m.UpdatePodSandboxResourcesRequest(overhead=config.linux.resources, **sandbox),
            control_pb2.LoadRequest(path=f"{self.server.directory}/demo.tar"),
            control_pb2.WhyRequest(id="tests/valid"),
        )
        return Ground(
            sandboxes=(self.sandbox, self.sandbox[:13]),
            containers=(self.container, self.container[:13]),
            bases={base.DESCRIPTOR.name: base for base in bases},
            places={
                "host_path": (*paths, "/dev/null", "/dev/tty", *hostile),
                "log_directory": (logs, "", f"{base}/logs", f"{base}/file", "a\0b"),
                "log_path": ("fuzz/0.log", "", "../x", "/x", "a/../../x", "a\0b", "x" * 300, "a/" * 100 + "b"),
                "localhost_ref": ("", f"{base}/file", f"{base}/directory", "/dev/zero", "a\0b"),
                "cgroup_parent": ("", f"{cgroup}/a", f"{cgroup}/../../x", "..", "a\0b", "x" * 300, "/" + "x" * 300),
                "image": ("crishim.local/demo:latest", "127.0.0.1:1/a:b", "", "a b", "x" * 70000, "a@b@c", "sha256:0"),
                "location": (f"{base}/checkpoint", ""),
                "path": (
                    f"{self.server.directory}/demo.tar",
                    f"{base}/pipe",
                    "/dev/zero",
                    "/proc/self/mem",
                    *paths,
                    *hostile,
                ),
            },
            commands=(("true",), (), ("",), ("/nowhere",), ("/",), ("echo", "a\0b"), ("echo", "x" * 70000)),
        )

    def call(self, method: str, request: bytes) -> Any:
        """The answer to bytes, or None after an error; AssertionError for a code that is not documented, or a hang."""
        service, descriptor = METHODS[method]
        path = f"/{service}/{method}"
        began = time.monotonic()
        code, text, answer = grpc.StatusCode.OK, "", None
        try:
            if descriptor.server_streaming:
                self._stream(path, request, endless=method == "GetContainerEvents")
            else:
                data = self._channel.unary_unary(path)(request, timeout=DEADLINE_S)
                answer = message_factory.GetMessageClass(descriptor.output_type).FromString(data)
        except grpc.RpcError as error:
            code, text = error.code(), str(error.details())
        self.codes[f"{method} {code.name}"] += 1
        (self.server.directory / f"last-{method}").write_bytes(request)
        assert time.monotonic() - began < DEADLINE_S, f"{method} hangs"
        assert code in DOCUMENTED or (
            code is grpc.StatusCode.UNKNOWN and method in UNKNOWN_IS_DOCUMENTED and not text.startswith("Unexpected")
        ), f"{method}: {code}: {text}"
        assert code is grpc.StatusCode.OK or text, f"{method}: {code} without a sentence"
        return answer

    def _stream(self, path: str, request: bytes, *, endless: bool) -> None:
        call = self._channel.unary_stream(path)(request, timeout=DEADLINE_S)
        if endless:
            call.initial_metadata()
            call.cancel()
            return
        for _ in call:
            pass

    def use(self, method: str, answer: Any) -> None:
        """Start what was made, run something in it, and remove it."""
        if method == "RunPodSandbox":
            config = container_config(*PROGRAM, name="inner")
            request = m.CreateContainerRequest(
                pod_sandbox_id=answer.pod_sandbox_id, config=config, sandbox_config=self.pod
            )
            self._start(self.call("CreateContainer", request.SerializeToString()))
            gone = m.RemovePodSandboxRequest(pod_sandbox_id=answer.pod_sandbox_id)
            assert self.call("RemovePodSandbox", gone.SerializeToString()) is not None, "a pod that stays"
        else:
            self._start(answer)

    def _start(self, created: Any) -> None:
        if created is None:
            return
        start = m.StartContainerRequest(container_id=created.container_id)
        if self.call("StartContainer", start.SerializeToString()) is not None:
            exec_ = m.ExecSyncRequest(container_id=created.container_id, cmd=["true"], timeout=5)
            self.call("ExecSync", exec_.SerializeToString())
        gone = m.RemoveContainerRequest(container_id=created.container_id)
        assert self.call("RemoveContainer", gone.SerializeToString()) is not None, "a container that stays"

    def revive(self) -> None:
        """A stop or a removal that was drawn may have hit the valid pod, or its image."""
        load_demo_image(self.server, self.server.directory / "demo.tar")
        listed = self.server.client.runtime("ListContainers", m.ListContainersRequest()).containers
        if {each.id: each.state for each in listed}.get(self.container) == m.CONTAINER_RUNNING:
            return
        self.server.remove_pod(self.sandbox)
        self.sandbox, self.pod = self.server.run_pod("valid")
        self.container = self.server.started(self.sandbox, self.pod, *PROGRAM, name="valid")
        self.ground = self._ground()

    def check(self) -> None:
        """No bug has shown itself, and the valid pod works."""
        log = self.server.errors.read_text(errors="replace")
        assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]
        assert self.server.sh(self.container, "echo works") == "works\n"
        assert self.server.process is not None and self.server.process.poll() is None

    def close(self) -> None:
        self._channel.close()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    host = socket.gethostname(), Path("/proc/sys/kernel/core_pattern").read_text()
    with server_with_image(tmp_path_factory.mktemp("hostile") / "node") as server:
        target = Target(server)
        yield target
        target.close()
    assert (socket.gethostname(), Path("/proc/sys/kernel/core_pattern").read_text()) == host
    print(f"CRISHIM_FUZZ_SEED={SEED}", dict(sorted(target.codes.items())))


def _examples(method: str) -> int:
    _, descriptor = METHODS[method]
    return EXAMPLES * (4 if method in MAKERS else 1) if descriptor.input_type.fields else 3


@pytest.mark.filterwarnings("ignore:Generating overly large repr")  # of a request that failed: it is in a file too
@pytest.mark.parametrize("method", sorted(METHODS))
def test_any_request_gets_a_documented_answer(method: str, target: Target) -> None:
    print(f"CRISHIM_FUZZ_SEED={SEED}")
    target.revive()
    kind = message_factory.GetMessageClass(METHODS[method][1].input_type)

    @seeded(SEED)
    @settings(
        max_examples=_examples(method),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(raw_requests(kind, target.ground))
    def ask(request: bytes) -> None:
        answer = target.call(method, request)
        if answer is not None and method in MAKERS:
            target.use(method, answer)

    ask()
    target.revive()
    target.check()


def test_no_archive_breaks_load(target: Target) -> None:
    print(f"CRISHIM_FUZZ_SEED={SEED}")
    draws = random.Random(SEED)
    archive = target.server.directory / "archive.tar"
    request = control_pb2.LoadRequest(path=str(archive)).SerializeToString()
    for _ in range(4 * EXAMPLES):
        garbage.archive(draws, archive)
        target.call("Load", request)
        if draws.random() < 0.2:
            damaged = bytearray(archive.read_bytes())
            for _ in range(draws.randrange(1, 9)):
                damaged[draws.randrange(len(damaged))] = draws.randrange(256)
            archive.write_bytes(damaged[: draws.randrange(1, len(damaged) + 1)])
            target.call("Load", request)
    assert target.codes["Load OK"], "every archive was refused: the changes are too wild to test anything"
    target.revive()
    target.check()
    assert not list((target.server.root / "images" / "spool").iterdir())


def test_bytes_that_are_no_http2_end_their_connection_and_nothing_else(target: Target) -> None:
    print(f"CRISHIM_FUZZ_SEED={SEED}")
    draws = random.Random(SEED)
    for _ in range(EXAMPLES):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(target.server.address.removeprefix("unix://"))
            sock.settimeout(DEADLINE_S)
            with suppress(OSError):  # it may hang up first
                sock.sendall(garbage.http2(draws))
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(1 << 16):
                    pass
    target.revive()
    target.check()


def test_no_request_to_the_streaming_server_breaks_it(target: Target) -> None:
    print(f"CRISHIM_FUZZ_SEED={SEED}")
    target.revive()
    exec_ = m.ExecRequest(container_id=target.container, cmd=["true"], stdout=True)
    for number in range(4):
        url = target.server.client.runtime("Exec", exec_).url
        command = [sys.executable, "-m", "tests.support.garbage", url, f"{SEED}/{number}", str(4 * EXAMPLES)]
        answers = set(target.server.in_netns(*command).split())
        # 101 is an upgrade, which the url is good for once
        assert answers <= {"101", "400", "403", "404", "405", "414", "426", "431", "nothing"}, answers
    target.check()


def test_the_server_does_not_grow(target: Target) -> None:
    assert target.server.process is not None
    request = m.CreateContainerRequest(pod_sandbox_id=target.sandbox)
    request.config.annotations["big"] = "x" * (1 << 20)

    def load(times: int) -> int:
        for _ in range(times):
            for method in METHODS:
                if method not in MAKERS and not METHODS[method][1].server_streaming:
                    target.call(method, b"\x0a\x03abc")
            target.call("CreateContainer", request.SerializeToString())
        assert target.server.process is not None
        return resident_bytes(target.server.process.pid)

    before = load(EXAMPLES)
    after = load(4 * EXAMPLES)
    assert after - before < GROWTH_BYTES, f"{before >> 20} MiB became {after >> 20} MiB"
