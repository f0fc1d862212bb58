"""What is relabelled for a container, and what is said when it cannot be. The role itself is a fake."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from crishim.errors import CrishimError, InvalidSpec, TimedOut, Unavailable
from crishim.model.container import ContainerConfig, Mount
from crishim.model.process import CgroupSpec, ContainerSpec, MountSpec, ProcessSpec, RootFs
from crishim.runtime.relabel import label_layers, relabel
from crishim.runtime.settings import Settings
from crishim.runtime.volumes import Volumes

LABEL = "system_u:object_r:container_file_t:s0:c1,c2"
RO = "system_u:object_r:container_ro_file_t:s0"
SPEC = ContainerSpec("c", ProcessSpec(("a",)), RootFs(path="/r"), CgroupSpec("/c"), mount_label=LABEL)
CONFIG = ContainerConfig(
    "main",
    mounts=(
        Mount("/plain", "/srv/plain"),
        Mount("/own", "/srv/own", selinux_relabel=True),
        Mount("/image", image="i", selinux_relabel=True),
    ),
)
SETTINGS = cast(Settings, SimpleNamespace(root_dir="/root/dir", state_dir="/state/dir", make_missing_sources=True))


class Role:
    """In the place of the executor: answers once, or fails."""

    def __init__(self, answer: dict[str, object] | CrishimError) -> None:
        self.answer = answer
        self.requests: list[Mapping[str, Any]] = []

    async def run_role(
        self, role: str, request: Mapping[str, object], fds: Sequence[int] = (), timeout_s: float = 60.0
    ) -> dict[str, object]:
        assert role == "relabel"
        self.requests.append(request)
        if isinstance(self.answer, CrishimError):
            raise self.answer
        return self.answer


def run(role: Role, spec: ContainerSpec = SPEC, volumes: Volumes | None = None) -> Role:
    asyncio.run(relabel(cast(Any, role), SETTINGS, spec, CONFIG, volumes or Volumes({})))
    return role


def test_mounts_that_want_it_and_volumes_of_the_image_are_labelled_in_one_go() -> None:
    volumes = Volumes({}, (MountSpec("/data", source="/root/dir/containers/c/volumes/0"),))
    (request,) = run(Role({"labelled": 3}), volumes=volumes).requests
    assert request["paths"] == [b"/srv/own", b"/root/dir/containers/c/volumes/0"]
    assert request["ours"] == [False, True]
    assert request["label"] == LABEL.encode()
    assert {b"/etc", b"/usr", b"/root/dir", b"/state/dir"} <= set(request["trees"])
    assert b"/var/lib" in request["exact"]


def test_a_container_without_labels_or_without_such_mounts_needs_no_process() -> None:
    assert run(Role({}), replace(SPEC, mount_label=None)).requests == []
    bare = ContainerConfig("main", mounts=CONFIG.mounts[:1])
    role = Role({})
    asyncio.run(relabel(cast(Any, role), SETTINGS, SPEC, bare, Volumes({})))
    assert role.requests == []


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (
            {"index": 0, "refused": b"/etc"},
            InvalidSpec,
            r"^config\.mounts\[1\]\.selinux_relabel: '/srv/own' is '/etc', a directory of the host",
        ),
        (
            {"index": 0, "errno": errno.EROFS, "path": b"/srv/own/file"},
            InvalidSpec,
            r"^config\.mounts\[1\]\.selinux_relabel: '/srv/own': labelling '/srv/own/file': read-only file system$",
        ),
        (TimedOut("late"), TimedOut, r"^selinux_relabel: labelling config\.mounts\[1\] \('/srv/own'\) did not end"),
    ],
)
def test_what_cannot_be_labelled_is_said_with_its_mount(
    answer: dict[str, object] | CrishimError, kind: type[CrishimError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        run(Role(answer))


@pytest.fixture
def attributes(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    found: dict[str, bytes] = {}

    def get(path: str, name: str) -> bytes:
        if path not in found:
            raise OSError(errno.ENODATA, "none")
        return found[path]

    monkeypatch.setattr(os, "getxattr", get)
    monkeypatch.setattr(os, "setxattr", lambda path, name, value: found.update({path: value}))
    return found


def test_layers_are_labelled_once_and_their_directory_last(tmp_path: Path, attributes: dict[str, bytes]) -> None:
    (tmp_path / "1").mkdir()
    role = Role({"labelled": 1})
    asyncio.run(label_layers(cast(Any, role), str(tmp_path), RO))
    (request,) = role.requests
    assert (request["paths"], request["ours"], request["label"]) == ([os.fsencode(tmp_path / "1")], [True], RO.encode())
    assert attributes == {str(tmp_path): RO.encode()}
    asyncio.run(label_layers(cast(Any, role), str(tmp_path), RO))
    assert len(role.requests) == 1


def test_layers_that_were_not_all_labelled_are_labelled_at_the_next_start(
    tmp_path: Path, attributes: dict[str, bytes]
) -> None:
    (tmp_path / "1").mkdir()
    failed = Role({"index": 0, "errno": errno.EIO, "path": b"/layers/1/x"})
    with pytest.raises(Unavailable, match="'/layers/1/x' cannot be labelled"):
        asyncio.run(label_layers(cast(Any, failed), str(tmp_path), RO))
    assert attributes == {}


def test_a_store_without_layers_needs_no_process(tmp_path: Path, attributes: dict[str, bytes]) -> None:
    role = Role({})
    asyncio.run(label_layers(cast(Any, role), str(tmp_path), RO))
    assert role.requests == [] and attributes == {str(tmp_path): RO.encode()}
    with pytest.raises(Unavailable, match="no such file"):
        asyncio.run(label_layers(cast(Any, role), str(tmp_path / "missing"), RO))
