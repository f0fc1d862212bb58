"""A pod from an image that was pulled from a real registry on loopback."""

from __future__ import annotations

import io
import os
import shutil
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crishim.cri.client import messages as m
from crishim.errors import CrishimError, Unavailable
from tests.support.registry import Registry, layer_tar, running_registry
from tests.support.server import Server, wait_until

BUSYBOX = shutil.which("busybox")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="a server needs root"),
    pytest.mark.skipif(shutil.which("docker-registry") is None, reason="docker-registry is not installed"),
    pytest.mark.skipif(BUSYBOX is None, reason="busybox is not installed"),
]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        assert BUSYBOX is not None
        users = b"root:x:0:0::/:/bin/sh\napp:x:7:8::/app:/bin/sh\n"
        base = layer_tar([("bin", None), ("etc", None), ("etc/passwd", users)])
        top = layer_tar([("etc", None), ("etc/greeting", b"hello from the registry\n")])
        config = {"User": "app", "Env": ["PATH=/bin", "FROM=image"], "Entrypoint": ["/bin/busybox"], "Cmd": ["true"]}
        registry.push_image("team/app", "1", [base, _programs(), top], config=config)
        yield registry


def _programs() -> bytes:
    assert BUSYBOX is not None
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo("bin/busybox")
        content = Path(BUSYBOX).read_bytes()
        member.mode, member.size = 0o755, len(content)
        archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("bin/sh")
        link.type, link.linkname = tarfile.LNKTYPE, "bin/busybox"
        archive.addfile(link)
    return out.getvalue()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    # the machine's network, for its loopback; its pod has the host's, so nothing of it is changed
    server = Server(tmp_path / "node", network="cni", config=f'[network.cni]\nconf_dir = "{tmp_path}/none"\n')
    try:
        yield server
    finally:
        server.close()


def pull(server: Server, reference: str) -> str:
    request = m.PullImageRequest(image=m.ImageSpec(image=reference))
    return str(server.client.images("PullImage", request).image_ref)


def image_status(server: Server, reference: str) -> Any:
    return server.client.images("ImageStatus", m.ImageStatusRequest(image=m.ImageSpec(image=reference))).image


def test_a_pod_runs_from_a_pulled_image(server: Server, registry: Registry) -> None:
    server.start()
    reference = f"{registry.host}/team/app:1"
    image_id = pull(server, reference)
    image = image_status(server, reference)
    assert image.id == image_id and image.size > 0 and image.username == "app"
    assert list(image.repo_tags) == [reference]
    sandbox, pod = server.run_pod("pulled", host_network=True)
    image_spec = m.ImageSpec(image=image_id, user_specified_image=reference)
    container = server.create(
        sandbox, pod, image=image_spec, command=[], args=["sh", "-c", "cat /etc/greeting; echo $FROM $HOME; sleep 1000"]
    )
    server.start_container(container)
    log = server.logs / "pulled/main/0.log"
    text = wait_until(lambda: log.read_text() if "image /app" in log.read_text() else "", "the output")
    assert " stdout F hello from the registry\n" in text
    assert server.exec(container, "/bin/busybox", "id", "-u").stdout == b"7\n"
    status = server.status(container)
    assert (status.image_id, status.image.image) == (image_id, reference)
    assert status.image_ref.startswith(f"{registry.host}/team/app@sha256:")
    server.client.images("RemoveImage", m.RemoveImageRequest(image=m.ImageSpec(image=reference)))
    assert not image_status(server, reference).id
    assert server.exec(container, "/bin/busybox", "true").exit_code == 0, "a removed image lives while it is used"
    server.stop(container, timeout=0)
    server.remove(container)
    server.remove_pod(sandbox)
    assert wait_until(lambda: not server.left_behind(), "an empty node")
    assert wait_until(lambda: not list((server.root / "layers").iterdir()), "the layers' end")


def test_a_pull_outlives_a_server_killed_when_it_was_done(server: Server, registry: Registry) -> None:
    server.start({"CRISHIM_CRASH_AT": "pull.done"})
    reference = f"{registry.host}/team/app:1"
    with pytest.raises(Unavailable):
        pull(server, reference)
    assert server.wait_ended() == -signal.SIGKILL
    server.start()
    assert image_status(server, reference).id, "what was committed is there"
    assert pull(server, reference) == image_status(server, reference).id


def test_a_registry_that_does_not_answer_is_named(server: Server) -> None:
    server.start()
    with pytest.raises(CrishimError, match=r"^RegistryUnavailable: .*127\.0\.0\.1:1"):
        pull(server, "127.0.0.1:1/team/app:1")
    conditions = server.client.runtime("Status", m.StatusRequest()).status.conditions
    assert {each.type: each.status for each in conditions} == {"RuntimeReady": True, "NetworkReady": False}
    with pytest.raises(Unavailable, match="network"):
        server.run_pod("needsnetwork")
