"""Indexes, changes and record files of the store."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crishim.errors import AlreadyExists, Exhausted, Internal, InvalidSpec, NotFound
from crishim.model.container import ContainerState
from crishim.model.sandbox import SandboxState
from crishim.store.boot import current_boot_id
from crishim.store.records import ContainerReservation, Records
from crishim.store.store import Kind, LoadReport, Store
from tests.unit.store.values import CONTAINER, SANDBOX

BOOT = "00000000-0000-0000-0000-000000000001"
RESERVATION = ContainerReservation(CONTAINER.id, SANDBOX.id, CONTAINER.config)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path, BOOT)
    made.put_sandbox(SANDBOX)
    return made


def reloaded(tmp_path: Path, boot_id: str = BOOT) -> tuple[Store, LoadReport]:
    store = Store(tmp_path, boot_id)
    return store, store.load()


def container_file(tmp_path: Path) -> Path:
    return tmp_path / "sandboxes" / SANDBOX.id / "containers" / f"{CONTAINER.id}.json"


def test_what_was_put_is_there_after_a_restart(store: Store, tmp_path: Path) -> None:
    store.put_container(CONTAINER)
    again, report = reloaded(tmp_path)
    assert report == LoadReport()
    assert again.get_sandbox(SANDBOX.id) == SANDBOX and again.get_container(CONTAINER.id) == CONTAINER
    assert again.list_containers(SANDBOX.id) == [CONTAINER]
    assert again.find_container((SANDBOX.id, "app", 1)) == CONTAINER
    assert again.find_sandbox(("web", "shop", "u-1", 2)) == SANDBOX


def test_an_update_is_on_disk_before_it_is_published(store: Store, tmp_path: Path) -> None:
    store.put_container(CONTAINER)
    seen = []

    def subscriber(kind: object, old: object, new: object) -> None:
        seen.append((kind, old, new, reloaded(tmp_path)[0].get_container(CONTAINER.id)))

    store.subscribe(subscriber)
    running = store.update_container(CONTAINER.id, lambda old: replace(old, state=ContainerState.RUNNING, pid=7))
    assert seen == [(Kind.CONTAINER, CONTAINER, running, running)]


def test_an_update_to_an_equal_value_writes_and_tells_nothing(store: Store, tmp_path: Path) -> None:
    store.put_container(CONTAINER)
    written = container_file(tmp_path).stat().st_ino
    store.subscribe(lambda *change: pytest.fail("published"))
    assert store.update_container(CONTAINER.id, replace) == CONTAINER
    assert container_file(tmp_path).stat().st_ino == written


def test_every_change_is_published_with_both_ends(store: Store) -> None:
    seen: list[tuple[object, bool, bool]] = []
    store.subscribe(lambda kind, old, new: seen.append((kind, old is not None, new is not None)))
    store.put_container(CONTAINER)
    store.update_sandbox(SANDBOX.id, lambda old: replace(old, state=SandboxState.NOTREADY))
    store.remove_sandbox(SANDBOX.id)
    assert seen == [
        (Kind.CONTAINER, False, True),
        (Kind.SANDBOX, True, True),
        (Kind.CONTAINER, True, False),
        (Kind.SANDBOX, True, False),
    ]


def test_a_subscriber_that_fails_stops_nobody(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    def failing(*change: object) -> None:
        raise ValueError("bad subscriber")

    seen: list[object] = []
    store.subscribe(failing)
    store.subscribe(lambda kind, old, new: seen.append(new))
    with caplog.at_level(logging.ERROR):
        store.put_container(CONTAINER)
    assert seen == [CONTAINER] and CONTAINER.id in caplog.text


def test_taken_ids_and_identities_are_refused(store: Store) -> None:
    store.put_container(CONTAINER)
    for sandbox in (SANDBOX, replace(SANDBOX, id="other")):
        with pytest.raises(AlreadyExists):
            store.put_sandbox(sandbox)
    for container in (CONTAINER, replace(CONTAINER, id="other")):
        with pytest.raises(AlreadyExists):
            store.put_container(container)
    with pytest.raises(AlreadyExists, match=CONTAINER.id):
        store.reserve_container(replace(RESERVATION, id="other"))


def test_a_change_of_the_identity_is_a_bug(store: Store) -> None:
    with pytest.raises(Internal):
        store.update_sandbox(SANDBOX.id, lambda old: replace(old, id="other"))


def test_unknown_ids_are_not_found_and_removing_them_is_nothing(store: Store) -> None:
    for ask in (store.get_sandbox, store.get_container, store.resolve_sandbox, store.resolve_container):
        with pytest.raises(NotFound, match="'gone'"):
            ask("gone")
    with pytest.raises(NotFound):
        store.put_container(replace(CONTAINER, sandbox_id="gone"))
    store.remove_sandbox("gone")
    store.remove_container("gone")
    store.release_container("gone")


def test_a_prefix_names_one_container_or_none(store: Store) -> None:
    store.put_container(CONTAINER)
    store.put_container(replace(CONTAINER, id="c1", config=replace(CONTAINER.config, name="side")))
    assert store.resolve_container("c0") == CONTAINER
    assert store.resolve_container("c1").id == "c1"
    with pytest.raises(InvalidSpec, match="2 of the container ids begin with 'c'"):
        store.resolve_container("c")
    with pytest.raises(NotFound):
        store.resolve_container("")


def test_a_full_id_wins_over_longer_ids_that_begin_with_it(store: Store) -> None:
    for number in ("c1", "c12"):
        store.put_container(replace(CONTAINER, id=number, config=replace(CONTAINER.config, name=number)))
    assert store.resolve_container("c1").id == "c1"


def test_the_pod_uid_label_is_an_index(store: Store) -> None:
    store.put_container(CONTAINER)
    assert store.list_sandboxes(pod_uid="u-1") == [SANDBOX]
    assert store.list_containers(pod_uid="u-1") == [CONTAINER]
    assert store.list_containers(SANDBOX.id, pod_uid="u-2") == []
    store.remove_sandbox(SANDBOX.id)
    assert store.list_sandboxes(pod_uid="u-1") == [] and store.list_containers(pod_uid="u-1") == []


def test_lists_stay_in_the_order_of_creation(store: Store, tmp_path: Path) -> None:
    names = ["zz", "aa", "mm"]
    for number, name in enumerate(names):
        config = replace(CONTAINER.config, name=name)
        store.put_container(replace(CONTAINER, id=name, config=config, created_at_ns=number))
    store.update_container("zz", lambda old: replace(old, pid=1))
    for each in (store, reloaded(tmp_path)[0]):
        assert [container.id for container in each.list_containers()] == names
        assert [container.id for container in each.list_containers(pod_uid="u-1")] == names


def test_a_creation_that_did_not_end_is_found_after_a_restart(store: Store, tmp_path: Path) -> None:
    store.reserve_container(RESERVATION)
    assert store.find_container((SANDBOX.id, "app", 1)) is None
    again, report = reloaded(tmp_path)
    assert report.unfinished == (RESERVATION,)
    with pytest.raises(AlreadyExists):
        again.reserve_container(replace(RESERVATION, id="other"))
    again.release_container(CONTAINER.id)
    again.reserve_container(replace(RESERVATION, id="other"))


def test_a_status_ends_its_reservation(store: Store, tmp_path: Path) -> None:
    store.reserve_container(RESERVATION)
    store.put_container(CONTAINER)
    assert reloaded(tmp_path)[1].unfinished == ()
    assert sorted(path.name for path in container_file(tmp_path).parent.iterdir()) == [f"{CONTAINER.id}.json"]


def test_removing_a_sandbox_leaves_no_file_but_those_of_others(store: Store, tmp_path: Path) -> None:
    store.put_container(CONTAINER)
    store.reserve_container(replace(RESERVATION, id="r", config=replace(CONTAINER.config, name="r")))
    foreign = tmp_path / "sandboxes" / SANDBOX.id / "monitor.sock"
    foreign.touch()
    store.remove_sandbox(SANDBOX.id)
    assert [path.name for path in (tmp_path / "sandboxes" / SANDBOX.id).iterdir()] == ["monitor.sock"]
    store.put_sandbox(SANDBOX)
    foreign.unlink()
    store.remove_sandbox(SANDBOX.id)
    assert list((tmp_path / "sandboxes").iterdir()) == []


def test_records_of_another_boot_are_told(store: Store, tmp_path: Path) -> None:
    assert reloaded(tmp_path, boot_id="another")[1].other_boot == {SANDBOX.id}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "not JSON"),
        (b"[]", "not a record of a container"),
        (b'{"version": 99, "container": {}}', "version 99"),
        (b'{"version": 1, "container": {"colour": 1}}', "container.colour: unknown field"),
    ],
)
def test_a_damaged_file_is_reported_and_the_rest_is_loaded(
    store: Store, tmp_path: Path, text: bytes, problem: str
) -> None:
    store.put_container(CONTAINER)
    container_file(tmp_path).write_bytes(text)
    again, report = reloaded(tmp_path)
    assert again.list_sandboxes() == [SANDBOX] and again.list_containers() == []
    (damaged,) = report.damaged
    assert problem in damaged.problem and damaged.sandbox_id == SANDBOX.id
    assert container_file(tmp_path).read_bytes() == text


def test_a_record_under_a_foreign_name_is_reported(store: Store, tmp_path: Path) -> None:
    store.put_container(CONTAINER)
    container_file(tmp_path).rename(container_file(tmp_path).with_name("x.json"))
    again, report = reloaded(tmp_path)
    assert again.list_containers() == [] and "record of container" in report.damaged[0].problem


def test_a_container_without_its_sandbox_is_reported(store: Store, tmp_path: Path) -> None:
    store.put_container(CONTAINER)
    (tmp_path / "sandboxes" / SANDBOX.id / "sandbox.json").unlink()
    again, report = reloaded(tmp_path)
    assert again.list_containers() == [] and "without a record" in report.damaged[0].problem


def test_a_temporary_file_of_a_crash_is_cleared(store: Store, tmp_path: Path) -> None:
    left = tmp_path / "sandboxes" / SANDBOX.id / ".sandbox.json.tmp"
    left.write_bytes(b"{")
    assert reloaded(tmp_path)[1] == LoadReport()
    assert not left.exists()


def test_a_full_state_directory_changes_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store.subscribe(lambda *change: pytest.fail("published"))
    monkeypatch.setattr("crishim.store.records.os.rename", refuse)
    with pytest.raises(Exhausted, match="No space left"):
        store.put_container(CONTAINER)
    with pytest.raises(Exhausted):
        store.update_sandbox(SANDBOX.id, lambda old: replace(old, ips=()))
    assert store.list_containers() == [] and store.get_sandbox(SANDBOX.id) == SANDBOX
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("bad", ["", "../x", "a/b", "a.b", ".x", "x" * 129])
def test_an_id_cannot_become_a_path(store: Store, bad: str) -> None:
    with pytest.raises(InvalidSpec):
        store.put_sandbox(replace(SANDBOX, id=bad, config=replace(SANDBOX.config, name="n")))


def test_a_record_carries_version_and_boot(store: Store, tmp_path: Path) -> None:
    record = json.loads((tmp_path / "sandboxes" / SANDBOX.id / "sandbox.json").read_text())
    assert (record["version"], record["boot_id"]) == (1, BOOT)


def test_the_boot_id_is_that_of_the_kernel() -> None:
    assert len(current_boot_id()) == 36 and current_boot_id() == current_boot_id()


@pytest.mark.parametrize(
    ("change", "newer"),
    [
        (lambda record: record.update(version=2), True),
        (lambda record: record["sandbox"]["config"].update(colour="red"), True),
        (lambda record: record.update(version=0), False),
        (lambda record: record.update(version="2"), False),
        (lambda record: record["sandbox"].pop("id"), False),
    ],
)
def test_what_a_newer_version_wrote_is_told_from_damage(
    change: Callable[[dict[str, Any]], object], newer: bool, tmp_path: Path
) -> None:
    Records(tmp_path, BOOT).write_sandbox(SANDBOX)
    path = tmp_path / f"sandboxes/{SANDBOX.id}/sandbox.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    (damaged,) = Records(tmp_path, BOOT).read_all().damaged
    assert (damaged.path, damaged.newer) == (str(path), newer)
