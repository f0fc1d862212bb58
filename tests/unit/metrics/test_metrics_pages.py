"""The page: what prometheus-client's own parser reads from it, and what an event changes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from crishim.app.metrics import Metrics
from crishim.metrics.containers import EXEC_OUTCOMES, ContainerMetrics, SeriesSample
from crishim.metrics.node import NodeMetrics
from crishim.model.container import Container, ContainerConfig, ContainerState, ContainerUser
from crishim.model.sandbox import Sandbox, SandboxConfig, SandboxState
from crishim.store.store import Store

SANDBOX = Sandbox("5a", SandboxConfig("web", "u-1", "shop"), SandboxState.READY, 1)
CONTAINER = Container(
    id="c0",
    sandbox_id="5a",
    config=ContainerConfig("app", attempt=3),
    state=ContainerState.CREATED,
    created_at_ns=1_700_000_000_500_000_000,
    image_id="sha256:1",
    image_ref="sha256:1",
    image_name="busybox",
    user=ContainerUser(0, 0),
)
SAMPLE = SeriesSample(**{field.name: number for number, field in enumerate(fields(SeriesSample), 1)})

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(page: bytes) -> Series:
    """Every sample of the page; fails when a family is given in two groups or a series twice."""
    found: Series = {}
    families = []
    for family in text_string_to_metric_families(page.decode()):
        families.append(family.name)
        assert family.type != "unknown" and family.documentation
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    assert len(families) == len(set(families))
    return found


def value(series: Series, name: str, **labels: str) -> float | None:
    return series.get((name, tuple(sorted(labels.items()))))


@pytest.fixture
def node() -> NodeMetrics:
    return NodeMetrics("0.1.0", lambda: [("network", 1.0), ("network", 2.5), ("image", 0.5)])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path, "boot")
    made.put_sandbox(SANDBOX)
    yield made


def exited(container: Container) -> Container:
    ended = {"finished_at_ns": 2, "started_at_ns": 1, "exit_code": 137, "reason": "OOMKilled"}
    return replace(container, state=ContainerState.EXITED, **ended)


def test_each_event_moves_its_series(node: NodeMetrics) -> None:
    node.process_started("init", {"mounts": 0.002, "clone": 0.004})
    node.process_start_failed("exec", "not_found")
    node.process_exited("OOMKilled")
    node.signal_sent("SIGTERM", "stop")
    node.oom_killed(2)
    node.exec_ended("timeout", 1.5)
    node.rpc_ended("RunPodSandbox", "OK", 0.02)
    node.pull_ended("ok", 3.0, 1000)
    node.log_bytes_were_lost(77)
    node.leftover_freed("netns")
    node.leftover_failed("cgroup")
    node.leftovers_looked_for(0.03)
    series = read(node.render())
    assert value(series, "crishim_process_starts_total", kind="init", outcome="started") == 1
    assert value(series, "crishim_process_starts_total", kind="exec", outcome="not_found") == 1
    assert value(series, "crishim_start_phase_seconds_sum", phase="clone") == 0.004
    assert value(series, "crishim_process_exits_total", reason="OOMKilled") == 1
    assert value(series, "crishim_signals_sent_total", signal="SIGTERM", sender="stop") == 1
    assert value(series, "crishim_oom_kills_total") == 2
    assert value(series, "crishim_exec_seconds_count", outcome="timeout") == 1
    assert value(series, "crishim_exec_seconds_bucket", outcome="timeout", le="2.5") == 1
    assert value(series, "crishim_rpc_seconds_bucket", method="RunPodSandbox", code="OK", le="0.025") == 1
    assert value(series, "crishim_pull_seconds_sum", outcome="ok") == 3.0
    assert value(series, "crishim_pulled_bytes_total") == 1000
    assert value(series, "crishim_log_bytes_lost_total") == 77
    assert value(series, "crishim_leftovers_freed_total", kind="netns") == 1
    assert value(series, "crishim_leftover_failures_total", kind="cgroup") == 1
    assert value(series, "crishim_leftover_check_seconds_sum") == 0.03


def test_leftovers_are_asked_for_at_each_scrape() -> None:
    found = {"netns": 0}
    node = NodeMetrics("0.1.0", list, lambda: found)
    assert value(read(node.render()), "crishim_leftovers", kind="netns") == 0
    found["netns"] = 2
    assert value(read(node.render()), "crishim_leftovers", kind="netns") == 2


def test_operations_under_way_are_counted_by_stage_with_the_oldest_age(node: NodeMetrics) -> None:
    series = read(node.render())
    assert value(series, "crishim_operations_in_flight", stage="network") == 2
    assert value(series, "crishim_operation_oldest_age_seconds", stage="network") == 2.5
    assert value(series, "crishim_operation_oldest_age_seconds", stage="image") == 0.5


def test_the_page_has_nothing_of_other_registries(node: NodeMetrics) -> None:
    names = {name for name, _ in read(node.render())}
    assert names and all(name.startswith("crishim_") for name in names)
    assert not any(name.endswith("_created") for name in names)


def test_two_servers_in_one_process_do_not_share_series() -> None:
    one, two = NodeMetrics("1", tuple), NodeMetrics("2", tuple)
    one.oom_killed()
    assert value(read(two.render()), "crishim_oom_kills_total") == 0


def test_a_container_follows_the_store_and_goes_with_it(store: Store) -> None:
    metrics = ContainerMetrics(store)
    labels = {"namespace": "shop", "pod": "web", "container": "app", "id": "c0"}
    store.put_container(CONTAINER)
    series = read(metrics.render())
    assert value(series, "crishim_container_state", **labels, state="created") == 1
    assert value(series, "crishim_container_attempt", **labels) == 3
    assert value(series, "crishim_container_created_timestamp_seconds", **labels) == 1700000000.5
    assert value(series, "crishim_container_started_timestamp_seconds", **labels) is None
    store.update_container("c0", exited)
    series = read(metrics.render())
    assert value(series, "crishim_container_state", **labels, state="created") is None
    assert value(series, "crishim_container_exit_code", **labels, reason="OOMKilled") == 137
    store.remove_container("c0")
    assert metrics.render() == b""


def test_containers_of_a_restarted_server_are_there_from_the_start(store: Store) -> None:
    store.put_container(CONTAINER)
    assert b'state="created"' in ContainerMetrics(store).render()


def test_a_container_has_at_most_18_series(store: Store) -> None:
    metrics = ContainerMetrics(store)
    store.put_container(replace(CONTAINER, started_at_ns=1))
    metrics.sampled("c0", SAMPLE)
    for outcome in EXEC_OUTCOMES:
        metrics.exec_ended("c0", outcome, 0.1)
    assert len(read(metrics.render())) == 14
    store.update_container("c0", exited)
    metrics.sampled("c0", SAMPLE)
    metrics.oom_killed("c0", 1)
    metrics.log_bytes_were_lost("c0", 1)
    assert len(read(metrics.render())) == 18


def test_what_was_counted_at_the_exit_is_shown_after_it(store: Store) -> None:
    node, metrics = NodeMetrics("1", tuple), ContainerMetrics(store)
    observer = Metrics(node, metrics)
    store.put_container(CONTAINER)
    labels = {"namespace": "shop", "pod": "web", "container": "app", "id": "c0"}
    store.update_container("c0", exited)
    assert value(read(observer.render()), "crishim_container_oom_kills_total", **labels) is None
    observer.oom_killed("c0", 2)
    observer.log_bytes_were_lost("c0", 77)
    observer.oom_killed("gone", 1)
    series = read(observer.render())
    assert value(series, "crishim_container_oom_kills_total", **labels) == 2
    assert value(series, "crishim_container_log_bytes_lost_total", **labels) == 77
    assert value(series, "crishim_oom_kills_total") == 3


def test_counters_stay_after_the_exit_and_present_values_go(store: Store) -> None:
    metrics = ContainerMetrics(store)
    store.put_container(CONTAINER)
    metrics.sampled("c0", SAMPLE)
    store.update_container("c0", exited)
    page = metrics.render().decode()
    assert "crishim_container_cpu_usage_seconds_total{" in page
    assert "crishim_container_memory_usage_bytes{" not in page and "crishim_container_pids{" not in page


def test_execs_are_counted_by_outcome(store: Store) -> None:
    metrics = ContainerMetrics(store)
    store.put_container(CONTAINER)
    metrics.exec_ended("c0", "ok", 0.25)
    metrics.exec_ended("c0", "ok", 0.5)
    metrics.exec_ended("gone", "ok", 9.0)
    labels = {"namespace": "shop", "pod": "web", "container": "app", "id": "c0"}
    series = read(metrics.render())
    assert value(series, "crishim_container_execs_total", **labels, outcome="ok") == 2
    assert value(series, "crishim_container_exec_seconds_total", **labels) == 0.75


@pytest.mark.parametrize("odd", ['quo"te', "back\\slash", "new\nline", '\\"\n}', "über"])
def test_odd_label_values_come_back_from_the_parser(store: Store, odd: str) -> None:
    metrics = ContainerMetrics(store)
    store.put_container(replace(CONTAINER, image_name=odd))
    labels = {"namespace": "shop", "pod": "web", "container": "app", "id": "c0"}
    assert value(read(metrics.render()), "crishim_container_info", **labels, image=odd) == 1


def test_text_that_is_not_utf8_does_not_break_the_page(store: Store) -> None:
    metrics = ContainerMetrics(store)
    store.put_container(replace(CONTAINER, image_name="a\udc80b"))
    labels = {"namespace": "shop", "pod": "web", "container": "app", "id": "c0"}
    assert value(read(metrics.render()), "crishim_container_info", **labels, image="a?b") == 1


def test_many_containers_share_one_group_per_family_and_scrape_fast(store: Store) -> None:
    metrics = ContainerMetrics(store)
    for number in range(500):
        name = f"c{number}"
        config = replace(CONTAINER.config, name=name)
        store.put_container(exited(replace(CONTAINER, id=name, config=config)))
        metrics.sampled(name, SAMPLE)
        for outcome in EXEC_OUTCOMES:
            metrics.exec_ended(name, outcome, 0.1)
        metrics.oom_killed(name, 1)
        metrics.log_bytes_were_lost(name, 1)
    times = []
    for _ in range(5):
        begin = time.thread_time()
        page = metrics.render()
        times.append(time.thread_time() - begin)
    assert len(read(page)) == 9_000
    assert min(times) < 0.05
