"""Requests that cannot be honoured: the code, a sentence with field and value, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crishim.cri.client import messages as m
from crishim.errors import (
    AlreadyExists,
    CrishimError,
    InvalidSpec,
    NotFound,
    TimedOut,
    Unsupported,
    WrongState,
)
from tests.support.faults import server_with_image
from tests.support.layers import archive as tar
from tests.support.layers import symlink
from tests.support.server import NEEDS_SERVER, Server, container_config, pod_config, wait_until

pytestmark = pytest.mark.skipif(not NEEDS_SERVER, reason="a server needs root, nsenter and ip")

UNKNOWN = "0" * 64


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server_with_image(tmp_path_factory.mktemp("bad") / "node") as server:
        yield server


@pytest.fixture(scope="module")
def pod(server: Server) -> tuple[str, Any]:
    return server.run_pod("victim")


def refused(call: Any, error: type[CrishimError], *words: str) -> str:
    """The sentence of a refusal; every word is in it."""
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error, caught.value
    sentence = str(caught.value)
    for word in words:
        assert word in sentence, sentence
    assert "Traceback" not in sentence
    return sentence


# -- unknown ids


def test_the_status_of_an_unknown_id_is_not_found(server: Server) -> None:
    refused(lambda: server.status(UNKNOWN), NotFound, UNKNOWN)
    request = m.PodSandboxStatusRequest(pod_sandbox_id=UNKNOWN)
    refused(lambda: server.client.runtime("PodSandboxStatus", request), NotFound, UNKNOWN)


def test_a_start_an_exec_and_a_reopen_of_an_unknown_container_are_not_found(server: Server) -> None:
    refused(lambda: server.start_container(UNKNOWN), NotFound, UNKNOWN)
    refused(lambda: server.exec(UNKNOWN, "true"), NotFound, UNKNOWN)
    reopen = m.ReopenContainerLogRequest(container_id=UNKNOWN)
    refused(lambda: server.client.runtime("ReopenContainerLog", reopen), NotFound, UNKNOWN)


def test_a_container_on_an_unknown_sandbox_is_not_found(server: Server) -> None:
    refused(lambda: server.create(UNKNOWN, pod_config("nobody", server.logs)), NotFound, UNKNOWN)


def test_stopping_and_removing_what_is_unknown_is_done(server: Server) -> None:
    server.stop(UNKNOWN)
    server.remove(UNKNOWN)
    server.stop_pod(UNKNOWN)
    server.remove_pod(UNKNOWN)
    server.client.images("RemoveImage", m.RemoveImageRequest(image=m.ImageSpec(image="nobody/nothing:1")))


def test_an_id_may_be_shortened_when_it_stays_the_only_one(server: Server, pod: tuple[str, Any]) -> None:
    status = server.client.runtime("PodSandboxStatus", m.PodSandboxStatusRequest(pod_sandbox_id=pod[0][:13])).status
    assert status.id == pod[0]


# -- names


def test_a_second_sandbox_of_an_identity_is_refused_and_named(server: Server, pod: tuple[str, Any]) -> None:
    refused(lambda: server.run_pod_config(pod[1]), AlreadyExists, "victim", pod[0])


def test_a_second_container_of_a_name_is_refused_and_named(server: Server, pod: tuple[str, Any]) -> None:
    first = server.create(*pod, name="twice")
    refused(lambda: server.create(*pod, name="twice"), AlreadyExists, "'twice'", first)
    server.remove(first)


def test_a_sandbox_needs_name_namespace_and_uid(server: Server) -> None:
    for field in ("name", "namespace", "uid"):
        config = pod_config("incomplete", server.logs)
        setattr(config.metadata, field, "")
        refused(lambda config=config: server.run_pod_config(config), InvalidSpec, field)


# -- images and commands


def test_a_missing_image_is_named(server: Server, pod: tuple[str, Any]) -> None:
    image = m.ImageSpec(image="crishim.local/missing:1")
    refused(lambda: server.create(*pod, image=image), NotFound, "crishim.local/missing:1")


@pytest.mark.parametrize("reference", ["lower/UPPER", "a b", "x@sha256:short", "../up", "http://host/image", ""])
def test_a_malformed_reference_is_shown(server: Server, reference: str) -> None:
    request = m.PullImageRequest(image=m.ImageSpec(image=reference))
    refused(lambda: server.client.images("PullImage", request), InvalidSpec, reference)


def test_a_command_that_is_not_in_the_image_fails_the_start(server: Server, pod: tuple[str, Any]) -> None:
    container = server.create(*pod, "/bin/missing", name="nocommand")
    sentence = refused(lambda: server.start_container(container), CrishimError, "/bin/missing")
    status = server.status(container)
    assert (status.state, status.reason, status.exit_code) == (m.CONTAINER_EXITED, "StartError", 128)
    assert status.message == sentence
    server.remove(container)


def test_a_start_of_what_was_started_is_refused(server: Server, pod: tuple[str, Any]) -> None:
    container = server.started(*pod, name="again")
    refused(lambda: server.start_container(container), WrongState, container, "RUNNING")
    server.stop(container, timeout=0)
    refused(lambda: server.start_container(container), WrongState, "EXITED")
    refused(lambda: server.exec(container, "true"), WrongState, container)
    server.remove(container)


def test_an_exec_of_a_missing_command_is_an_error(server: Server, pod: tuple[str, Any]) -> None:
    container = server.started(*pod, name="execmissing")
    refused(lambda: server.exec(container, "nosuchprogram"), CrishimError, "nosuchprogram")
    refused(lambda: server.exec(container), InvalidSpec, "cmd")
    server.stop(container, timeout=0)
    server.remove(container)


def test_an_exec_that_takes_too_long_is_a_deadline(server: Server, pod: tuple[str, Any]) -> None:
    container = server.started(*pod, name="slow")
    script = "setsid sh -c 'sleep 777 & sleep 778' & sleep 779"
    refused(lambda: server.exec(container, "sh", "-c", script, timeout=1), TimedOut, container)
    assert server.sh(container, "ps -o args | grep -c 'sleep 77[789]' || true").strip() == "0"
    server.stop(container, timeout=0)
    server.remove(container)


# -- paths


def test_a_relative_mount_path_is_refused(server: Server, pod: tuple[str, Any]) -> None:
    mount = m.Mount(container_path="relative", host_path="/tmp")
    refused(lambda: server.create(*pod, mounts=[mount]), InvalidSpec, "mounts[0].container_path", "relative")
    mount = m.Mount(container_path="/data", host_path="data")
    refused(lambda: server.create(*pod, mounts=[mount]), InvalidSpec, "mounts[0].host_path", "data")


def test_a_missing_host_path_becomes_a_directory(server: Server, pod: tuple[str, Any], tmp_path: Path) -> None:
    source = tmp_path / "made/for/it"
    mount = m.Mount(container_path="/data", host_path=str(source))
    container = server.started(*pod, name="missingpath", mounts=[mount])
    assert source.is_dir() and source.stat().st_mode & 0o777 == 0o755
    server.stop(container, timeout=0)
    server.remove(container)


def test_a_host_path_that_leads_nowhere_is_refused(server: Server, pod: tuple[str, Any], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    mount = m.Mount(container_path="/data", host_path=str(tmp_path / "link"))
    refused(lambda: server.create(*pod, mounts=[mount]), InvalidSpec, "mounts[0].host_path", str(tmp_path / "link"))


def test_a_working_directory_must_be_absolute(server: Server, pod: tuple[str, Any]) -> None:
    refused(lambda: server.create(*pod, working_dir="relative"), InvalidSpec, "working_dir", "relative")


# -- states


def test_a_container_on_a_stopped_sandbox_is_refused(server: Server) -> None:
    sandbox, config = server.run_pod("stopped")
    created = server.create(sandbox, config)
    server.stop_pod(sandbox)
    refused(lambda: server.create(sandbox, config, name="late"), WrongState, sandbox, "NOTREADY")
    refused(lambda: server.start_container(created), WrongState, sandbox, "NOTREADY")
    server.remove_pod(sandbox)


# -- security


def test_a_privileged_container_needs_a_privileged_sandbox(server: Server, pod: tuple[str, Any]) -> None:
    config = container_config(name="strong")
    config.linux.security_context.privileged = True
    refused(lambda: server.create_config(*pod, config), InvalidSpec, "privileged")


def test_a_group_without_a_user_is_refused(server: Server, pod: tuple[str, Any]) -> None:
    config = container_config(name="group")
    config.linux.security_context.run_as_group.value = 7
    refused(lambda: server.create_config(*pod, config), InvalidSpec, "run_as_group", "7")


def test_an_unknown_user_and_capability_are_named(server: Server, pod: tuple[str, Any]) -> None:
    config = container_config(name="who")
    config.linux.security_context.run_as_username = "stranger"
    refused(lambda: server.create_config(*pod, config), InvalidSpec, "stranger")
    config = container_config(name="cap")
    config.linux.security_context.capabilities.add_capabilities.append("FLY")
    refused(lambda: server.create_config(*pod, config), InvalidSpec, "add_capabilities", "FLY")


def test_a_missing_seccomp_profile_is_named(server: Server, pod: tuple[str, Any]) -> None:
    config = container_config(name="filter")
    profile = config.linux.security_context.seccomp
    profile.profile_type, profile.localhost_ref = m.SecurityProfile.Localhost, "/nowhere/profile.json"
    refused(lambda: server.create_config(*pod, config), InvalidSpec, "localhost_ref", "/nowhere/profile.json")


def test_an_unknown_runtime_handler_is_named(server: Server) -> None:
    request = m.RunPodSandboxRequest(config=pod_config("handler", server.logs), runtime_handler="gvisor")
    refused(lambda: server.client.runtime("RunPodSandbox", request), InvalidSpec, "gvisor")


def test_what_is_not_built_yet_is_unimplemented(server: Server) -> None:
    request = m.CheckpointContainerRequest(container_id=UNKNOWN, location="/nowhere")
    refused(lambda: server.client.runtime("CheckpointContainer", request), Unsupported)


# -- archives


def test_a_hostile_archive_is_refused(server: Server, tmp_path: Path) -> None:
    archive = tmp_path / "hostile.tar"
    archive.write_bytes(tar([symlink("blobs", "/etc"), ("blobs/passwd", b"root::0:0::/:/bin/sh\n")]))
    before = Path("/etc/passwd").read_bytes()
    refused(lambda: server.client.load(str(archive)), InvalidSpec)
    assert Path("/etc/passwd").read_bytes() == before
    refused(lambda: server.client.load(str(tmp_path / "missing.tar")), NotFound, "missing.tar")
    refused(lambda: server.client.load("relative.tar"), InvalidSpec, "relative.tar")


# -- the server itself


def test_a_second_server_on_a_state_directory_says_one_sentence(server: Server) -> None:
    command = [sys.executable, "-m", "crishim", "serve", "--config", str(server.directory / "config.toml")]
    command += ["--root", str(server.root), "--state", str(server.state), "--listen", server.address]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert second.stderr == f"crishim: another crishim server uses the state directory {server.state}\n"
    assert server.client.runtime("Version", m.VersionRequest()).runtime_name == "crishim"


def test_a_wrong_configuration_says_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('network.mode = "token-ring"\n')
    command = [sys.executable, "-m", "crishim", "serve", "--config", str(path)]
    started = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert started.returncode == 1
    sentence = f'configuration {path}: network.mode: "token-ring" is not one of bridge, cni'
    assert started.stderr == f"crishim: {sentence}\n"


def test_refusals_leave_nothing_behind(server: Server, pod: tuple[str, Any]) -> None:
    server.remove_pod(pod[0])
    assert wait_until(lambda: not server.left_behind(), "an empty node")
    assert os.listdir(server.root / "containers") == []
