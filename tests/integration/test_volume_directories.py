"""The VOLUME directories of images: what a real server makes of them, whose content they have, when they go."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crishim.cri.client import messages as m
from crishim.errors import InvalidSpec
from tests.support.image_archive import shell_layer, write_layers
from tests.support.layers import archive, directory, entry, hardlink, symlink
from tests.support.server import NEEDS_SERVER, Server, container_config, wait_until

pytestmark = pytest.mark.skipif(not NEEDS_SERVER, reason="a server needs root, nsenter and ip")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("declared") / "node")
    try:
        server.start()
        yield server
        for pod in server.client.runtime("ListPodSandbox", m.ListPodSandboxRequest()).items:
            server.remove_pod(pod.id)
        assert wait_until(lambda: not server.left_behind(), "an empty node")
    finally:
        server.close()


@pytest.fixture(scope="module")
def pod(server: Server) -> tuple[str, Any]:
    return server.run_pod("shared")


def load(server: Server, tmp_path: Path, name: str, members: Any, *volumes: str) -> str:
    config = {"Env": ["PATH=/bin"], "Volumes": {volume: {} for volume in volumes}}
    layers = [shell_layer({}, {}), archive(members)]
    path = write_layers(tmp_path / f"{name}.tar", f"crishim.local/{name}:1", layers, config)
    server.client.load(str(path))
    return f"crishim.local/{name}:1"


def create(server: Server, pod: tuple[str, Any], image: str, name: str, **changes: Any) -> str:
    config = container_config("sleep", "1000", name=name, image=m.ImageSpec(image=image), **changes)
    return server.create_config(*pod, config)


def started(server: Server, pod: tuple[str, Any], image: str, name: str, **changes: Any) -> str:
    container = create(server, pod, image, name, **changes)
    server.start_container(container)
    return container


def volumes_of(server: Server, container: str) -> Path:
    return server.root / "containers" / container / "volumes"


TREE = [
    directory("data", 0o2750, uid=7, gid=8, mtime=1_000_000_000),
    (entry("data/file", mode=0o4711, uid=1, gid=2, mtime=1_000_000_001), b"content\n"),
    hardlink("data/again", "data/file"),
    symlink("data/link", "/etc/shadow"),
    directory("data/deep", 0o700),
    ("data/deep/er", b"deeper\n"),
    (entry("data/attributes", pax_headers={"SCHILY.xattr.user.note": "kept"}), b""),
    entry("data/fifo", b"6", mode=0o600),
]


def test_a_volume_has_the_content_of_the_image_with_owners_modes_and_links(
    server: Server, pod: tuple[str, Any], tmp_path: Path
) -> None:
    image = load(server, tmp_path, "tree", TREE, "/data", "/new/place")
    container = started(server, pod, image, "tree")
    said = server.sh(container, "cd /data; stat -c '%n %a %u %g %h %Y' . file; readlink link; cat again deep/er; ls")
    assert said == (
        ". 2750 7 8 3 1000000000\nfile 4711 1 2 2 1000000001\n/etc/shadow\ncontent\ndeeper\n"
        "again\nattributes\ndeep\nfifo\nfile\nlink\n"
    )
    assert server.sh(container, "stat -c '%a %u' /new/place; ls /new/place") == "755 0\n"
    assert os.getxattr(volumes_of(server, container) / "0/attributes", "user.note") == b"kept"
    mounts = server.sh(container, "grep -E ' (/data|/new/place) ' /proc/self/mounts")
    assert mounts.count("\n") == 2 and "overlay" not in mounts and " ro" not in mounts

    other = started(server, pod, image, "other")
    server.sh(container, "echo mine > /data/file; rm -r /data/deep")
    assert server.sh(other, "cat /data/file /data/deep/er") == "content\ndeeper\n"
    for each in (container, other):
        assert volumes_of(server, each).is_dir()
        server.remove(each)
        assert not volumes_of(server, each).parent.exists()


def test_volumes_stay_over_a_restart_and_are_writable_in_a_read_only_root(
    server: Server, pod: tuple[str, Any], tmp_path: Path
) -> None:
    image = load(server, tmp_path, "kept", TREE, "/data")
    config = container_config("sleep", "1000", name="kept", image=m.ImageSpec(image=image))
    config.linux.security_context.readonly_rootfs = True
    container = server.create_config(*pod, config)
    server.kill()
    server.start()
    server.start_container(container)
    assert server.sh(container, "echo new > /data/x && cat /data/x /data/deep/er; touch /y 2>&1 || true") == (
        "new\ndeeper\ntouch: /y: Read-only file system\n"
    )
    server.remove(container)


def test_no_path_of_an_image_reaches_the_host(server: Server, pod: tuple[str, Any], tmp_path: Path) -> None:
    members = [
        directory("etc"),
        ("etc/mine", b"of the image\n"),
        symlink("up", "../../../../../../../etc"),
        symlink("kernel", "proc"),
        directory("proc"),
    ]
    volumes = (
        "/../../../etc",
        "/up/sub",
        "relative",
        "/",
        "/kernel",
        "/proc",
        "/proc/sys",
        "/sys/fs/cgroup",
        "/dev/shm",
    )
    image = load(server, tmp_path, "hostile", members, *volumes)
    container = started(server, pod, image, "hostile")
    made = sorted(path.name for path in volumes_of(server, container).iterdir())
    assert len(made) == 4, made
    contents = {
        str(path.relative_to(volumes_of(server, container))) for path in volumes_of(server, container).rglob("*")
    }
    assert not any("shadow" in path or "machine-id" in path for path in contents), contents
    assert server.sh(container, "cat /etc/mine; head -c4 /proc/self/comm; ls -d /relative /etc/sub") == (
        "of the image\nhead/etc/sub\n/relative\n"
    )
    mounted = [line.split()[1] for line in server.sh(container, "cat /proc/self/mounts").splitlines()]
    assert {"/etc", "/etc/sub", "/relative"} <= set(mounted)
    assert mounted.count("/proc") == 1 and mounted.count("/dev/shm") == 1
    server.remove(container)


@pytest.mark.parametrize(
    ("name", "members", "volume", "sentence"),
    [
        ("file", [("plain", b"")], "/plain", "'/plain' of the image: not a directory"),
        ("below", [("plain", b"")], "/plain/x", "'/plain/x' of the image: not a directory"),
        ("astray", [symlink("lost", "/nowhere")], "/lost", "'/lost' of the image is a link that leads nowhere"),
        ("loop", [symlink("loop", "/loop")], "/loop/x", "'/loop/x' of the image: too many levels"),
        ("long", [], "/" + "x" * 300, "x' of the image: file name too long"),
        ("nul", [], "/a\0b", "declares the volume '/a\\\\x00b', which is not a path"),
        ("many", [], [f"/v{number}" for number in range(129)], "the image declares 129 volumes, more than 128"),
    ],
)
def test_a_volume_that_cannot_be_is_named_and_leaves_nothing(
    server: Server, pod: tuple[str, Any], tmp_path: Path, name: str, members: Any, volume: Any, sentence: str
) -> None:
    volumes = volume if isinstance(volume, list) else [volume]
    image = load(server, tmp_path, name, members, *volumes)
    before = set((server.root / "containers").iterdir())
    with pytest.raises(InvalidSpec, match=sentence):
        create(server, pod, image, name)
    assert set((server.root / "containers").iterdir()) == before


def test_a_mount_of_the_request_takes_the_place_of_a_volume(
    server: Server, pod: tuple[str, Any], tmp_path: Path
) -> None:
    image = load(server, tmp_path, "covered", TREE, "/data", "/data/deep")
    host = tmp_path / "host"
    host.mkdir()
    (host / "from-host").write_text("")
    mount = m.Mount(container_path="/data/", host_path=str(host))
    container = started(server, pod, image, "covered", mounts=[mount])
    assert server.sh(container, "ls /data; cat /data/deep/er") == "deep\nfrom-host\ndeeper\n"
    server.remove(container)


def test_the_usage_of_a_container_counts_its_volumes(server: Server, pod: tuple[str, Any], tmp_path: Path) -> None:
    image = load(server, tmp_path, "usage", [directory("data"), ("data/x", b"x" * 200_000)], "/data")
    container = started(server, pod, image, "usage")

    def used() -> int:
        request = m.ContainerStatsRequest(container_id=container)
        return int(server.client.runtime("ContainerStats", request).stats.writable_layer.used_bytes.value)

    wait_until(lambda: used() >= 200_000, "the copy of the image in the usage", 60)
    server.sh(container, "dd if=/dev/zero of=/data/big bs=1M count=3 2>/dev/null")
    wait_until(lambda: used() >= (3 << 20) + 200_000, "what was written in the usage", 60)
    server.remove(container)


@pytest.mark.parametrize("mode", ["mkdir", "ignore"])
def test_volumes_can_be_plain_directories_or_nothing(
    server: Server, pod: tuple[str, Any], tmp_path: Path, mode: str
) -> None:
    image = load(server, tmp_path, mode, [symlink("away", "/target"), *TREE], "/data", "/new/place", "/away/inner")
    server.configure(f'[containers]\nimage_volumes = "{mode}"\n')
    server.reread()
    try:
        container = started(server, pod, image, mode)
        assert not volumes_of(server, container).exists()
        assert server.sh(container, "cat /data/deep/er; grep -c ' /data ' /proc/self/mounts || true") == "deeper\n0\n"
        made = server.sh(container, "ls -d /new/place /target/inner 2>/dev/null || true")
        assert made == ("/new/place\n/target/inner\n" if mode == "mkdir" else "")
        server.remove(container)
    finally:
        server.configure("")
        server.reread()
