"""Lists are joins of bytes that parse as the answers of CRI."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crishim.cri.listing import Listing, entry
from crishim.cri.pb import api_pb2 as pb
from crishim.errors import InvalidSpec
from crishim.model.container import ContainerState
from crishim.model.image import FilesystemUsage
from crishim.model.sandbox import SandboxState
from crishim.model.stats import (
    ContainerSample,
    CpuSample,
    IoSample,
    MemorySample,
    Pressure,
    PressureStall,
    SwapSample,
)
from tests.unit.cri.fakes import container, image, sample, sandbox


def _listing() -> Listing:
    listing = Listing()
    listing.upsert_sandbox(sandbox("aa1", uid="u1"))
    listing.upsert_sandbox(sandbox("aa2", uid="u2", state=SandboxState.NOTREADY))
    listing.upsert_container(container("c1", sandbox_id="aa1", uid="u1"))
    listing.upsert_container(container("c2", sandbox_id="aa1", uid="u1", name="side"))
    listing.upsert_container(container("d3", sandbox_id="aa2", uid="u2", state=ContainerState.EXITED))
    return listing


def _sandbox_ids(listing: Listing, wanted: pb.PodSandboxFilter) -> list[str]:
    return [item.id for item in pb.ListPodSandboxResponse.FromString(listing.sandboxes(wanted)).items]


def _container_ids(listing: Listing, wanted: pb.ContainerFilter) -> list[str]:
    return [item.id for item in pb.ListContainersResponse.FromString(listing.containers(wanted)).containers]


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, 20000, 3_000_000])
def test_an_entry_is_what_protobuf_would_write(size: int) -> None:
    message = pb.Container(image_ref="x" * size)
    assert entry(message) == pb.ListContainersResponse(containers=[message]).SerializeToString()


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        (pb.PodSandboxFilter(), ["aa1", "aa2"]),
        (pb.PodSandboxFilter(id="aa2"), ["aa2"]),
        (pb.PodSandboxFilter(id="aa"), []),  # begins two ids
        (pb.PodSandboxFilter(id="zz"), []),
        (pb.PodSandboxFilter(state=pb.PodSandboxStateValue(state=pb.SANDBOX_READY)), ["aa1"]),
        (pb.PodSandboxFilter(label_selector={"io.kubernetes.pod.uid": "u2"}), ["aa2"]),
        (pb.PodSandboxFilter(label_selector={"io.kubernetes.pod.uid": "u3"}), []),
        (pb.PodSandboxFilter(label_selector={"app": "web"}), ["aa1", "aa2"]),
        (pb.PodSandboxFilter(label_selector={"app": "web", "io.kubernetes.pod.uid": "u1"}), ["aa1"]),
        (pb.PodSandboxFilter(id="aa1", label_selector={"io.kubernetes.pod.uid": "u2"}), []),
    ],
)
def test_filters_of_pods_hold_together(wanted: pb.PodSandboxFilter, ids: list[str]) -> None:
    assert _sandbox_ids(_listing(), wanted) == ids


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        (pb.ContainerFilter(), ["c1", "c2", "d3"]),
        (pb.ContainerFilter(id="d"), ["d3"]),
        (pb.ContainerFilter(id="c"), []),
        (pb.ContainerFilter(pod_sandbox_id="aa1"), ["c1", "c2"]),
        (pb.ContainerFilter(pod_sandbox_id="aa"), []),
        (pb.ContainerFilter(pod_sandbox_id="gone"), []),
        (pb.ContainerFilter(state=pb.ContainerStateValue(state=pb.CONTAINER_EXITED)), ["d3"]),
        (pb.ContainerFilter(state=pb.ContainerStateValue(state=pb.CONTAINER_CREATED)), []),
        (pb.ContainerFilter(label_selector={"io.kubernetes.container.name": "side"}), ["c2"]),
    ],
)
def test_filters_of_containers_hold_together(wanted: pb.ContainerFilter, ids: list[str]) -> None:
    assert _container_ids(_listing(), wanted) == ids


def test_a_state_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidSpec, match=r"filter\.state\.state is 9"):
        _listing().sandboxes(pb.PodSandboxFilter(state=pb.PodSandboxStateValue(state=9)))  # type: ignore[arg-type]


def test_a_change_replaces_the_entry_in_its_place() -> None:
    listing = _listing()
    assert len(_container_ids(listing, pb.ContainerFilter())) == 3
    listing.upsert_container(replace(container("c1", sandbox_id="aa1"), state=ContainerState.EXITED))
    answer = pb.ListContainersResponse.FromString(listing.containers(pb.ContainerFilter()))
    assert next((c.id, c.state) for c in answer.containers) == ("c1", pb.CONTAINER_EXITED)
    assert len(answer.containers) == 3


def test_what_was_removed_is_in_no_list() -> None:
    listing = _listing()
    assert (len(_container_ids(listing, pb.ContainerFilter())), len(_sandbox_ids(listing, pb.PodSandboxFilter()))) == (
        3,
        2,
    )
    listing.remove_container("c1")
    listing.remove_container("c1")
    listing.remove_sandbox("aa1")
    assert _container_ids(listing, pb.ContainerFilter()) == ["c2", "d3"]
    assert _sandbox_ids(listing, pb.PodSandboxFilter()) == ["aa2"]
    assert _container_ids(listing, pb.ContainerFilter(label_selector={"io.kubernetes.pod.uid": "u1"})) == ["c2"]
    assert _sandbox_ids(listing, pb.PodSandboxFilter(label_selector={"io.kubernetes.pod.uid": "u1"})) == []


def test_images_by_id() -> None:
    listing = Listing()
    listing.upsert_image(image())
    listing.upsert_image(image("sha256:other"))
    assert len(pb.ListImagesResponse.FromString(b"".join(listing.image_entries())).images) == 2
    assert [i.id for i in pb.ListImagesResponse.FromString(b"".join(listing.image_entries("sha256:other"))).images] == [
        "sha256:other"
    ]
    listing.remove_image("sha256:other")
    assert listing.image_entries("sha256:other") == []


def test_an_image_that_has_no_form_in_cri_is_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    listing = Listing()
    listing.upsert_image(image("sha256:strange"))
    listing.upsert_images([replace(image("sha256:strange"), size_bytes=-1), image()])
    listed = pb.ListImagesResponse.FromString(b"".join(listing.image_entries())).images
    assert [i.id for i in listed] == [image().id]
    assert "image sha256:strange cannot be listed" in caplog.text


def test_stats_are_of_running_containers_that_match() -> None:
    listing = _listing()
    assert listing.running(pb.ContainerStatsFilter()) == ["c1", "c2"]
    assert listing.running(pb.ContainerStatsFilter(pod_sandbox_id="aa2")) == []
    assert listing.running(pb.ContainerStatsFilter(id="c2")) == ["c2"]


def test_stats_carry_the_attributes_of_the_container() -> None:
    answer = pb.ListContainerStatsResponse.FromString(
        b"".join(_listing().container_stats([sample("c1"), sample("gone")]))
    )
    (stats,) = answer.stats
    assert (stats.attributes.id, stats.attributes.metadata.name) == ("c1", "app")
    assert stats.attributes.annotations == {"x": "y"}
    assert stats.cpu.usage_core_nano_seconds.value == 6
    assert not stats.cpu.HasField("usage_nano_cores") and not stats.HasField("memory")


def test_a_new_sample_makes_new_stats() -> None:
    listing = _listing()
    first = sample("c1")
    assert listing.container_stats([first]) == listing.container_stats([first])
    second = replace(first, cpu=CpuSample(timestamp_ns=9, usage_core_ns=8))
    (stats,) = pb.ListContainerStatsResponse.FromString(b"".join(listing.container_stats([second]))).stats
    assert stats.cpu.timestamp == 9
    assert (stats.attributes.id, stats.attributes.metadata.name) == ("c1", "app")


def test_stats_of_a_removed_container_are_forgotten() -> None:
    listing = _listing()
    listing.container_stats([sample("c1")])
    listing.remove_container("c1")
    assert listing.container_stats([sample("c1")]) == []
    listing.upsert_container(container("c1", sandbox_id="aa1", name="another"))
    (stats,) = pb.ListContainerStatsResponse.FromString(b"".join(listing.container_stats([sample("c1")]))).stats
    assert stats.attributes.metadata.name == "another"


def test_a_measured_zero_is_present() -> None:
    idle = ContainerSample("c1", cpu=CpuSample(0, 0, 0), memory=MemorySample(0, 0, 0, 0))
    (stats,) = pb.ListContainerStatsResponse.FromString(b"".join(_listing().container_stats([idle]))).stats
    assert stats.cpu.HasField("usage_nano_cores") and stats.memory.HasField("rss_bytes")
    assert not stats.memory.HasField("available_bytes") and not stats.memory.HasField("psi")


def test_every_part_of_a_sample_arrives() -> None:
    stall = PressureStall(some=Pressure(1000, 1.5, 0.5, 0.25), full=Pressure(500, 0.5, 0.25, 0.125))
    full = ContainerSample(
        "c1",
        cpu=CpuSample(1, 2, 3, stall),
        memory=MemorySample(4, 5, 6, 7, available_bytes=8, page_faults=9, major_page_faults=10, psi=stall),
        swap=SwapSample(11, 12, 13),
        io=IoSample(14, stall),
        writable_layer=FilesystemUsage("/var/lib/crishim", 15, 16, 17),
    )
    (stats,) = pb.ListContainerStatsResponse.FromString(b"".join(_listing().container_stats([full]))).stats
    psi = pb.PsiStats(
        Some=pb.PsiData(Total=1000, Avg10=1.5, Avg60=0.5, Avg300=0.25),
        Full=pb.PsiData(Total=500, Avg10=0.5, Avg60=0.25, Avg300=0.125),
    )

    def value(number: int) -> pb.UInt64Value:
        return pb.UInt64Value(value=number)

    stats.ClearField("attributes")
    assert stats == pb.ContainerStats(
        cpu=pb.CpuUsage(timestamp=1, usage_core_nano_seconds=value(2), usage_nano_cores=value(3), psi=psi),
        memory=pb.MemoryUsage(
            timestamp=4,
            working_set_bytes=value(5),
            usage_bytes=value(6),
            rss_bytes=value(7),
            available_bytes=value(8),
            page_faults=value(9),
            major_page_faults=value(10),
            psi=psi,
        ),
        swap=pb.SwapUsage(timestamp=11, swap_usage_bytes=value(12), swap_available_bytes=value(13)),
        io=pb.IoUsage(timestamp=14, psi=psi),
        writable_layer=pb.FilesystemUsage(
            timestamp=17,
            fs_id=pb.FilesystemIdentifier(mountpoint="/var/lib/crishim"),
            used_bytes=value(15),
            inodes_used=value(16),
        ),
    )
