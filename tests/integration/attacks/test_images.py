"""Images that attack the node: their layers, user files, volumes, labels and links."""

from __future__ import annotations

import ast
import json
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crishim.cri.client import messages as m
from crishim.errors import CrishimError, InvalidSpec
from crishim.images.manifests import parse_manifest
from tests.support.hostile import resident_bytes
from tests.support.image_archive import write_image
from tests.support.layers import archive, directory, entry, hardlink, snapshot, symlink, unpack
from tests.support.server import Server, container_config

Load = Callable[..., m.ImageSpec]

PASSWD = b"root:x:0:0:root:/root:/bin/sh\n1000:x:0:0:trap:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n"


def refused(call: Callable[[], object], *words: str) -> None:
    """The call is refused by a sentence with all these words."""
    with pytest.raises(InvalidSpec) as caught:
        call()
    for word in words:
        assert word in str(caught.value), caught.value


def end(server: Server, container: str) -> None:
    server.stop(container, timeout=0)
    server.remove(container)


def started(server: Server, sandbox: tuple[str, Any], image: m.ImageSpec, *command: str, **fields: Any) -> str:
    name = image.image.rpartition("/")[2].partition(":")[0]
    return server.started(*sandbox, *(command or ("sleep", "1000")), name=name, image=image, **fields)


def test_t01_a_number_is_never_a_name(server: Server, sandbox: tuple[str, Any], load_image: Load) -> None:
    """CVE-2016-3697: the image's passwd has a user called "1000", who is root.

    Defence: what reads as a number is an id; out of range it is an error, and wraps to nobody.
    """
    image = load_image("numbers", files={"/etc/passwd": PASSWD}, User="1000")
    by_name = container_config("sleep", "1000", name="by-name", image=image)
    by_name.linux.security_context.run_as_username = "1000"
    by_uid = container_config("sleep", "1000", name="by-uid", image=image)
    by_uid.linux.security_context.run_as_user.value = 1000
    by_image = container_config("sleep", "1000", name="by-image", image=image)
    for config in (by_name, by_uid, by_image):
        container = server.create_config(*sandbox, config)
        server.start_container(container)
        assert server.sh(container, "id -u") == "1000\n"
        end(server, container)


@pytest.mark.parametrize("user", ["4294967296", "-1", "4294967295", "0x0", "1000:", ":5", "1e3", "nobody:4294967296"])
def test_t01_t22_a_user_of_an_image_that_wraps_or_reads_in_two_ways_is_refused(
    server: Server, sandbox: tuple[str, Any], load_image: Load, user: str
) -> None:
    """CVE-2024-40635, CVE-2026-46680, CVE-2026-30892: as USER of an image."""
    image = load_image("wrapping", User=user)
    refused(
        lambda: server.create(*sandbox, name="wrapping", image=image), "group" if user.startswith("nobody") else "user"
    )


def test_t17_files_of_the_pod_do_not_follow_links_of_an_image(
    server: Server, sandbox: tuple[str, Any], load_image: Load, victim: Path
) -> None:
    """CVE-2025-24965: as T17 on the executor, with the files that a server makes for a pod."""
    names = ("hosts", "hostname", "resolv.conf", "mtab")
    links = {f"/etc/{name}": f"{victim}/{'file' if name == 'hosts' else name}" for name in names}
    links |= {"/run/.containerenv": str(victim / "file"), "/.dockerenv": str(victim / "file")}
    container = started(server, sandbox, load_image("linked", links=links))
    assert server.sh(container, "cat /etc/hostname") == "attacked\n"
    assert "localhost" in server.sh(container, "cat /etc/hosts")
    end(server, container)


def test_t31_a_layer_does_not_write_outside_of_its_directory(tmp_path: Path, victim: Path) -> None:
    """CVE-2021-32760, CVE-2025-47290: entries go through a link that the same layer made, to write, chmod and link.

    Defence: a layer is unpacked by a process whose root directory is the layer's.
    """
    layer = tmp_path / "layer"
    inside = str(victim).lstrip("/")
    members = [
        directory(inside),  # the same path exists inside, and takes what goes through the links
        symlink("absolute", str(victim)), ("absolute/written", b"w"), directory("absolute/sub", 0o777),
        symlink("climbing", "../" * 20 + inside), ("climbing/climbed", b"c"),
        symlink("file", str(victim / "file")), hardlink("alias", "file", mode=0o777, uid=5),
        entry("absolute/file", tarfile.FIFOTYPE, mode=0o777),
    ]  # fmt: skip
    assert "error" not in unpack(archive(members), layer)
    assert (layer / inside / "written").read_bytes() == b"w"
    assert (layer / inside / "climbed").exists()
    assert stat.S_ISFIFO((layer / inside / "file").lstat().st_mode)
    assert (layer / "alias").is_symlink()


