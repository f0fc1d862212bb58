"""kubectl, through an API server and a kubelet, at pods on the runtime; see `runtimes.py` for which one."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster import SPDY, Cluster, Kubectl, missing_programs, start_cluster
from tests.e2e.kubelet import leftovers_of_pods
from tests.e2e.node import Node, hierarchy_with, wait_until
from tests.e2e.pods import SERVER, container, exchange, forwarded, pod
from tests.e2e.runtimes import IMAGE, NO_HALF_CLOSE, skip_on_containerd

PROTOCOLS = {"websocket": {}, "spdy": SPDY}
"""Environment of kubectl for each; the first is its default."""
PAYLOAD = os.urandom(20 << 20)
HOST_PORT = 18080
WORDS = "the words of a config map"

_VOLUMES = [{"name": "words", "configMap": {"name": "words"}}, {"name": "scratch", "emptyDir": {}}]
_MOUNTS = [{"name": "words", "mountPath": "/words"}, {"name": "scratch", "mountPath": "/scratch"}]
WEB = pod(
    "web",
    container(
        "server",
        SERVER,
        ports=[{"containerPort": 80, "hostPort": HOST_PORT}],
        readinessProbe={"httpGet": {"port": 80}, "periodSeconds": 1},
        volumeMounts=_MOUNTS,
    ),
    container(
        "beside", "while [ ! -s /scratch/news ]; do usleep 50000; done; exec sleep infinity", volumeMounts=_MOUNTS
    ),
    volumes=_VOLUMES,
)
#: each line that it hears it says; ends with its stdin
ECHOES = [
    pod(
        f"echo-{protocol}",
        container("main", "while read line; do echo heard $line; done; echo bye", stdin=True, stdinOnce=True),
        restartPolicy="Never",
    )
    for protocol in PROTOCOLS
]
SHELL = pod("shell", container("main", "exec sh", stdin=True, tty=True), restartPolicy="Never")
LIMITS = {"cpu": "500m", "memory": "64Mi"}
SIZED = pod("sized", container("main", "exec sleep infinity", resources={"limits": LIMITS, "requests": LIMITS}))
HOST = pod("host", container("main", "exec sleep infinity"), hostNetwork=True)
CONFINED = pod(
    "confined",
    container(
        "main",
        "exec sleep infinity",
        securityContext={
            "runAsUser": 1000,
            "runAsGroup": 2000,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        volumeMounts=[{"name": "scratch", "mountPath": "/scratch"}],
    ),
    securityContext={"fsGroup": 3000},
    volumes=[{"name": "scratch", "emptyDir": {}}],
)


@pytest.fixture(scope="module")
def cluster(node: Node) -> Iterator[Cluster]:
    if not_built := missing_programs():
        pytest.skip(f"not built, see make e2e-tools: {', '.join(not_built)}")
    cluster = start_cluster(node)
    words = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "words"}, "data": {"text": WORDS}}
    cluster.kubectl.apply(words)
    cluster.run(WEB, *ECHOES, SHELL, SIZED, HOST, CONFINED)
    yield cluster


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def kubectl(cluster: Cluster, protocol: str) -> Kubectl:
    return cluster.kubectl.with_environ(PROTOCOLS[protocol])


def server(*command: str) -> tuple[str, ...]:
    """The words that run a command in the server's container of the pod `web`."""
    return ("web", "-c", "server", "--", *command)


# -- exec


def test_exec_keeps_stdout_and_stderr_apart_and_hands_on_the_exit_code(kubectl: Kubectl) -> None:
    ended = kubectl.run("exec", *server("sh", "-c", "echo out; echo err >&2; exit 7"))
    assert (ended.returncode, ended.stdout) == (7, b"out\n")
    assert ended.stderr.splitlines()[0] == b"err"


def test_exec_of_a_program_that_is_not_there_fails_and_names_it(kubectl: Kubectl) -> None:
    ended = kubectl.run("exec", *server("no-such-program"))
    assert ended.returncode != 0
    assert b"no-such-program" in ended.stderr and b"not found" in ended.stderr


def test_exec_i_carries_megabytes_in_both_directions(kubectl: Kubectl) -> None:
    ended = kubectl.run("exec", "-i", *server("cat"), stdin=PAYLOAD)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert len(ended.stdout) == len(PAYLOAD) and ended.stdout == PAYLOAD


def test_exec_i_ends_the_stdin_of_the_command(kubectl: Kubectl) -> None:
    summed = kubectl("exec", "-i", *server("sha256sum"), stdin=PAYLOAD)
    assert summed.split()[0] == hashlib.sha256(PAYLOAD).hexdigest()


