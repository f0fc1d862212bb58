"""Mounts of the request on a real server: options, and read-only with or without what is mounted below."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crishim.cri.client import messages as m
from crishim.errors import InvalidSpec
from tests.support.faults import server_with_image
from tests.support.server import NEEDS_SERVER, Server, container_config

pytestmark = pytest.mark.skipif(not NEEDS_SERVER, reason="a server needs root, nsenter and ip")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server_with_image(tmp_path_factory.mktemp("mounts") / "node") as server:
        yield server


@pytest.fixture(scope="module")
def pod(server: Server) -> tuple[str, Any]:
    return server.run_pod("shared")


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A directory with a file system mounted at "below", a program and a device."""
    top = tmp_path / "tree"
    (top / "below").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(top / "below")], check=True)
    for place in (top, top / "below"):
        (place / "program").write_text("#!/bin/sh\necho it ran\n")
        (place / "program").chmod(0o755)
    os.mknod(top / "zero", 0o666 | 0o020000, os.makedev(1, 5))
    yield top
    subprocess.run(["umount", str(top / "below")], check=True)


def running(server: Server, pod: tuple[str, Any], name: str, mount: Any) -> str:
    container = server.create_config(*pod, container_config("sleep", "1000", name=name, mounts=[mount]))
    server.start_container(container)
    return container


def works(server: Server, container: str, script: str) -> bool:
    return bool(server.exec(container, "sh", "-c", script).exit_code == 0)


def test_the_features_say_what_mounts_can_do(server: Server) -> None:
    status = server.client.runtime("Status", m.StatusRequest())
    assert status.features.mount_options and status.features.supplemental_groups_policy
    assert all(each.features.recursive_read_only_mounts for each in status.runtime_handlers)


def test_without_options_everything_works(server: Server, pod: tuple[str, Any], tree: Path) -> None:
    container = running(server, pod, "plain", m.Mount(container_path="/m", host_path=str(tree)))
    for script in ("/m/program", "/m/below/program", "echo > /m/x", "echo > /m/below/x", "head -c1 /m/zero"):
        assert works(server, container, script), script
    server.remove(container)


@pytest.mark.parametrize(("option", "fails"), [("noexec", "/m/program"), ("nodev", "head -c1 /m/zero"), ("nosuid", "")])
def test_an_option_takes_away_what_it_names_and_nothing_else(
    server: Server, pod: tuple[str, Any], tree: Path, option: str, fails: str
) -> None:
    mount = m.Mount(container_path="/m", host_path=str(tree), mount_options=[option])
    container = running(server, pod, option, mount)
    for script in ("/m/program", "head -c1 /m/zero", "echo > /m/x"):
        assert works(server, container, script) is (script != fails), script
    assert option in server.sh(container, "grep ' /m ' /proc/self/mounts").split()[3].split(",")
    (told,) = server.status(container).mounts
    assert list(told.mount_options) == [option]
    server.remove(container)


def test_several_options_go_with_read_only(server: Server, pod: tuple[str, Any], tree: Path) -> None:
    options = ["noexec", "nodev", "nosuid"]
    mount = m.Mount(container_path="/m", host_path=str(tree), readonly=True, mount_options=options)
    container = running(server, pod, "all", mount)
    shown = set(server.sh(container, "grep ' /m ' /proc/self/mounts").split()[3].split(","))
    assert {"ro", *options} <= shown
    server.remove(container)


@pytest.mark.parametrize("recursive", [False, True])
def test_read_only_reaches_what_is_mounted_below_when_it_is_recursive(
    server: Server, pod: tuple[str, Any], tree: Path, recursive: bool
) -> None:
    mount = m.Mount(container_path="/m", host_path=str(tree), readonly=True, recursive_read_only=recursive)
    container = running(server, pod, f"ro{recursive}".lower(), mount)
    assert not works(server, container, "echo > /m/x")
    assert works(server, container, "echo > /m/below/x") is not recursive
    (told,) = server.status(container).mounts
    assert (told.readonly, told.recursive_read_only) == (True, recursive)
    server.remove(container)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mount_options": ["suid"]}, r"config.mounts\[0\].mount_options"),
        ({"mount_options": ["noexec,dev"]}, r"config.mounts\[0\].mount_options"),
        ({"recursive_read_only": True}, r"config.mounts\[0\].recursive_read_only needs readonly"),
        (
            {"recursive_read_only": True, "readonly": True, "propagation": m.PROPAGATION_HOST_TO_CONTAINER},
            r"config.mounts\[0\].recursive_read_only needs readonly and the propagation",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    server: Server, pod: tuple[str, Any], changes: dict[str, Any], sentence: str
) -> None:
    mount = m.Mount(container_path="/m", host_path="/tmp", **changes)
    with pytest.raises(InvalidSpec, match=sentence):
        server.create_config(*pod, container_config(name="refused", mounts=[mount]))
