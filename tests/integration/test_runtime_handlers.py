"""Runtime handlers of a real server: what their pods get, what stays over changes, and the configuration read again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from crishim.cri.client import messages as m
from crishim.errors import InvalidSpec
from tests.support.faults import server_with_image
from tests.support.server import NEEDS_SERVER, Server, container_config, pod_config, wait_until

pytestmark = pytest.mark.skipif(not NEEDS_SERVER, reason="a server needs root, nsenter and ip")

STRICT = """
[runtimes.strict]
capabilities = ["CAP_CHOWN", "CAP_KILL"]
no_new_privileges = true
unset_seccomp_profile = "runtime/default"
pids_limit = 64
min_oom_score_adj = 300
privileged_without_host_devices = true
rlimits.NOFILE = [100, 200]
sysctls = {"net.core.somaxconn" = "1234"}
env = {"FROM" = "handler"}
allowed_annotations = ["crishim.io/umask"]
"""
PROBE = """
grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status
grep 'open files' /proc/self/limits
cat /proc/sys/net/core/somaxconn /proc/self/oom_score_adj
echo $FROM; umask; ls /dev
"""


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server_with_image(tmp_path_factory.mktemp("handlers") / "node", config=STRICT) as server:
        yield server


def test_a_hangup_while_the_server_starts_is_answered_afterwards(server: Server) -> None:
    server.terminate()
    begun = server.errors.stat().st_size
    server.start(ready=False)
    wait_until((server.state / "crishim.sock").exists, "a socket, before the server is ready")
    assert server.reread().count("was read again") == 1
    assert "is ready" in server.errors.read_text()[begun:]


def run_pod(server: Server, name: str, handler: str, **changes: Any) -> tuple[str, Any]:
    config = pod_config(name, server.logs, **changes)
    request = m.RunPodSandboxRequest(config=config, runtime_handler=handler)
    return str(server.client.runtime("RunPodSandbox", request).pod_sandbox_id), config


def probed(server: Server, pod: tuple[str, Any], name: str, config: Any = None) -> list[str]:
    container = server.create_config(*pod, config or container_config("sleep", "1000", name=name))
    server.start_container(container)
    said = server.sh(container, PROBE).split("\n")
    server.remove(container)
    return [re.sub(r"\s+", " ", line).strip() for line in said]


def handlers(server: Server) -> list[str]:
    return [each.name for each in server.client.runtime("Status", m.StatusRequest()).runtime_handlers]


def test_pods_run_with_the_options_that_their_handler_had_when_they_were_run(server: Server) -> None:
    annotations = {"crishim.io/umask": "0027", "crishim.io/ulimit.nofile": "7:7"}
    pod = run_pod(server, "strict", "strict", annotations=annotations)
    plain = run_pod(server, "plain", "", annotations=annotations)
    wanted = [
        "NoNewPrivs: 1",
        "Seccomp: 2",
        "CapBnd: 0000000000000021",
        "Max open files 100 200 files",
        "1234",
        "300",
        "handler",
        "0027",
    ]
    said = probed(server, pod, "one")
    assert sorted(said[:3]) == sorted(wanted[:3]) and said[3:8] == wanted[3:], said
    other = probed(server, plain, "one")
    assert "NoNewPrivs: 0" in other and "Seccomp: 0" in other and "handler" not in other and "0022" in other

    config = container_config("sleep", "1000", name="spared")
    config.linux.resources.oom_score_adj = 100
    assert "300" in probed(server, pod, "spared", config)
    assert "100" in probed(server, plain, "spared", config)

    # the handler goes, and its pod keeps what it had, over the restart too
    server.terminate()
    server.configure("")
    server.start()
    assert handlers(server) == ["", "crishim"]
    assert probed(server, pod, "two")[3:8] == wanted[3:]
    with pytest.raises(InvalidSpec, match="runtime_handler: 'strict' is not configured"):
        run_pod(server, "late", "strict")
    (found,) = [
        each for each in server.client.runtime("ListPodSandbox", m.ListPodSandboxRequest()).items if each.id == pod[0]
    ]
    assert found.runtime_handler == "strict"


def test_privileged_containers_see_the_devices_that_they_ask_for_alone(server: Server) -> None:
    privileged = m.LinuxContainerSecurityContext(privileged=True, namespace_options=m.NamespaceOption(pid=m.CONTAINER))
    seen = {}
    for name, handler in (("without", "strict"), ("with", "")):
        config = pod_config(name, server.logs)
        config.linux.security_context.privileged = True
        request = m.RunPodSandboxRequest(config=config, runtime_handler=handler)
        pod = str(server.client.runtime("RunPodSandbox", request).pod_sandbox_id), config
        asked = container_config("sleep", "1000")
        asked.linux.security_context.CopyFrom(privileged)
        seen[name] = set(probed(server, pod, "main", asked))
    assert "kmsg" not in seen["without"] and "null" in seen["without"]
    assert "kmsg" in seen["with"]


def test_a_signal_applies_what_needs_no_restart_and_names_what_does(server: Server) -> None:
    assert handlers(server) == ["", "crishim", "strict"]
    server.configure(
        STRICT + "\n[runtimes.late]\nenv = {FROM = 'late'}\n[containers]\ndefault_runtime_handler = 'late'\n"
    )
    server.drop_in("10-cgroups.toml").write_text('[cgroups]\nparent = "/elsewhere"\n')
    said = server.reread()
    assert "changed: containers.default_runtime_handler, runtimes.late." in said, said
    assert "these keys of the configuration need a restart: cgroups.parent\n" in said, said
    assert handlers(server) == ["", "crishim", "strict", "late"]
    assert "late" in probed(server, run_pod(server, "default", ""), "main")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("runtimes = ", "config.toml is not TOML"),
        ("[runtimes.x]\ncolour = 1\n", "config.toml: runtimes.x.colour: there is no such key"),
        ("[runtimes.x]\ncapabilities = ['CAP_X']\n", "runtimes.x.capabilities[0]: 'CAP_X' is not a capability"),
        ("[runtimes.x]\n[containers]\ndefault_runtime_handler = 'y'\n", 'default_runtime_handler: "y" is not one of'),
    ],
)
def test_a_wrong_file_changes_nothing(server: Server, text: str, sentence: str) -> None:
    server.configure(text)
    said = server.reread()
    assert said.count("\n") == 1 and "the configuration stays as it was: " in said and sentence in said, said
    assert handlers(server) == ["", "crishim", "strict"]
    assert "handler" in probed(server, run_pod(server, "after", "strict"), "main")
