"""What is written where for a class of service, in a directory that stands for resctrl: this machine has none."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from crishim.cgroups import resctrl

SCHEMATA = ["L3:0=0f;1=f0", "MB:0=50"]


def value(**changes: object) -> dict[str, object]:
    return {"group": "c1", "own": True, "schemata": [], "monitor": "", **changes}


def make_class(root: Path, name: str, schemata: str = "MB:0=100;1=100\nL3:0=fff;1=fff\n") -> Path:
    """A class as the kernel makes it."""
    (root / name / "mon_groups").mkdir(parents=True)
    (root / name / "schemata").write_text(schemata)
    (root / name / "tasks").touch()
    return root / name


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Making a class fills it, and removing one takes what the kernel made."""
    mkdir = os.mkdir

    def fill(path: bytes | Path, mode: int = 0o777) -> None:
        mkdir(path, mode)
        if not isinstance(path, bytes):  # the test's own
            return
        made = Path(os.fsdecode(path))
        (made / "tasks").touch()
        if made.parent == tmp_path:
            (made / "schemata").touch()
            mkdir(made / "mon_groups")

    def empty(path: bytes) -> None:
        for name in ("tasks", "schemata"):
            Path(os.fsdecode(path), name).unlink(missing_ok=True)
        if os.path.isdir(path + b"/mon_groups"):
            os_rmdir(path + b"/mon_groups")
        os_rmdir(path)

    os_rmdir = os.rmdir
    monkeypatch.setattr(os, "mkdir", fill)
    monkeypatch.setattr(os, "rmdir", empty)
    return tmp_path


def test_the_mount_point_is_that_of_the_table(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    sysfs = "22 1 0:21 / /sys rw - sysfs sysfs rw\n"
    table.write_text(sysfs + "30 22 0:27 / /sys/fs/resctrl rw,relatime - resctrl resctrl rw\n")
    assert resctrl.find(os.fsencode(table)) == b"/sys/fs/resctrl"
    table.write_text(sysfs)
    assert resctrl.find(os.fsencode(table)) == b""


def test_a_class_of_the_containers_own_has_its_schemata_and_goes_with_it(root: Path) -> None:
    wanted = value(schemata=SCHEMATA, monitor="c1")
    place = os.fsencode(root)
    resctrl.create(place, wanted)
    assert (root / "c1/schemata").read_text() == "L3:0=0f;1=f0\nMB:0=50\n"
    assert resctrl.task_files(place, wanted) == [place + b"/c1/tasks", place + b"/c1/mon_groups/c1/tasks"]
    assert all(os.path.exists(file) for file in resctrl.task_files(place, wanted))
    resctrl.remove(place, wanted)
    resctrl.remove(place, wanted)
    assert not (root / "c1").exists()


def test_a_class_of_the_administrator_has_to_be_there_and_stays(root: Path) -> None:
    named = value(group="gold", own=False)
    with pytest.raises(FileNotFoundError, match="there is no such class of service"):
        resctrl.create(os.fsencode(root), named)
    make_class(root, "gold")
    resctrl.create(os.fsencode(root), {**named, "monitor": "c1"})
    resctrl.remove(os.fsencode(root), {**named, "monitor": "c1"})
    assert os.listdir(root / "gold/mon_groups") == []
    assert (root / "gold").is_dir()


def test_a_class_that_is_there_must_have_the_schemata_asked_for(root: Path) -> None:
    named = value(group="gold", own=False, schemata=SCHEMATA)
    make_class(root, "gold", "    MB:0= 50;1=100\n    L3:0=00f;1=0f0\n")
    resctrl.create(os.fsencode(root), named)
    with pytest.raises(FileExistsError, match=re.escape("the class has other schemata than ['L3:0=1']")):
        resctrl.create(os.fsencode(root), {**named, "schemata": ["L3:0=1"]})


def test_a_class_that_is_not_there_is_made_with_its_schemata(root: Path) -> None:
    resctrl.create(os.fsencode(root), value(group="gold", own=False, schemata=SCHEMATA))
    assert (root / "gold/schemata").read_text().splitlines() == SCHEMATA


def test_schemata_that_are_refused_leave_no_class_and_the_kernels_own_words(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "info").mkdir()
    (root / "info/last_cmd_status").write_text("unknown resource 'L9'\n")

    def refuse(path: bytes, value: str) -> None:
        raise OSError(22, "Invalid argument", path)

    monkeypatch.setattr(resctrl, "write", refuse)
    with pytest.raises(OSError, match=r"schemata \['L9:0=1'\]: unknown resource 'L9'"):
        resctrl.create(os.fsencode(root), value(schemata=["L9:0=1"]))
    assert not (root / "c1").exists()
