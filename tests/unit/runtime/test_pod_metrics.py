"""Values of CRI's metrics and samples, from readings."""

from __future__ import annotations

from dataclasses import replace

from crishim.cgroups.details import Details, DeviceIo
from crishim.cgroups.stats import Pressure, Stats
from crishim.model.image import FilesystemUsage
from crishim.model.metric import Metric
from crishim.model.resources import Resources
from crishim.runtime.pod_metrics import Disk, container_metrics, descriptors, sandbox_metrics
from crishim.runtime.samples import container_sample, network_sample, sandbox_sample
from crishim.runtime.usage import ContainerReading, Files
from tests.unit.store.values import CONTAINER, SANDBOX

#: as proc(5) has it: 8 columns of what came in, 8 of what went out
NET_DEV = """Inter-| Receive | Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    lo: 100 1 0 0 0 0 0 0 100 1 0 0 0 0 0 0
  net1: 9 9 9 9 0 0 0 0 9 9 9 9 0 0 0 0
  eth0: 1000 10 1 2 0 0 0 0 2000 20 3 4 0 0 0 0
"""
DISK = Disk(1000, 100, 60, lambda number: f"/dev/of-{number}")
LAYER = FilesystemUsage("/var/lib/x", 77, 5, 1)


def stats() -> Stats:
    raw = Stats()
    raw.cpu_usage_ns, raw.cpu_user_ns, raw.cpu_system_ns = 3_900_000_000, 2_000_000_000, 1_900_000_000
    raw.usage_bytes, raw.working_set_bytes, raw.rss_bytes = 500, 400, 300
    raw.memory_limit_bytes, raw.swap_usage_bytes, raw.pids_current = 1000, 7, 12
    raw.cpu_pressure = Pressure((2_500_000_000, 1.0, 2.0, 3.0), (1_000_000_000, 0.0, 0.0, 0.0))
    return raw


def details() -> Details:
    found = Details()
    found.oom_kills, found.cache_bytes, found.hugetlb = 2, 60, [("2MB", 4, None)]
    io = DeviceIo("8:0")
    io.read_bytes, io.writes = 11, 3
    found.io = [io]
    return found


def reading(*, detailed: bool = True) -> ContainerReading:
    if not detailed:
        return ContainerReading(CONTAINER.id, stats())
    return ContainerReading(CONTAINER.id, stats(), details(), Files(2, 9, 1, 1024))


def values(metrics: tuple[Metric, ...]) -> dict[tuple[str, ...], int]:
    """Value by name and the labels after those that all have."""
    return {(each.descriptor.name.removeprefix("container_"), *each.label_values[3:]): each.value for each in metrics}


def test_every_name_is_described_once_and_leaves_the_kubelets_labels_alone() -> None:
    found = descriptors()
    assert len({each.name for each in found}) == len(found)
    for each in found:
        assert each.name.startswith("container_") and each.help
        assert not {"namespace", "pod", "container"} & set(each.label_keys)


def test_values_have_the_labels_of_their_descriptors() -> None:
    network = network_sample(NET_DEV, 5)
    metrics = (*container_metrics(CONTAINER, reading(), LAYER, DISK), *sandbox_metrics(SANDBOX, network))
    assert metrics
    for each in metrics:
        assert each.descriptor in descriptors()
        assert len(each.label_values) == len(each.descriptor.label_keys)


def test_what_was_read_arrives_in_whole_units() -> None:
    found = values(container_metrics(CONTAINER, reading(), LAYER, DISK))
    expected = {
        ("cpu_usage_seconds_total", "total"): 3,
        ("memory_working_set_bytes",): 400,
        ("memory_swap",): 7,
        ("oom_events_total",): 2,
        ("threads",): 12,
        ("threads_max",): 0,
        ("processes",): 2,
        ("file_descriptors",): 9,
        ("sockets",): 1,
        ("ulimits_soft", "max_open_files"): 1024,
        ("pressure_cpu_waiting_seconds_total",): 2,
        ("pressure_cpu_stalled_seconds_total",): 1,
        ("hugetlb_usage_bytes", "2MB"): 4,
        ("fs_usage_bytes", "/var/lib/x"): 77,
        ("fs_inodes_free", "/var/lib/x"): 60,
        ("fs_reads_bytes_total", "/dev/of-8:0"): 11,
        ("blkio_device_usage_total", "/dev/of-8:0", "8", "0", "Read"): 11,
        ("spec_memory_limit_bytes",): 1000,
    }
    assert {key: found.get(key) for key in expected} == expected


def test_what_is_not_known_makes_no_series() -> None:
    raw = Stats()
    found = values(container_metrics(CONTAINER, ContainerReading(CONTAINER.id, raw), None, None))
    assert ("memory_usage_bytes",) not in found
    assert not [key for key in found if key[0].startswith(("fs_", "pressure_", "hugetlb_", "processes"))]


def test_no_quota_is_no_series_and_no_shares_are_the_kernels() -> None:
    unlimited = replace(CONTAINER, resources=Resources(cpu_quota_us=-1))
    found = values(container_metrics(unlimited, reading(), None, None))
    assert ("spec_cpu_quota",) not in found
    assert (found["spec_cpu_shares",], found["spec_cpu_period",]) == (1024, 100_000)


def test_loopback_is_left_out_and_eth0_comes_first() -> None:
    network = network_sample(NET_DEV, 5)
    assert [each.name for each in network.interfaces] == ["eth0", "net1"]
    eth0 = network.interfaces[0]
    assert (eth0.rx_bytes, eth0.rx_packets, eth0.rx_errors, eth0.rx_dropped) == (1000, 10, 1, 2)
    assert (eth0.tx_bytes, eth0.tx_packets, eth0.tx_errors, eth0.tx_dropped) == (2000, 20, 3, 4)


def test_lines_that_are_none_of_the_kernels_are_left_out() -> None:
    assert network_sample("eth0: 1 2 3\nrubbish\neth1: a b c d e f g h i j k l m n o p\n", 5).interfaces == ()


def test_the_rate_of_a_pod_comes_from_two_readings() -> None:
    first, second = stats(), stats()
    second.read_at_ns = first.read_at_ns + 2_000_000_000
    second.cpu_usage_ns = 4_900_000_000
    before = sandbox_sample("p", first, None, 1, (), None)
    assert before.cpu is not None and before.cpu.usage_nano_cores is None
    after = sandbox_sample("p", second, None, 1, (), before)
    assert after.cpu is not None and after.cpu.usage_nano_cores == 500_000_000


def test_a_reading_too_close_to_the_one_before_keeps_its_rate() -> None:
    first, second, third = stats(), stats(), stats()
    second.read_at_ns = first.read_at_ns + 1_000_000_000
    third.read_at_ns = second.read_at_ns + 1_000_000
    third.cpu_usage_ns = 10_000_000_000
    samples = [container_sample("c", first, None, None)]
    for raw in (second, third):
        samples.append(container_sample("c", raw, LAYER, samples[-1]))
    rates = [sample.cpu.usage_nano_cores for sample in samples if sample.cpu is not None]
    assert rates == [None, 0, 0]
    assert samples[-1].writable_layer == LAYER
