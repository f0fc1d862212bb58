"""Image volumes of a real server: what is seen of the image, that it cannot be written, how long it is held."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crishim.cri.client import messages as m
from crishim.errors import CrishimError, InvalidSpec, NotFound
from tests.support.faults import server_with_image
from tests.support.image_archive import write_layers
from tests.support.layers import archive, directory, entry, symlink
from tests.support.server import NEEDS_SERVER, Server, container_config

pytestmark = pytest.mark.skipif(not NEEDS_SERVER, reason="a server needs root, nsenter and ip")

PROGRAM = (entry("run", mode=0o755), b"#!/bin/sh\necho it ran\n")
LOWER = [
    directory("dir"),
    ("dir/below", b"from below\n"),
    ("dir/covered", b"old\n"),
    ("gone", b"gone\n"),
    symlink("away", "/dir"),
    symlink("out", "../../../../../../etc"),
    directory("etc"),
    ("etc/hostname", b"of the image\n"),
]
UPPER = [("dir/covered", b"new\n"), (".wh.gone", b"")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server_with_image(tmp_path_factory.mktemp("volumes") / "node") as server:
        yield server


@pytest.fixture(scope="module")
def pod(server: Server) -> tuple[str, Any]:
    return server.run_pod("shared")


@pytest.fixture
def data(server: Server) -> str:
    """Id of an image of two layers."""
    return load(server, "data", LOWER, UPPER)


def load(server: Server, name: str, *layers: Any) -> str:
    path = write_layers(server.directory / f"{name}.tar", f"crishim.local/{name}:1", [archive(each) for each in layers])
    return str(server.client.load(str(path)).images[0].id)


def volume(image: str, path: str = "/data", sub_path: str = "", **fields: Any) -> Any:
    fields = {"readonly": True, **fields}
    return m.Mount(container_path=path, image=m.ImageSpec(image=image), image_sub_path=sub_path, **fields)


def running(server: Server, pod: tuple[str, Any], name: str, *mounts: Any) -> str:
    container = server.create_config(*pod, container_config("sleep", "1000", name=name, mounts=mounts))
    server.start_container(container)
    return container


def test_a_container_sees_the_whole_image_and_cannot_write_to_it(
    server: Server, pod: tuple[str, Any], data: str
) -> None:
    container = running(server, pod, "whole", volume(data))
    assert server.sh(container, "cat /data/dir/below /data/dir/covered; ls /data") == (
        "from below\nnew\naway\ndir\netc\nout\n"
    )
    refused = server.exec(container, "touch", "/data/dir/x")
    assert refused.exit_code != 0 and b"Read-only file system" in refused.stderr
    line = server.sh(container, "grep ' /data ' /proc/self/mounts")
    assert {"ro", "nosuid", "nodev"} <= set(line.split()[3].split(",")) and "noexec" not in line
    server.remove(container)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_program_of_the_image_runs_unless_the_mount_says_noexec(
    server: Server, pod: tuple[str, Any], layers: int
) -> None:
    image = load(server, f"tools{layers}", [PROGRAM], *[[("more", b"")]] * (layers - 1))
    mounts = [volume(image), volume(image, "/inert", mount_options=["noexec"])]
    container = running(server, pod, f"tools{layers}", *mounts)
    assert server.sh(container, "/data/run") == "it ran\n"
    refused = server.exec(container, "sh", "-c", "/inert/run")
    assert refused.exit_code == 126 and b"Permission denied" in refused.stderr
    server.remove(container)


@pytest.mark.parametrize(
    ("sub_path", "script", "said"),
    [
        ("dir", "ls /data", "below\ncovered\n"),
        ("dir/", "ls /data", "below\ncovered\n"),
        ("away", "ls /data", "below\ncovered\n"),
        ("dir/covered", "cat /data", "new\n"),
        ("out", "cat /data/hostname", "of the image\n"),
        ("out/hostname", "cat /data", "of the image\n"),
    ],
)
def test_a_sub_path_is_found_inside_the_image_whatever_its_links_say(
    server: Server, pod: tuple[str, Any], data: str, sub_path: str, script: str, said: str
) -> None:
    name = sub_path.replace("/", "-").strip("-")
    container = running(server, pod, name + str(len(sub_path)), volume(data, sub_path=sub_path))
    assert server.sh(container, script) == said
    assert server.exec(container, "sh", "-c", "echo > /data/x || echo > /data").exit_code != 0
    server.remove(container)


def test_one_layer_has_sub_paths_too(server: Server, pod: tuple[str, Any]) -> None:
    image = load(server, "single", LOWER)
    container = running(server, pod, "single", volume(image, sub_path="out/hostname"))
    assert server.sh(container, "cat /data") == "of the image\n"
    server.remove(container)


@pytest.mark.parametrize(
    ("layers", "sub_path", "kind", "why"),
    [
        (2, "gone", NotFound, "the image has nothing there"),
        (2, "dir/missing", NotFound, "the image has nothing there"),
        (1, "dir/missing", NotFound, "the image has nothing there"),
        (2, "dir/below/x", InvalidSpec, "not a directory"),
        (2, "round", InvalidSpec, "too many levels of symbolic links"),
    ],
)
def test_a_sub_path_that_is_not_in_the_image_is_told_at_creation(
    server: Server, pod: tuple[str, Any], layers: int, sub_path: str, kind: type[CrishimError], why: str
) -> None:
    image = load(server, f"missing{layers}", *[[*LOWER, symlink("round", "round")], UPPER][:layers])
    mounts = [volume(image), volume(image, "/there", sub_path="dir"), volume(image, "/more", sub_path=sub_path)]
    sentence = rf"^ImageVolumeMountFailed: config.mounts\[2\].image_sub_path is '{sub_path}': {why}$"
    with pytest.raises(kind, match=sentence):
        server.create_config(*pod, container_config(name="missing", mounts=mounts))
    listed = server.client.runtime("ListContainers", m.ListContainersRequest()).containers
    assert "missing" not in {each.metadata.name for each in listed}
    assert not list((server.root / "containers").iterdir())


def test_what_cannot_be_is_refused_at_creation(server: Server, pod: tuple[str, Any], data: str) -> None:
    cases = [
        (volume("crishim.local/none:1"), NotFound, r"ImageVolumeMountFailed: config.mounts\[0\].image.image: .*none:1"),
        (volume(data, readonly=False), InvalidSpec, r"config.mounts\[0\].readonly"),
        (volume(data, sub_path="../etc"), InvalidSpec, "image_sub_path"),
        (volume(data, sub_path="/etc"), InvalidSpec, "image_sub_path"),
        (volume(data, host_path="/etc"), InvalidSpec, "host_path"),
        (volume(data, "/"), InvalidSpec, "container_path"),
        (volume(data, "/proc/sys"), InvalidSpec, "container_path"),
        (volume(data, propagation=m.PROPAGATION_BIDIRECTIONAL), InvalidSpec, "propagation"),
        (volume(data, mount_options=["suid"]), InvalidSpec, "mount_options"),
    ]
    for mount, kind, sentence in cases:
        with pytest.raises(kind, match=sentence):
            server.create_config(*pod, container_config(name="refused", mounts=[mount]))


def test_the_status_tells_the_digest_and_the_sub_path(server: Server, pod: tuple[str, Any], data: str) -> None:
    container = server.create_config(*pod, container_config(name="told", mounts=[volume(data, sub_path="dir")]))
    image = server.client.images("ImageStatus", m.ImageStatusRequest(image=m.ImageSpec(image=data))).image
    (mount,) = server.status(container).mounts
    assert mount.image.image == data and mount.image_sub_path == "dir" and mount.readonly and mount.host_path == ""
    assert mount.image.image_ref in (*image.repo_digests, image.id) and "sha256:" in mount.image.image_ref
    server.remove(container)


def layer_directories(server: Server) -> set[Path]:
    return set((server.root / "layers").iterdir())


def test_a_removed_image_stays_readable_where_it_is_mounted_and_goes_with_the_container(
    server: Server, pod: tuple[str, Any]
) -> None:
    before = layer_directories(server)
    image = load(server, "held", [("unique", b"held\n")], [("more", b"")])
    held = layer_directories(server) - before
    assert len(held) == 2
    mounts = [volume(image), volume(image, "/again", sub_path="unique")]
    container = server.create_config(*pod, container_config("sleep", "1000", name="held", mounts=mounts))
    server.client.images("RemoveImage", m.RemoveImageRequest(image=m.ImageSpec(image=image)))
    server.terminate()
    server.start()
    server.start_container(container)
    assert server.sh(container, "cat /data/unique /again") == "held\nheld\n"
    assert layer_directories(server) - before == held
    server.remove(container)
    assert layer_directories(server) == before
