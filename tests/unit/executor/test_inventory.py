"""What the role that lists a node makes of files; the kernel's side is in the integration tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from crishim.executor import inventory
from crishim.model.process import CgroupSpec, ContainerSpec, ProcessSpec, RootFs
from crishim.runtime.places import Places

ZYGOTE, MONITOR, STRAY = 10, 20, 30


def request(directory: Path) -> dict[str, object]:
    return {
        "cgroup_pods": b"/crishim-no-such.slice/pods",
        "cgroup_monitors": b"/crishim-no-such.slice/monitors",
        "cgroup_parents": [],
        "zygote": ZYGOTE,
        "monitors": [],
        "netns_prefix": b"crishim-no-such",
        "state": os.fsencode(directory / "state"),
        "root": os.fsencode(directory / "root"),
    }


def make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_a_node_without_anything_is_empty_and_no_problem(tmp_path: Path) -> None:
    answer = inventory.inventory(request(tmp_path), [])
    assert {key: value for key, value in answer.items() if value} == {}


def test_what_lies_in_the_directories_is_listed(tmp_path: Path) -> None:
    state, root = tmp_path / "state", tmp_path / "root"
    for name in ("specs/c1", "stops/c1", "exits/c2", "exits/c3.new", "specs/.c4.tmp", "monitor.sock"):
        make(state / "sandboxes/s1" / name)
    make(state / "filters/f1")
    make(root / "containers/c1/upper/x")
    make(root / "layers/new-1/x")
    make(root / "images/partial/sha256-1")
    os.utime(root / "images/partial/sha256-1", ns=(5, 5))
    make(root / "images/spool/tmp1/x")
    make(root / "tmpabcdefgh")
    make(root / "tmp-of-somebody-else")
    answer: dict[str, Any] = inventory.inventory(request(tmp_path), [])
    assert answer["sandboxes"] == [[b"s1", True, [b"c1", b"c2"]]]
    assert (answer["filters"], answer["roots"], answer["layers"]) == ([b"f1"], [b"c1"], [b"new-1"])
    assert answer["blobs"] == [[b"partial", b"sha256-1", 5]]
    assert sorted(answer["spools"]) == [b"images/spool/tmp1", b"tmpabcdefgh"]


def test_a_part_that_cannot_be_read_is_none_with_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: bytes) -> list[bytes]:
        if path.endswith(b"/layers"):
            raise OSError(5, "Input/output error")
        return []

    monkeypatch.setattr(inventory.os, "listdir", broken)
    answer = inventory.inventory(request(tmp_path), [])
    assert (answer["layers"], answer["roots"]) == (None, [])
    assert answer["problems"] == ["the layers: input/output error"]


def test_filters_of_specs_are_found_as_they_are_written(tmp_path: Path) -> None:
    places = Places(tmp_path)
    places.make_sandbox("s1")
    hostile = ProcessSpec(args=('"filter_digest":"' + "0" * 64,), env=(), seccomp=b"\x06filter")
    spec = ContainerSpec("c1", hostile, RootFs(("/l",), "/u", "/w"), CgroupSpec("/p/c1"))
    places.write_spec("s1", spec)
    (digest,) = places.filters_in_use()
    assert inventory.filter_users({"sandboxes": os.fsencode(places.sandboxes)}, []) == {"used": [digest.encode()]}


@pytest.mark.parametrize(
    ("text", "expected"), [(b"/a", b"/a"), (rb"/a\040b\134", b"/a b\\"), (rb"/\303\244", "/ä".encode())]
)
def test_mount_points_are_unescaped(text: bytes, expected: bytes) -> None:
    assert inventory._unescaped(text) == expected


@pytest.mark.parametrize(
    ("name", "parents", "expected"),
    [
        (b"crishim-unpack", [ZYGOTE], True),  # a role
        (b"crishim-monitor", [MONITOR, ZYGOTE], True),  # a starter
        (b"sh", [40, ZYGOTE], True),  # what a role has started
        (b"crishim-monitor", [ZYGOTE], False),  # a monitor that we do not know
        (b"crishim-monitor", [STRAY, ZYGOTE], False),  # its starter
        (b"crishim-monitor", [1], False),
        (b"crishim-zygote", [1], False),
    ],
)
def test_who_descends_from_us_is_at_work(
    name: bytes, parents: list[int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {STRAY: b"crishim-monitor", 40: b"crishim-sources"}
    above = dict(zip(parents, [*parents[1:], 1]))
    monkeypatch.setattr(inventory, "_stat", lambda pid: (names[pid], b"S", above[pid], 0))
    assert inventory._is_at_work(name, parents[0], ZYGOTE, {MONITOR}) is expected