@pytest.mark.parametrize(
    "members",
    [
        [("../escape", b"")],
        [("a/../../escape", b"")],
        [hardlink("a", "../../etc/passwd")],
        [hardlink("a", "/etc/passwd")],
        [("a/.wh...", b"")],
    ],
    ids=["name", "climbing-name", "climbing-link", "absolute-link", "whiteout"],
)
def test_t31_a_layer_that_names_what_is_outside_is_refused(tmp_path: Path, members: list[Any]) -> None:
    """The same without links: by names that climb."""
    reply = unpack(archive(members), tmp_path / "layer")
    assert reply["kind"] == "InvalidSpec"
    assert os.listdir(tmp_path) == ["layer"]
    assert snapshot(tmp_path / "layer").keys() <= {"a"}


@pytest.mark.parametrize(
    "config",
    [{"User": "u" * 7_000_000}, {"Labels": {f"{n:x}": "" for n in range(600_000)}}, {"Env": ["A=" + "x" * 7_000_000]}],
    ids=["user", "labels", "environment"],
)
def test_t52_a_configuration_that_is_large_for_everybody_is_refused(
    server: Server, tmp_path: Path, config: dict[str, Any]
) -> None:
    """A name of a user that each ListImages repeats: three such images, and the answer is more than a kubelet takes
    (16 MiB), so that it can neither list nor remove images any more. Or texts that take thirty times their size.

    Defence: what is kept of a configuration is bounded when the image comes.
    """
    path = write_image(tmp_path / "large.tar", "attacker.example/large:1", **config)
    refused(lambda: server.client.load(str(path)), "the image configuration has", "User" if "User" in config else "Env")
    listed = server.client.images("ListImages", m.ListImagesRequest())
    assert listed.ByteSize() < 1 << 16 and "attacker.example/large:1" not in str(listed)


def test_t50_a_manifest_that_reads_in_two_ways_is_refused() -> None:
    """CVE-2021-41190: a document that is index and manifest at once; who scans its digest may read the other image.

    Defence: such a document is refused. What it says of its own media type is not asked.
    """
    digest = "sha256:" + "a" * 64
    parts = {"manifests": [{"digest": digest, "size": 1}], "config": {"digest": digest, "size": 1}, "layers": []}
    for kinds in (("manifests", "config", "layers"), ("manifests", "layers"), ("manifests", "config")):
        body = json.dumps({"schemaVersion": 2, **{kind: parts[kind] for kind in kinds}}).encode()
        refused(lambda body=body: parse_manifest(body), "two ways")  # type: ignore[misc]


def test_t51_a_layer_is_not_unpacked_into_more_than_it_may_have(tmp_path: Path) -> None:
    """CVE-2023-25153 and its like: an image of a few bytes fills memory or disk of the node while it is unpacked.

    Defence: what one entry brings is bounded, and directories count that are only implied by names.
    """
    deep = [("/".join([str(number), *("d" * 50)]), b"") for number in range(4)]
    reply = unpack(archive(deep), tmp_path / "deep", max_entries=100)
    assert "more than 100 entries" in reply["error"] and reply["kind"] == "InvalidSpec"
    assert len(list((tmp_path / "deep").rglob("*"))) < 200


def test_t51_a_layer_does_not_keep_the_unpacker_busy_for_ever(tmp_path: Path) -> None:
    """The same with time: a directory is replaced by a link with each entry, so that all others are looked for anew.

    Defence: how often parents may be looked for is bounded by the number of entries.
    """
    deep = "/".join(["d"] * 100)
    again = [member for n in range(30) for member in (directory("x"), symlink("x", "d"), (f"{deep}/{n}", b""))]
    reply = unpack(archive(again), tmp_path / "again", max_entries=200)
    assert "again and again" in reply["error"] and reply["kind"] == "InvalidSpec"
    once = [directory("x"), symlink("x", "d"), *((f"{deep}/{n}", b"") for n in range(60))]
    assert "error" not in unpack(archive(once), tmp_path / "once", max_entries=200)


