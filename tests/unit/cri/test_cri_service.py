"""The services over a real channel on a unix socket, with fakes behind them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest

from crishim import errors
from crishim.cri.convert import sandbox as sandboxes
from crishim.cri.interceptors import Guard
from crishim.cri.listing import Listing
from crishim.cri.pb import api_pb2 as pb
from crishim.cri.pb import api_pb2_grpc, control_pb2, control_pb2_grpc
from crishim.cri.runtime_service import services
from crishim.cri.server import MAX_MESSAGE_BYTES, Server
from crishim.model.image import Credentials
from tests.unit.cri.fakes import (
    IMAGE_ID,
    FakeContainers,
    FakeEvents,
    FakeExecs,
    FakeGarbage,
    FakeImages,
    FakeMonitors,
    FakeNode,
    FakeRuntime,
    FakeSandboxes,
    FakeStats,
    FakeStories,
    FakeStreaming,
    container,
    full_container_config,
    full_resources,
    full_sandbox_config,
    image,
    sandbox,
)


class Node:
    """A server with fakes behind it, and a client of each service."""

    def __init__(self, path: Path, *, streaming: bool = False) -> None:
        self.path = path
        self.runtime = FakeRuntime()
        self.listing = Listing()
        self.observed: list[tuple[str, str]] = []
        self.reason: str | None = None
        self.events = FakeEvents()
        guard = Guard(lambda method, code, seconds: self.observed.append((method, code)), lambda: self.reason)
        self.server = Server(
            path,
            services(
                sandboxes=FakeSandboxes(self.runtime),
                containers=FakeContainers(self.runtime),
                execs=FakeExecs(self.runtime),
                stats=FakeStats(),
                events=self.events,
                stories=FakeStories(),
                garbage=FakeGarbage(self.runtime),
                monitors=FakeMonitors(),
                images=FakeImages(self.runtime),
                node=FakeNode(self.runtime),
                listing=self.listing,
                guard=guard,
                version="0.1.0",
                streaming=FakeStreaming() if streaming else None,
            ),
        )

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Node]:
        await self.server.start()
        options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.default_authority", "localhost")]
        try:
            async with grpc.aio.insecure_channel(f"unix:{self.path}", options=options) as channel:
                self.cri: Any = api_pb2_grpc.RuntimeServiceStub(channel)  # type: ignore[no-untyped-call]
                self.images: Any = api_pb2_grpc.ImageServiceStub(channel)  # type: ignore[no-untyped-call]
                self.control: Any = control_pb2_grpc.ControlStub(channel)  # type: ignore[no-untyped-call]
                yield self
        finally:
            await self.server.stop(None)


Scene = Callable[[Node], Coroutine[Any, Any, None]]


def play(path: Path, scene: Scene, *, streaming: bool = False) -> None:
    """Runs `scene` against a server of its own."""

    async def run() -> None:
        async with Node(path, streaming=streaming).serving() as node:
            await scene(node)

    asyncio.run(asyncio.wait_for(run(), timeout=60))


async def failure(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "run" / "crishim.sock"


def test_version_has_its_four_fields(socket: Path) -> None:
    async def scene(node: Node) -> None:
        assert await node.cri.Version(pb.VersionRequest()) == pb.VersionResponse(
            version="0.1.0", runtime_name="crishim", runtime_version="0.1.0", runtime_api_version="v1"
        )

    play(socket, scene)


def test_bytes_that_are_no_message_are_an_invalid_argument_and_are_observed(socket: Path) -> None:
    async def scene(node: Node) -> None:
        async with grpc.aio.insecure_channel(f"unix:{node.path}") as channel:
            call = channel.unary_unary("/runtime.v1.RuntimeService/ListPodSandbox")
            code, text = await failure(call(b"\x0a\x03abc"))
            stream = channel.unary_stream("/runtime.v1.RuntimeService/StreamContainers")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                [_ async for _ in stream(b"\xff")]
        assert (code, caught.value.code()) == (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INVALID_ARGUMENT)
        assert text.startswith("the 5 bytes of the request are no ListPodSandboxRequest: "), text
        assert node.observed == [("ListPodSandbox", "INVALID_ARGUMENT"), ("StreamContainers", "INVALID_ARGUMENT")]

    play(socket, scene)


def test_life_of_a_pod_reaches_the_use_cases(socket: Path) -> None:
    async def scene(node: Node) -> None:
        pod = full_sandbox_config()
        run = await node.cri.RunPodSandbox(pb.RunPodSandboxRequest(config=pod, runtime_handler="fast"))
        assert run.pod_sandbox_id == "a1b2"
        create = await node.cri.CreateContainer(
            pb.CreateContainerRequest(pod_sandbox_id="a1b2", config=full_container_config(), sandbox_config=pod)
        )
        assert create.container_id == "c0ffee"
        await node.cri.StartContainer(pb.StartContainerRequest(container_id="c0ffee"))
        await node.cri.UpdateContainerResources(
            pb.UpdateContainerResourcesRequest(container_id="c0ffee", linux=full_resources(), annotations={"a": "b"})
        )
        await node.cri.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id="c0ffee"))
        await node.cri.StopContainer(pb.StopContainerRequest(container_id="c0ffee", timeout=30))
        await node.cri.RemoveContainer(pb.RemoveContainerRequest(container_id="c0ffee"))
        await node.cri.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id="a1b2"))
        await node.cri.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id="a1b2"))
        calls = node.runtime.calls
        assert calls[0] == ("run", sandboxes.from_proto(pod, "fast"))
        assert calls[1] == ("create", "a1b2", "app", "web-0")
        assert [call[0] for call in calls[2:4]] == ["start", "update"] and calls[3][3] == {"a": "b"}
        assert calls[4:] == [
            ("reopen", "c0ffee"),
            ("stop", "c0ffee", 30),
            ("remove", "c0ffee"),
            ("stop sandbox", "a1b2"),
            ("remove sandbox", "a1b2"),
        ]
        assert node.observed[0] == ("RunPodSandbox", "OK") and len(node.observed) == 9

    play(socket, scene)


def test_statuses_and_their_verbose_form(socket: Path) -> None:
    async def scene(node: Node) -> None:
        plain = await node.cri.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id="a1b2"))
        assert plain.status.network.ip == "10.0.0.2" and not plain.info
        verbose = await node.cri.ContainerStatus(pb.ContainerStatusRequest(container_id="c0ffee", verbose=True))
        assert '"sandboxID": "a1b2"' in verbose.info["info"]
        unknown = await failure(node.cri.ContainerStatus(pb.ContainerStatusRequest(container_id="beef")))
        assert unknown == (grpc.StatusCode.NOT_FOUND, "container beef does not exist")

    play(socket, scene)


def test_lists_and_stats_come_from_the_listing(socket: Path) -> None:
    async def scene(node: Node) -> None:
        node.listing.upsert_sandbox(sandbox())
        node.listing.upsert_container(container())
        pods = await node.cri.ListPodSandbox(pb.ListPodSandboxRequest())
        assert [pod.id for pod in pods.items] == ["a1b2"]
        listed = await node.cri.ListContainers(pb.ListContainersRequest(filter=pb.ContainerFilter(id="c0f")))
        assert [one.id for one in listed.containers] == ["c0ffee"]
        stats = await node.cri.ListContainerStats(pb.ListContainerStatsRequest())
        assert [one.attributes.id for one in stats.stats] == ["c0ffee"]
        one = await node.cri.ContainerStats(pb.ContainerStatsRequest(container_id="c0ffee"))
        assert one.stats == stats.stats[0]

    play(socket, scene)


def test_a_list_larger_than_grpc_allows_by_default_arrives(socket: Path) -> None:
    async def scene(node: Node) -> None:
        of = container()
        for number in range(60):
            config = type(of.config)(name="app", annotations={"big": "x" * 200_000})
            node.listing.upsert_container(type(of)(f"c{number}", "a1", config, of.state, 1, "", "", "", of.user))
        answer = await node.cri.ListContainers(pb.ListContainersRequest())
        assert len(answer.containers) == 60

    play(socket, scene)


def test_a_large_request_is_taken(socket: Path) -> None:
    async def scene(node: Node) -> None:
        request = pb.ExecSyncRequest(container_id="c0ffee", cmd=["echo", "x" * (8 << 20)])
        assert (await node.cri.ExecSync(request)).exit_code == 3

    play(socket, scene)


def test_exec_sync_returns_bytes_and_the_code(socket: Path) -> None:
    async def scene(node: Node) -> None:
        answer = await node.cri.ExecSync(pb.ExecSyncRequest(container_id="c0ffee", cmd=["id", ""], timeout=5))
        assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out\xff", b"err", 3)
        assert node.runtime.calls == [("exec", "c0ffee", ("id", ""), 5)]

    play(socket, scene)


def test_images_and_the_control_service(socket: Path) -> None:
    async def scene(node: Node) -> None:
        node.listing.upsert_image(image())
        auth = pb.AuthConfig(username="a", password="b")
        pull = pb.PullImageRequest(image=pb.ImageSpec(image="web"), auth=auth, sandbox_config=full_sandbox_config())
        assert (await node.images.PullImage(pull)).image_ref == IMAGE_ID
        assert node.runtime.calls[0][1:3] == ("web", Credentials("a", "b"))
        assert node.runtime.calls[0][3] == sandboxes.from_proto(full_sandbox_config())
        await node.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image="web")))
        assert node.runtime.calls[1] == ("pull", "web", None, None)
        for wanted, count in (("", 1), ("web", 1), ("nothing", 0)):
            request = pb.ListImagesRequest(filter=pb.ImageFilter(image=pb.ImageSpec(image=wanted)))
            assert len((await node.images.ListImages(request)).images) == count
        present = await node.images.ImageStatus(pb.ImageStatusRequest(image=pb.ImageSpec(image="web")))
        assert present.image.id == IMAGE_ID
        missing = await node.images.ImageStatus(pb.ImageStatusRequest(image=pb.ImageSpec(image="nothing")))
        assert not missing.HasField("image")
        usage = (await node.images.ImageFsInfo(pb.ImageFsInfoRequest())).image_filesystems
        assert (usage[0].fs_id.mountpoint, usage[0].used_bytes.value, usage[0].timestamp) == (
            "/var/lib/crishim",
            10,
            99,
        )
        await node.images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image="web")))
        loaded = await node.control.Load(control_pb2.LoadRequest(path="/tmp/a.tar"))
        assert loaded.images[0].id == IMAGE_ID
        assert node.runtime.calls[2:] == [("remove image", "web"), ("load", Path("/tmp/a.tar"))]

    play(socket, scene)


def test_status_and_configuration_of_the_node(socket: Path) -> None:
    async def scene(node: Node) -> None:
        status = await node.cri.Status(pb.StatusRequest(verbose=True))
        assert [(c.type, c.status) for c in status.status.conditions] == [
            ("RuntimeReady", True),
            ("NetworkReady", False),
        ]
        assert [handler.name for handler in status.runtime_handlers] == ["crishim", ""]
        assert status.features.supplemental_groups_policy and status.info == {"config": "{}"}
        config = await node.cri.RuntimeConfig(pb.RuntimeConfigRequest())
        assert config.HasField("linux") and config.linux.cgroup_driver == pb.SYSTEMD
        cidr = pb.RuntimeConfig(network_config=pb.NetworkConfig(pod_cidr="10.1.0.0/24,fd00::/64"))
        await node.cri.UpdateRuntimeConfig(pb.UpdateRuntimeConfigRequest(runtime_config=cidr))
        assert node.runtime.calls == [("cidr", "10.1.0.0/24,fd00::/64")]

    play(socket, scene)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (errors.NotFound("container x is gone"), grpc.StatusCode.NOT_FOUND, "container x is gone"),
        (errors.WrongState("container x runs"), grpc.StatusCode.FAILED_PRECONDITION, "container x runs"),
        (errors.TimedOut("too long"), grpc.StatusCode.DEADLINE_EXCEEDED, "too long"),
        (errors.Exhausted("no address"), grpc.StatusCode.RESOURCE_EXHAUSTED, "no address"),
        (errors.StartFailed("no such file"), grpc.StatusCode.UNKNOWN, "no such file"),
        (errors.InvalidSpec("bytes \udcff"), grpc.StatusCode.INVALID_ARGUMENT, "bytes \\udcff"),
        (ExceptionGroup("g", [errors.NotFound("inside")]), grpc.StatusCode.NOT_FOUND, "inside"),
    ],
)
def test_an_error_becomes_its_code_and_sentence(
    socket: Path, error: Exception, code: grpc.StatusCode, message: str
) -> None:
    async def scene(node: Node) -> None:
        node.runtime.failure = error
        assert await failure(node.cri.StartContainer(pb.StartContainerRequest(container_id="c0ffee"))) == (
            code,
            message,
        )
        assert node.observed == [("StartContainer", code.name)]

    play(socket, scene)


def test_no_python_text_leaves_the_server(socket: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(node: Node) -> None:
        node.runtime.failure = KeyError("a secret of ours")
        code, message = await failure(node.cri.StartContainer(pb.StartContainerRequest(container_id="c0ffee")))
        assert code is grpc.StatusCode.INTERNAL
        assert "secret" not in message and "KeyError" not in message
        number = message.split()[3].rstrip(";")
        (record,) = [r for r in caplog.records if r.name == "crishim.cri.interceptors"]
        assert number in record.getMessage() and record.exc_info

    with caplog.at_level(logging.ERROR, "crishim.cri.interceptors"):
        play(socket, scene)


def test_a_very_long_sentence_still_reaches_the_client(socket: Path) -> None:
    async def scene(node: Node) -> None:
        node.runtime.failure = errors.StartFailed("ä" * 100_000)
        code, message = await failure(node.cri.StartContainer(pb.StartContainerRequest(container_id="c0ffee")))
        assert code is grpc.StatusCode.UNKNOWN and message.startswith("ää") and message.endswith("ä ...")

    play(socket, scene)


def test_until_recovery_is_done_only_version_is_answered(socket: Path) -> None:
    async def scene(node: Node) -> None:
        node.reason = "recovering 3 pods"
        await node.cri.Version(pb.VersionRequest())
        for call in (
            node.cri.ListContainers(pb.ListContainersRequest()),
            node.cri.Status(pb.StatusRequest()),
            node.images.ImageFsInfo(pb.ImageFsInfoRequest()),
        ):
            assert await failure(call) == (grpc.StatusCode.UNAVAILABLE, "recovering 3 pods")
        node.reason = None
        await node.cri.Status(pb.StatusRequest())

    play(socket, scene)


@pytest.mark.parametrize(
    ("method", "request_", "named"),
    [
        ("StopPodSandbox", pb.StopPodSandboxRequest(), "pod_sandbox_id is empty"),
        ("RemoveContainer", pb.RemoveContainerRequest(container_id="../x"), 'container_id is "../x"'),
        ("StopContainer", pb.StopContainerRequest(container_id="a", timeout=-1), "timeout is -1"),
        ("ExecSync", pb.ExecSyncRequest(container_id="a", cmd=["a\0"]), "cmd[0] is "),
        ("RunPodSandbox", pb.RunPodSandboxRequest(), "config.metadata.name is empty"),
        ("CreateContainer", pb.CreateContainerRequest(pod_sandbox_id="a"), "config.metadata.name is empty"),
    ],
)
def test_bad_requests_reach_no_use_case(socket: Path, method: str, request_: Any, named: str) -> None:
    async def scene(node: Node) -> None:
        code, message = await failure(getattr(node.cri, method)(request_))
        assert code is grpc.StatusCode.INVALID_ARGUMENT and message.startswith(named)
        assert node.runtime.calls == []

    play(socket, scene)


def test_a_longest_grace_period_fits_every_clock(socket: Path) -> None:
    async def scene(node: Node) -> None:
        await node.cri.StopContainer(pb.StopContainerRequest(container_id="c0ffee", timeout=2**63 - 1))
        assert node.runtime.calls == [("stop", "c0ffee", 2**31 - 1)]

    play(socket, scene)


def test_what_later_versions_build_is_unimplemented(socket: Path) -> None:
    async def scene(node: Node) -> None:
        for call in (
            node.cri.Exec(pb.ExecRequest(container_id="c0ffee", cmd=["sh"], stdout=True)),
            node.cri.CheckpointContainer(pb.CheckpointContainerRequest()),
            node.cri.CheckpointPod(pb.CheckpointPodRequest()),
        ):
            assert (await failure(call))[0] is grpc.StatusCode.UNIMPLEMENTED

    play(socket, scene)


def test_streaming_sessions_answer_with_a_url(socket: Path) -> None:
    async def scene(node: Node) -> None:
        answer = await node.cri.Exec(pb.ExecRequest(container_id="c0ffee", cmd=["sh"], stdout=True, tty=True))
        assert answer.url == "http://127.0.0.1/exec/c0ffee"
        assert (await node.cri.Attach(pb.AttachRequest(container_id="c0ffee", stdin=True))).url
        assert (await node.cri.PortForward(pb.PortForwardRequest(pod_sandbox_id="a1b2", port=[80]))).url.endswith("/1")
        call = node.cri.PortForward(pb.PortForwardRequest(pod_sandbox_id="a1b2", port=[0]))
        assert (await failure(call))[0] is grpc.StatusCode.INVALID_ARGUMENT

    play(socket, scene, streaming=True)


def test_a_client_that_leaves_cancels_the_call_and_it_is_observed(socket: Path) -> None:
    async def scene(node: Node) -> None:
        node.runtime.never = asyncio.Event()
        request = pb.ExecSyncRequest(container_id="c0ffee", cmd=["sleep", "1000"])
        code, _ = await failure(node.cri.ExecSync(request, timeout=0.2))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        while ("ExecSync", "CANCELLED") not in node.observed:  # bounded by the scene's own deadline
            await node.cri.Version(pb.VersionRequest())

    play(socket, scene)


def test_the_socket_is_private_from_its_first_moment_and_goes_with_the_server(socket: Path) -> None:
    async def scene(node: Node) -> None:
        assert stat.S_IMODE(os.stat(socket).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(socket.parent).st_mode) == 0o700
        assert os.listdir(socket.parent) == [socket.name]

    play(socket, scene)
    assert os.listdir(socket.parent) == []


def test_a_stale_socket_is_replaced_and_a_directory_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "crishim.sock").touch()

    async def scene(node: Node) -> None:
        await node.cri.Version(pb.VersionRequest())

    play(tmp_path / "crishim.sock", scene)
    assert stat.S_IMODE(os.stat(tmp_path).st_mode) == 0o755


def test_stopping_leaves_the_socket_of_a_successor(socket: Path) -> None:
    async def run() -> None:
        first, second = Node(socket), Node(socket)
        await first.server.start()
        await second.server.start()
        await first.server.stop(None)
        assert socket.exists()
        await second.server.stop(None)
        assert not socket.exists()

    asyncio.run(run())


def test_a_path_that_is_too_long_is_an_os_error(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 120) / "crishim.sock"

    async def run() -> None:
        with pytest.raises(OSError, match="cannot listen on"):
            await Node(path).server.start()

    asyncio.run(run())
    assert os.listdir(path.parent) == []