def test_exec_it_is_a_terminal_with_its_size_its_ctrl_c_and_its_exit_code(kubectl: Kubectl) -> None:
    with kubectl.terminal("exec", "-it", *server("sh"), rows=33, columns=101) as terminal:
        terminal.type("tty; stty size\n")
        terminal.expect(r"/dev/pts/\d+\r\n33 101\r\n")
        terminal.resize(44, 123)

        def is_resized() -> bool:
            terminal.type("stty size\n")
            return terminal.expect(r"\n(\d+ \d+)\r\n")[1] == "44 123"

        wait_until(is_resized, deadline_s=20, what="the new size in the container")
        # of a child, so that the shell is past its fork and the child is in the foreground
        terminal.type("sh -c 'echo begun; exec sleep 1000'\n")
        terminal.expect(r"\nbegun\r\n")
        terminal.type("\x03")
        terminal.type("echo code=$?\n")
        terminal.expect(r"\ncode=130\r\n")
        terminal.type("exit 9\n")
        assert terminal.wait() == 9


def test_an_exec_whose_client_is_killed_leaves_no_process(kubectl: Kubectl, cluster: Cluster) -> None:
    skip_on_containerd(cluster.runtime, "containerd leaves the process to itself")

    def sleeps() -> int:
        return cluster.kubectl("exec", *server("ps", "-o", "args")).splitlines().count("sleep 7777")

    with kubectl.running("exec", "-i", *server("sleep", "7777")):
        wait_until(lambda: sleeps() == 1, deadline_s=20, what="the command to run")
    wait_until(lambda: sleeps() == 0, deadline_s=30, what="the command to end with its client")


# -- attach


def test_attach_shows_what_a_container_says_and_stdin_once_ends_it(
    kubectl: Kubectl, cluster: Cluster, protocol: str
) -> None:
    assert kubectl("attach", "-i", f"echo-{protocol}", stdin=b"one\ntwo\n") == "heard one\nheard two\nbye\n"
    wait_until(
        lambda: cluster.status(f"echo-{protocol}", "main").get("state", {}).get("terminated", {}).get("exitCode") == 0,
        deadline_s=30,
        what="the container to end with its stdin",
    )


def test_attach_it_is_the_containers_own_terminal_and_leaving_hurts_it_not(kubectl: Kubectl, cluster: Cluster) -> None:
    with kubectl.terminal("attach", "-it", "shell", rows=31, columns=99) as terminal:

        def is_resized() -> bool:
            terminal.type("stty size\n")
            return terminal.expect(r"\n(\d+ \d+)\r\n")[1] == "31 99"

        wait_until(is_resized, deadline_s=20, what="the size of the client's terminal")
        terminal.type("echo pid $$\n")
        terminal.expect(r"\npid 1\r\n")
    status = cluster.status("shell", "main")
    assert "running" in status["state"] and status["restartCount"] == 0


# -- cp


def test_cp_brings_a_file_there_and_back(kubectl: Kubectl, cluster: Cluster) -> None:
    there, back = cluster.node.directory / "there", cluster.node.directory / "back"
    there.write_bytes(PAYLOAD)
    back.unlink(missing_ok=True)
    kubectl("cp", there, "web:/scratch/copied", "-c", "server")
    assert kubectl("exec", *server("sha256sum", "/scratch/copied")).split()[0] == hashlib.sha256(PAYLOAD).hexdigest()
    kubectl("cp", "web:/scratch/copied", back, "-c", "server")
    assert back.read_bytes() == PAYLOAD


# -- port-forward


def test_port_forward_carries_several_connections_at_once(kubectl: Kubectl, cluster: Cluster) -> None:
    skip_on_containerd(cluster.runtime, NO_HALF_CLOSE)
    with kubectl.running("port-forward", "pod/web", ":80", ":7000", ":7001") as process:
        ports = forwarded(process, 3)
        dial = cluster.node.dial
        with ThreadPoolExecutor(5) as threads:
            sums = [threads.submit(lambda: exchange(dial(ports[7000]), PAYLOAD)) for _ in range(2)]
            echoes = [threads.submit(lambda: exchange(dial(ports[7001]), PAYLOAD[: 4 << 20])) for _ in range(2)]
            page = threads.submit(lambda: exchange(dial(ports[80]), b"GET / HTTP/1.0\r\n\r\n"))
            assert page.result().endswith(b"hello from web\n")
            assert {each.result().split()[0].decode() for each in sums} == {hashlib.sha256(PAYLOAD).hexdigest()}
            assert all(each.result() == PAYLOAD[: 4 << 20] for each in echoes)
        assert exchange(dial(ports[7001]), b"again") == b"again"


def test_port_forward_to_a_port_where_nobody_listens_says_so(kubectl: Kubectl, cluster: Cluster) -> None:
    with kubectl.running("port-forward", "pod/web", ":9") as process:
        (port,) = forwarded(process, 1).values()
        assert exchange_or_reset(cluster.node.dial(port)) == b""
        assert process.stdout is not None
        said = iter(process.stdout.readline, b"")
        assert any(b"refused" in line for line in said)


