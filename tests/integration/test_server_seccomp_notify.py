"""Localhost profiles that leave calls to a listener of the node: where the handler lets them, over a restart."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator

import pytest

from crishim.cri.client import messages as m
from crishim.errors import InvalidSpec
from tests.support.faults import server_with_image
from tests.support.seccomp_agent import Agent
from tests.support.server import NEEDS_SERVER, Server, container_config, pod_config

pytestmark = pytest.mark.skipif(not NEEDS_SERVER, reason="a server needs root, nsenter and ip")


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("notify")
    config = f"""
    [containers]
    seccomp_profile_dir = "{base}"
    [runtimes.watched]
    seccomp_notify = true
    """
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
        "listenerPath": f"{base}/agent.sock",
        "listenerMetadata": "of the node",
    }
    (base / "watched.json").write_text(json.dumps(profile))
    with server_with_image(base / "node", config=config) as server:
        yield server


def watched_config(server: Server, name: str) -> m.ContainerConfig:
    config = container_config("sleep", "1000", name=name)
    config.linux.security_context.seccomp.profile_type = m.SecurityProfile.Localhost
    config.linux.security_context.seccomp.localhost_ref = str(server.directory.parent / "watched.json")
    return config


def test_a_profile_with_a_listener_needs_a_handler_that_lets_it(server: Server) -> None:
    sandbox, pod = server.run_pod("plain")
    with pytest.raises(InvalidSpec, match=r"/watched\.json': its listenerPath '/.*/agent\.sock' needs a runtime"):
        server.create_config(sandbox, pod, watched_config(server, "refused"))


def test_init_and_execs_of_a_pod_are_the_listeners(server: Server) -> None:
    pod = pod_config("watched", server.logs, annotations={"team": "a"})
    request = m.RunPodSandboxRequest(config=pod, runtime_handler="watched")
    sandbox = server.client.runtime("RunPodSandbox", request).pod_sandbox_id
    container = server.create_config(sandbox, pod, watched_config(server, "main"))
    where = server.directory.parent / "agent.sock"
    with pytest.raises(Exception, match=f'seccomp listenerPath "{where}": no such file or directory'):
        server.start_container(container)
    container = server.create_config(sandbox, pod, watched_config(server, "second"))
    with Agent(str(where), lambda call: -errno.EDQUOT) as agent:
        server.start_container(container)
        state = agent.states.get(timeout=20)
        assert (state["metadata"], state["state"]["id"]) == ("of the node", container)
        told = state["state"]["annotations"]
        assert (told["team"], told["io.kubernetes.cri.sandbox-id"]) == ("a", sandbox)
        assert "quota exceeded" in server.sh(container, "mkdir /tmp/x 2>&1; true").lower()
        server.terminate()
        server.start()
        assert "quota exceeded" in server.sh(container, "mkdir /tmp/x 2>&1; true").lower()
