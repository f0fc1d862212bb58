"""Streams, events, usage of pods, metrics and stories over a real channel, with fakes behind them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from crishim import errors
from crishim.cri.chunks import CHUNK_BYTES, chunks
from crishim.cri.pb import api_pb2 as pb
from crishim.cri.pb import control_pb2
from crishim.model.container import ContainerState
from crishim.model.events import LifeEventKind
from crishim.model.life import LifeEvent
from crishim.model.resources import Resources
from crishim.model.sandbox import SandboxState
from tests.unit.cri.fakes import container, full_resources, image, sandbox
from tests.unit.cri.test_cri_service import Node, failure, play


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "run" / "crishim.sock"


def filled(node: Node, count: int) -> None:
    """Lists of `count` pods, containers and images with annotations of 1 kB."""
    node.listing.upsert_sandbox(sandbox("a1b2"))
    for index in range(count - 1):
        node.listing.upsert_sandbox(sandbox(f"pod{index}"))
    for index in range(count):
        node.listing.upsert_container(container(f"c{index}"))
        node.listing.upsert_image(image(f"sha256:{index:064}"))


def test_chunks_keep_elements_whole_and_below_the_limit() -> None:
    assert list(chunks([b"aa", b"bb", b"cccccc", b"d"], 4)) == [b"aabb", b"cccccc", b"d"]


def test_no_elements_make_no_chunk() -> None:
    assert list(chunks([])) == []


@pytest.mark.parametrize(
    ("method", "field", "request_"),
    [
        ("StreamPodSandboxes", "pod_sandboxes", pb.StreamPodSandboxesRequest()),
        ("StreamContainers", "containers", pb.StreamContainersRequest()),
        ("StreamContainerStats", "container_stats", pb.StreamContainerStatsRequest()),
        ("StreamPodSandboxStats", "pod_sandbox_stats", pb.StreamPodSandboxStatsRequest()),
    ],
)
def test_a_stream_holds_every_element_once_in_messages_of_one_mebibyte(
    socket: Path, method: str, field: str, request_: Any
) -> None:
    async def scene(node: Node) -> None:
        filled(node, 20_000)
        sizes, ids = [], []
        async for message in getattr(node.cri, method)(request_):
            sizes.append(message.ByteSize())
            ids += [getattr(each, "id", "") or each.attributes.id for each in getattr(message, field)]
        assert len(ids) == len(set(ids)) == 20_000
        assert len(sizes) > 1
        assert max(sizes) <= CHUNK_BYTES

    play(socket, scene)


def test_images_are_streamed(socket: Path) -> None:
    async def scene(node: Node) -> None:
        filled(node, 20_000)
        messages = [message async for message in node.images.StreamImages(pb.StreamImagesRequest())]
        assert len(messages) > 1
        assert sum(len(message.images) for message in messages) == 20_000

    play(socket, scene)


def test_a_stream_of_nothing_is_closed_at_once(socket: Path) -> None:
    async def scene(node: Node) -> None:
        assert [message async for message in node.cri.StreamContainers(pb.StreamContainersRequest())] == []

    play(socket, scene)


def test_a_stream_keeps_to_its_filter(socket: Path) -> None:
    async def scene(node: Node) -> None:
        node.listing.upsert_container(container("c1"))
        node.listing.upsert_container(container("c2", state=ContainerState.EXITED))
        wanted = pb.ContainerFilter(state=pb.ContainerStateValue(state=pb.CONTAINER_EXITED))
        (message,) = [m async for m in node.cri.StreamContainers(pb.StreamContainersRequest(filter=wanted))]
        assert [each.id for each in message.containers] == ["c2"]

    play(socket, scene)


def stopped() -> LifeEvent:
    members = (container("c0ffee", state=ContainerState.EXITED), container("other"))
    return LifeEvent("c0ffee", LifeEventKind.STOPPED, 5, sandbox(), members)


def test_an_event_holds_the_status_of_the_pod_and_of_all_its_containers(socket: Path) -> None:
    async def scene(node: Node) -> None:
        node.events.queue.put_nowait(stopped())
        node.events.queue.put_nowait(None)
        (event,) = [each async for each in node.cri.GetContainerEvents(pb.GetEventsRequest())]
        assert event.container_event_type == pb.CONTAINER_STOPPED_EVENT
        assert event.pod_sandbox_status.metadata.name == "web-0"
        assert [each.state for each in event.containers_statuses] == [pb.CONTAINER_EXITED, pb.CONTAINER_RUNNING]

    play(socket, scene)


def test_a_listener_that_goes_away_is_forgotten(socket: Path) -> None:
    async def scene(node: Node) -> None:
        call = node.cri.GetContainerEvents(pb.GetEventsRequest())
        await call.initial_metadata()
        assert node.events.listeners == 1
        call.cancel()
        while ("GetContainerEvents", "CANCELLED") not in node.observed:
            await node.cri.Version(pb.VersionRequest())
        assert node.events.listeners == 0

    play(socket, scene)


def test_a_listener_that_was_too_slow_is_told(socket: Path) -> None:
    async def scene(node: Node) -> None:
        node.events.queue.put_nowait(errors.Unavailable("the listener did not read"))
        code, text = await failure(node.cri.GetContainerEvents(pb.GetEventsRequest()).read())
        assert (code, text) == (grpc.StatusCode.UNAVAILABLE, "the listener did not read")

    play(socket, scene)


def test_usage_of_a_pod_holds_its_interfaces_processes_and_containers(socket: Path) -> None:
    async def scene(node: Node) -> None:
        node.listing.upsert_sandbox(sandbox())
        node.listing.upsert_container(container())
        answer = await node.cri.PodSandboxStats(pb.PodSandboxStatsRequest(pod_sandbox_id="a1b2"))
        stats = answer.stats
        assert stats.attributes.metadata.name == "web-0"
        assert stats.linux.cpu.usage_core_nano_seconds.value == 7
        assert stats.linux.network.default_interface.name == "eth0"
        assert stats.linux.network.default_interface.tx_errors.value == 7
        assert [each.name for each in stats.linux.network.interfaces] == ["b"]
        assert stats.linux.process.process_count.value == 2
        assert [each.attributes.id for each in stats.linux.containers] == ["c0ffee"]
        assert stats.linux.containers[0].cpu.usage_core_nano_seconds.value == 6

    play(socket, scene)


def test_usage_of_pods_leaves_out_those_that_are_not_ready(socket: Path) -> None:
    async def scene(node: Node) -> None:
        node.listing.upsert_sandbox(sandbox())
        node.listing.upsert_sandbox(sandbox("stopped", state=SandboxState.NOTREADY))
        answer = await node.cri.ListPodSandboxStats(pb.ListPodSandboxStatsRequest())
        assert [each.attributes.id for each in answer.stats] == ["a1b2"]

    play(socket, scene)


def test_usage_of_an_unknown_pod_is_not_found(socket: Path) -> None:
    async def scene(node: Node) -> None:
        call = node.cri.PodSandboxStats(pb.PodSandboxStatsRequest(pod_sandbox_id="beef"))
        assert (await failure(call))[0] is grpc.StatusCode.NOT_FOUND

    play(socket, scene)


def test_each_metric_has_a_value_for_each_label_of_its_descriptor(socket: Path) -> None:
    async def scene(node: Node) -> None:
        described = (await node.cri.ListMetricDescriptors(pb.ListMetricDescriptorsRequest())).descriptors
        keys = {each.name: list(each.label_keys) for each in described}
        (pod,) = (await node.cri.ListPodSandboxMetrics(pb.ListPodSandboxMetricsRequest())).pod_metrics
        (streamed,) = [m async for m in node.cri.StreamPodSandboxMetrics(pb.StreamPodSandboxMetricsRequest())]
        assert streamed.pod_sandbox_metrics[0] == pod
        (packets,) = pod.metrics
        assert len(packets.label_values) == len(keys[packets.name])
        assert packets.value.value == 3
        assert packets.metric_type == pb.COUNTER
        assert pod.container_metrics[0].container_id == "c0ffee"
        assert pod.container_metrics[0].metrics[0].metric_type == pb.GAUGE

    play(socket, scene)


def test_the_sums_of_a_pod_are_handed_on(socket: Path) -> None:
    async def scene(node: Node) -> None:
        request = pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id="a1b2", resources=full_resources())
        await node.cri.UpdatePodSandboxResources(request)
        ((name, sandbox_id, overhead, resources),) = node.runtime.calls
        assert (name, sandbox_id, overhead) == ("update sandbox", "a1b2", None)
        assert isinstance(resources, Resources)
        assert resources.cpu_shares == 512

    play(socket, scene)


def test_the_status_of_a_pod_has_that_of_its_containers_and_a_time(socket: Path) -> None:
    async def scene(node: Node) -> None:
        node.listing.upsert_sandbox(sandbox())
        node.listing.upsert_container(container())
        node.listing.upsert_container(container("elsewhere", sandbox_id="b3"))
        answer = await node.cri.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id="a1b2"))
        assert [each.id for each in answer.containers_statuses] == ["c0ffee"]
        assert answer.timestamp > 0

    play(socket, scene)


def test_a_report_of_leftovers_is_json(socket: Path) -> None:
    async def scene(node: Node) -> None:
        answer = await node.control.CollectGarbage(control_pb2.CollectGarbageRequest(dry_run=True))
        report = json.loads(answer.report)
        assert (report["dry_run"], report["problems"]) == (True, ["the network: it hangs"])
        assert [(each["kind"], each["name"], each["outcome"]) for each in report["leftovers"]] == [
            ("netns", "/run/netns/x", "found")
        ]
        await node.control.CollectGarbage(control_pb2.CollectGarbageRequest())
        assert node.runtime.calls == [("collect garbage", True), ("collect garbage", False)]

    play(socket, scene)


def test_a_story_is_json(socket: Path) -> None:
    async def scene(node: Node) -> None:
        answer = await node.control.Why(control_pb2.WhyRequest(id="web"))
        assert json.loads(answer.story) == {"name": "web"}
        code, text = await failure(node.control.Why(control_pb2.WhyRequest(id="nobody")))
        assert (code, text) == (grpc.StatusCode.NOT_FOUND, "no pod and no container is called 'nobody'")

    play(socket, scene)