def exchange_or_reset(sock: socket.socket) -> bytes:
    with sock:
        try:
            return sock.recv(100)
        except ConnectionResetError:
            return b""


# -- logs


def test_logs_have_both_streams_of_the_container(cluster: Cluster) -> None:
    assert sorted(cluster.kubectl("logs", "web", "-c", "server").splitlines()) == ["serving", "warning"]


def test_logs_f_follows_to_the_end_and_across_a_rotation(cluster: Cluster) -> None:
    lines, batch = 14000, 200
    pause = f'if (i % {batch} == 0) {{ fflush(); system("usleep 100000") }}'
    script = f"exec awk 'BEGIN {{ for (i = 1; i <= {lines}; i++) {{ print \"line\", i; {pause} }} }}'"
    cluster.run(pod("chatty", container("voice", script), restartPolicy="Never"))
    followed = cluster.kubectl("logs", "-f", "chatty").splitlines()
    assert followed == [f"line {number}" for number in range(1, lines + 1)]
    rotated = list(cluster.kubelet.logs_directory.glob("default_chatty_*/voice/0.log.*"))
    assert rotated, "the log was never rotated, so nothing was proved"


def test_logs_previous_are_those_of_the_attempt_before(cluster: Cluster) -> None:
    # the second attempt stays, because a kubelet keeps the log of one ended attempt alone
    script = "if [ -e /scratch/fallen ]; then echo standing; exec sleep infinity; fi; > /scratch/fallen; echo falling"
    falling = container("main", f"{script}; exit 7", volumeMounts=[{"name": "scratch", "mountPath": "/scratch"}])
    cluster.create(pod("crasher", falling, volumes=[{"name": "scratch", "emptyDir": {}}]))

    def stands() -> bool:
        status = cluster.status("crasher", "main")
        return status.get("restartCount") == 1 and "running" in status["state"]

    wait_until(stands, deadline_s=60, what=lambda: f"the second attempt: {cluster.status('crasher', 'main')}")
    assert cluster.kubectl("logs", "--previous", "crasher") == "falling\n"
    assert cluster.kubectl("logs", "crasher") == "standing\n"
    assert cluster.status("crasher", "main")["lastState"]["terminated"]["exitCode"] == 7
    cluster.kubectl("delete", "pod", "crasher")


# -- volumes, network, resources, security


def test_a_config_map_is_a_volume(cluster: Cluster) -> None:
    assert cluster.kubectl("exec", *server("cat", "/words/text")) == WORDS


def test_the_containers_of_a_pod_share_an_empty_dir(cluster: Cluster) -> None:
    cluster.kubectl("exec", *server("sh", "-c", "echo new > /scratch/news"))
    assert cluster.kubectl("exec", "web", "-c", "beside", "--", "cat", "/scratch/news") == "new\n"


def test_two_pods_talk(cluster: Cluster) -> None:
    script = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc {cluster.address('web')} 80"
    assert cluster.kubectl("exec", "sized", "--", "sh", "-c", script).endswith("hello from web\n")


@pytest.mark.parametrize("host", ["192.168.201.2", "127.0.0.1"])
def test_a_host_port_answers_on_the_node(cluster: Cluster, host: str) -> None:
    skip_on_containerd(cluster.runtime, "its network here has no plugin for host ports")
    reply = cluster.node.http("GET", f"http://{host}:{HOST_PORT}/", timeout_s=5)
    assert (reply.status, reply.body) == (200, "hello from web\n")


def test_a_pod_of_the_hosts_network_has_the_nodes_address(cluster: Cluster) -> None:
    seen = cluster.kubectl("exec", "host", "--", "readlink", "/proc/self/ns/net").strip()
    assert seen == os.readlink(f"/proc/{cluster.node.init_pid}/ns/net")
    assert cluster.address("host") == cluster.node.address


def test_limits_change_in_place_without_a_restart(cluster: Cluster) -> None:
    before = cluster.status("sized", "main")
    new = {"cpu": "250m", "memory": "96Mi"}
    patch = f'{{"spec": {{"containers": [{{"name": "main", "resources": {_resources(new)}}}]}}}}'
    cluster.kubectl("patch", "pod", "sized", "--subresource", "resize", "--patch", patch)

    def is_resized() -> bool:
        return bool(cluster.status("sized", "main").get("resources", {}).get("limits") == new)

    wait_until(is_resized, deadline_s=30, what=lambda: f"the new limits: {cluster.status('sized', 'main')}")
    after = cluster.status("sized", "main")
    assert (after["containerID"], after["restartCount"]) == (before["containerID"], 0)
    assert memory_limit_of(cluster, "sized", after["containerID"]) == 96 << 20


