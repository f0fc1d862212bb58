from __future__ import annotations

import json
from pathlib import Path

import pytest

from crishim.model.leftover import Finding, LeftoverKind, Outcome
from crishim.runtime.garbage.ledger import FIRST_PAUSE_S, LONGEST_PAUSE_S, Ledger

PIN = Finding(LeftoverKind.NETNS, "/run/netns/crishim-1", "1", "its sandbox does not exist")
ROOT = Finding(LeftoverKind.ROOTFS, "/root/containers/2", "2", "its container does not exist")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "leftovers.json"


def steady(path: Path) -> Ledger:
    """Whose pauses are neither longer nor shorter."""
    return Ledger(path, jitter=lambda: 0.5)


def test_what_two_looks_saw_is_certain(path: Path) -> None:
    ledger = steady(path)
    assert ledger.see([PIN], 1) == []
    assert [(each.finding, each.since_ns) for each in ledger.see([PIN, ROOT], 2)] == [(PIN, 1)]
    assert [(each.finding, each.since_ns) for each in ledger.see([PIN, ROOT], 3)] == [(PIN, 1), (ROOT, 2)]


def test_what_was_away_once_begins_anew(path: Path) -> None:
    ledger = steady(path)
    ledger.see([PIN], 1)
    ledger.see([], 2)
    assert ledger.see([PIN], 3) == []


def test_at_a_start_one_look_is_certain(path: Path) -> None:
    assert [each.finding for each in steady(path).see([PIN], 1, certain=True)] == [PIN]


def test_each_failure_makes_the_pause_twice_as_long_up_to_the_longest(path: Path) -> None:
    ledger = steady(path)
    ledger.see([PIN], 1, certain=True)
    pauses = [ledger.failed(PIN, "busy", 1000.0).rests_until_s - 1000.0 for _ in range(9)]
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S


@pytest.mark.parametrize(("dice", "part"), [(0.0, 0.8), (1.0, 1.2)])
def test_pauses_are_spread(path: Path, dice: float, part: float) -> None:
    ledger = Ledger(path, jitter=lambda: dice)
    ledger.see([PIN], 1, certain=True)
    assert ledger.failed(PIN, "busy", 0.0).rests_until_s == pytest.approx(FIRST_PAUSE_S * part)


def test_the_story_goes_on_after_a_restart_and_all_may_be_tried_at_once(path: Path) -> None:
    ledger = steady(path)
    ledger.see([PIN], 1, certain=True)
    ledger.failed(PIN, "busy", 1000.0)
    (entry,) = steady(path).see([PIN], 99)
    assert (entry.since_ns, entry.attempts, entry.error, entry.rests_until_s) == (1, 1, "busy", 0.0)
    assert entry.told(Outcome.FAILED).kind == "netns"


def test_nothing_is_written_while_nothing_is_wrong(path: Path) -> None:
    ledger = steady(path)
    ledger.see([], 1)
    ledger.see([PIN], 2)
    assert not path.exists()


def test_what_is_freed_is_forgotten_on_disk_too(path: Path) -> None:
    ledger = steady(path)
    ledger.see([PIN], 1, certain=True)
    ledger.freed(PIN)
    assert ledger.entries() == []
    assert json.loads(path.read_text()) == {"leftovers": []}
    assert ledger.see([PIN], 2) == [], "it is another one now"


def test_what_could_not_be_looked_at_is_neither_forgotten_nor_tried(path: Path) -> None:
    ledger = steady(path)
    ledger.see([PIN, ROOT], 1, certain=True)
    ledger.failed(ROOT, "the disk hangs", 0.0)
    assert [each.finding for each in ledger.see([PIN], 2, blind={LeftoverKind.ROOTFS})] == [PIN]
    assert {each.finding for each in ledger.entries()} == {PIN, ROOT}
    (entry,) = [each for each in ledger.see([PIN, ROOT], 3) if each.finding == ROOT]
    assert (entry.attempts, entry.since_ns) == (1, 1)


def test_of_a_kind_that_could_not_be_looked_at_nothing_new_is_believed(path: Path) -> None:
    ledger = steady(path)
    for now_ns in range(3):
        assert ledger.see([ROOT], now_ns, blind={LeftoverKind.ROOTFS}) == []
    assert ledger.entries() == []


def test_what_is_missing_is_said_once_as_long_as_it_is(path: Path) -> None:
    missing = Finding(LeftoverKind.NETNS, "/run/netns/crishim-1", "1", "gone", missing=True)
    ledger = steady(path)
    ledger.see([missing], 1, certain=True)
    assert [ledger.say(missing), ledger.say(missing)] == [True, False]
    ledger.see([], 2)
    ledger.see([missing], 3, certain=True)
    assert ledger.say(missing)


@pytest.mark.parametrize("text", [b"", b"{", b'{"leftovers": [{"finding": {}}]}', b'{"leftovers": 7}'])
def test_a_damaged_file_is_ignored(path: Path, text: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(text)
    assert steady(path).entries() == []
    assert "leftovers.json is ignored" in caplog.text


def test_a_disk_that_takes_no_file_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = steady(tmp_path / "missing" / "leftovers.json")
    assert len(ledger.see([PIN], 1, certain=True)) == 1
    assert "cannot be written" in caplog.text