def test_t51_a_role_has_no_more_memory_than_its_bound() -> None:
    """The same by what nobody thought of: the process that meets the image is refused more memory by the kernel."""
    code = (
        "from crishim.images.roles import bound_memory, replying, MEMORY_BYTES\n"
        "bound_memory()\n"
        "print(replying(lambda: {'length': len(bytearray(MEMORY_BYTES // 2))}))\n"
        "print(replying(lambda: {'length': len(bytearray(MEMORY_BYTES))}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = map(ast.literal_eval, done.stdout.splitlines())
    assert first == {"length": 256 << 20}
    assert second == {"error": "not enough memory: it takes more than 512 MiB", "kind": "Exhausted"}


def test_t38_a_volume_of_an_image_copies_nothing_of_the_host(
    server: Server, sandbox: tuple[str, Any], load_image: Load, victim: Path
) -> None:
    """CVE-2022-23648: an image declares volumes whose paths climb, or pass links, and gets what the host has there.

    Defence: paths are taken inside the image's root, and the volumes are directories of our own. /proc stays procfs.
    """
    paths = ("/../../etc", f"/../../../..{victim}", "/proc", "/proc/self/attr", "/up/sub", "relative", "/\n/etc")
    files = {f"{victim}/sub/inside": b"of the image"}
    image = load_image("volumes", files=files, links={"/up": str(victim)}, Volumes={path: {} for path in paths})
    container = started(server, sandbox, image)
    assert server.sh(container, "stat -f -c %T /proc; grep -c ' /proc ' /proc/self/mounts").split() == ["proc", "1"]
    assert server.sh(container, "cat /etc/passwd").count("\n") == 3, "the image's own"
    assert server.sh(container, f"find {victim} /etc -type f | xargs grep -l precious; echo none") == "none\n"
    server.sh(container, f"echo changed > {victim}/file; mkdir -p /up/sub/made; rm -rf /up/sub/*; rm -f /etc/group")
    end(server, container)


def test_t46_huge_user_files_are_not_read(server: Server, sandbox: tuple[str, Any], load_image: Load) -> None:
    """CVE-2025-4437, CVE-2026-47262: user files of an image that fill the memory of whoever reads them.

    Defence: they are read up to a limit, by a child; numbers work without them, names are refused.
    """
    assert server.process is not None
    lines = b"".join(b"u%d:x:%d:0::/:/bin/sh\n" % (number, number) for number in range(2_000_000))
    members = b"staff:x:50:" + b"member," * 8_000_000 + b"\n"
    image = load_image("huge", files={"/etc/passwd": lines, "/etc/group": members})
    before = resident_bytes(server.process.pid)
    config = container_config(name="huge", image=image)
    config.linux.security_context.run_as_username = "u5"
    refused(lambda: server.create_config(*sandbox, config), "/etc/passwd", str(len(lines)))
    config.linux.security_context.run_as_username = ""
    config.linux.security_context.run_as_user.value = 5
    container = server.create_config(*sandbox, config)
    server.start_container(container)
    assert server.sh(container, "grep Groups /proc/self/status").split() == ["Groups:", "0"]
    assert resident_bytes(server.process.pid) - before < 16 << 20
    end(server, container)


def test_t46_a_user_file_that_says_to_be_huge_is_not_read(
    server: Server, sandbox: tuple[str, Any], tmp_path: Path, load_image: Load
) -> None:
    """The same as a link to what never ends: it is no regular file, and nobody opens it."""
    image = load_image("endless", links={"/etc/passwd": "/dev/zero", "/etc/group": "/proc/kmsg"})
    config = container_config(name="endless", image=image)
    config.linux.security_context.run_as_username = "root"
    with pytest.raises(CrishimError, match=r"/etc/passwd|'root' is not in"):
        server.create_config(*sandbox, config)


def test_t48_labels_of_an_image_steer_nothing(server: Server, sandbox: tuple[str, Any], load_image: Load) -> None:
    """CVE-2026-53488: labels of an image become labels of the runtime's own, and a command of root.

    Defence: the labels and annotations of a container are those of the request, and the executor is told neither.
    """
    steering = {
        "io.kubernetes.container.preStopHandler": '{"exec":{"command":["/bin/touch","/stopped"]}}',
        "io.cri-containerd.kind": "sandbox",
        "containerd.io/restart.logpath": "binary:///bin/touch?/tmp/steered",
        "org.criu.checkpoint.container.name": "restored",
        "crishim.privileged": "true",
        "io.kubernetes.pod.uid": "another",
    }
    image = load_image("labelled", Labels=steering)
    container = started(server, sandbox, image, labels={"mine": "1"})
    status = server.status(container)
    assert dict(status.labels) == {"mine": "1"} and dict(status.annotations) == {}
    spec = (server.state / "sandboxes" / sandbox[0] / "specs" / container).read_text()
    assert [
        word for item in steering.items() for word in item if word in spec and word not in ("sandbox", "true")
    ] == []
    assert server.exec(container, "mount", "-t", "tmpfs", "x", "/tmp").exit_code != 0
    end(server, container)