def _resources(values: dict[str, str]) -> str:
    text = ", ".join(f'"{name}": "{value}"' for name, value in values.items())
    return f'{{"limits": {{{text}}}, "requests": {{{text}}}}}'


def memory_limit_of(cluster: Cluster, name: str, container_id: str) -> int:
    """What the kernel enforces for a container."""
    directory = cluster.kubelet.pod_cgroup(cluster.kubectl.json("get", "pod", name), "memory")
    assert directory is not None and hierarchy_with("memory") in directory.parents
    (path,) = (each for each in directory.iterdir() if container_id.partition("://")[2] in each.name)
    file = path / "memory.max" if (path / "memory.max").exists() else path / "memory.limit_in_bytes"
    return int(file.read_text())


def test_a_debug_container_sees_the_processes_of_its_target(cluster: Cluster) -> None:
    words = ("--image", IMAGE, "--target", "server", "--container", "looker", "--", "sleep", "infinity")
    cluster.kubectl("debug", "web", "--image-pull-policy=Never", *words)
    wait_until(
        lambda: "running" in cluster.status("web", "looker", "ephemeralContainerStatuses").get("state", {}),
        deadline_s=30,
        what="the debug container to run",
    )
    seen = cluster.kubectl("exec", "web", "-c", "looker", "--", "ps", "-o", "pid,args")
    assert re.search(r"^ *1 /bin/sh -c \n?", seen, re.M) and "sha256sum" in seen
    assert "sleep infinity" in seen


@pytest.fixture(scope="module")
def identity(cluster: Cluster) -> dict[str, str]:
    """What /proc/self/status says in the pod `confined`, by its names."""
    status = cluster.kubectl("exec", "confined", "--", "cat", "/proc/self/status")
    return {name: " ".join(value.split()) for name, _, value in (line.partition(":") for line in status.splitlines())}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("Uid", "1000 1000 1000 1000"),
        ("Gid", "2000 2000 2000 2000"),
        ("Groups", "2000 3000"),
        ("CapPrm", "0000000000000000"),
        ("CapEff", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ],
)
def test_a_security_context_is_what_the_process_has(identity: dict[str, str], field: str, value: str) -> None:
    assert identity[field] == value


def test_a_read_only_root_and_a_volume_of_the_fs_group(cluster: Cluster) -> None:
    refused = cluster.kubectl.run("exec", "confined", "--", "touch", "/etc/new")
    assert refused.returncode != 0 and b"Read-only file system" in refused.stderr
    script = "touch /scratch/new && stat -c %u:%g /scratch/new && stat -c %g /scratch"
    assert cluster.kubectl("exec", "confined", "--", "sh", "-c", script) == "1000:3000\n3000\n"


def test_a_session_ends_with_the_server_that_is_told_to_stop_and_the_pod_goes_on(cluster: Cluster) -> None:
    skip_on_containerd(cluster.runtime, "containerd ends the session as if the command had succeeded")
    before = cluster.status("web", "server")
    with cluster.kubectl.running("exec", "-i", *server("cat")) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"hello\n"
        cluster.runtime.stop(signal.SIGTERM)
        said = process.stdout.read()
        assert process.wait(30) != 0
    assert b"the server is stopping" in said
    cluster.runtime.start()
    # the kubelet connects anew after a while of its own
    wait_until(
        lambda: cluster.kubectl.run("exec", *server("true")).returncode == 0,
        deadline_s=60,
        what="a command after the restart",
    )
    after = cluster.status("web", "server")
    assert (after["containerID"], after["restartCount"]) == (before["containerID"], 0)


def test_deleted_pods_leave_nothing(cluster: Cluster) -> None:
    """No process, cgroup, mount or directory; the module's last test."""
    listed: list[Any] = cluster.kubectl.json("get", "pods")["items"]
    processes = {pid for each in listed for pid, _ in _processes(cluster, each)}
    assert len(processes) >= 6
    cluster.kubectl("delete", "pod", "--all", "--timeout=60s")

    def leftovers() -> list[str]:
        return [
            *(f"process {pid}" for pid in processes if Path(f"/proc/{pid}").exists()),
            *leftovers_of_pods(cluster.node, cluster.kubelet, cluster.runtime),
        ]

    # the kubelet removes the sandboxes of deleted pods once a minute
    wait_until(lambda: leftovers() == [], deadline_s=90, what=lambda: f"nothing to be left: {leftovers()}")


def _processes(cluster: Cluster, each: dict[str, Any]) -> list[tuple[int, int]]:
    return list(cluster.kubelet.init_processes(each).values()) if cluster.kubelet.pod_cgroup(each) else []
