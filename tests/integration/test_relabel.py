"""Volumes that are relabelled, on the real kernel: what is mounted in them, and what is swapped while they are walked.

Any kernel keeps the attribute that holds a label; a test on a node under QEMU has SELinux itself.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from crishim.executor.relabel import relabel
from crishim.linux.selinux import ATTRIBUTE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="labels are set by root")

LABEL = "system_u:object_r:container_file_t:s0:c1,c2"
_MOUNTED = """
import os, subprocess, sys
from crishim.executor.relabel import relabel
volume, outside = sys.argv[1:]
subprocess.run(["mount", "--bind", outside, f"{volume}/mounted"], check=True)
subprocess.run(["mount", "--bind", f"{outside}/file", f"{volume}/file"], check=True)
request = {"paths": [volume.encode()], "ours": [False], "exact": [], "trees": [], "make": False}
print(relabel({**request, "label": b"system_u:object_r:container_file_t:s0:c1,c2"}, []))
"""


def label_of(path: Path) -> str:
    try:
        return os.getxattr(path, ATTRIBUTE, follow_symlinks=False).decode()
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
        return ""


def volume_and_outside(directory: Path) -> tuple[Path, Path]:
    volume, outside = directory / "volume", directory / "outside"
    (volume / "mounted").mkdir(parents=True)
    (outside / "inner").mkdir(parents=True)
    for place in (volume, outside, outside / "inner"):
        (place / "file").write_text("x")
    return volume, outside


def test_what_is_mounted_in_a_volume_keeps_its_label(tmp_path: Path) -> None:
    volume, outside = volume_and_outside(tmp_path)
    command = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        sys.executable,
        "-c",
        _MOUNTED,
        str(volume),
        str(outside),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "{'labelled': 1}\n", (done.stdout, done.stderr)
    assert label_of(volume) == LABEL
    assert [label_of(each) for each in (outside, outside / "file", volume / "mounted", volume / "file")] == [""] * 4


def test_links_that_are_swapped_in_while_a_volume_is_walked_lead_nowhere(tmp_path: Path) -> None:
    volume, outside = volume_and_outside(tmp_path)
    for number in range(50):
        (volume / f"d{number}/inner").mkdir(parents=True)
        (volume / f"d{number}/inner/file").touch()
    link = tmp_path / "link"
    link.symlink_to(outside)
    stop = threading.Event()

    def swap() -> None:
        number = 0
        while not stop.is_set():
            place, aside = volume / f"d{number % 50}", tmp_path / "aside"
            place.rename(aside)
            link.rename(place)
            place.rename(link)
            aside.rename(place)
            number += 1

    attacker = threading.Thread(target=swap)
    attacker.start()
    request: dict[str, object] = {
        "paths": [os.fsencode(volume)],
        "ours": [False],
        "exact": [],
        "trees": [],
        "make": False,
    }
    try:
        for turn in range(100):
            answer = relabel({**request, "label": f"{LABEL}-{turn}".encode()}, [])
            assert "labelled" in answer, answer
    finally:
        stop.set()
        attacker.join()
    assert [label_of(each) for each in (outside, outside / "file", outside / "inner", outside / "inner/file")] == [
        ""
    ] * 4
