"""A real kubelet, without an API server, runs static pods on the runtime; see `runtimes.py` for which one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import tools
from tests.e2e.kubelet import Kubelet, leftovers_of_pods
from tests.e2e.node import Node, hierarchy_with, wait_until
from tests.e2e.pods import container, pod
from tests.e2e.runtimes import IMAGE, Containerd, Crishim, chosen

LIMIT_BYTES = 64 << 20


SHARED = {"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}
WEB = pod(
    "web",
    container(
        "server",
        "echo serving; exec sleep infinity",
        readinessProbe={"exec": {"command": ["test", "-f", "/shared/written"]}, "periodSeconds": 1},
        resources={"limits": {"memory": str(LIMIT_BYTES)}},
        **SHARED,
    ),
    container("writer", "echo writing; touch /shared/written; exec sleep infinity", **SHARED),
    volumes=[{"name": "shared", "emptyDir": {}}],
)


@dataclass(frozen=True)
class Cluster:
    """What one module of tests shares: the node, the runtime and the kubelet, with the pod `web` on them."""

    node: Node
    runtime: Crishim | Containerd
    kubelet: Kubelet

    def identity(self) -> dict[str, tuple[str, tuple[int, int]]]:
        """(container id, first process) of each container of `web`, by name: what a restart must not change."""
        web = self.kubelet.wait_ready("web")
        processes = self.kubelet.init_processes(web)
        statuses = web["status"]["containerStatuses"]
        ids = {status["name"]: status["containerID"].partition("://")[2] for status in statuses}
        return {name: (ident, next(v for k, v in processes.items() if ident in k)) for name, ident in ids.items()}

    def restarts(self) -> list[int]:
        return [status["restartCount"] for status in self.kubelet.pods()["web"]["status"]["containerStatuses"]]


@pytest.fixture(scope="module")
def cluster(node: Node) -> Iterator[Cluster]:
    if tools.find("kubelet") is None:
        pytest.skip("kubelet is not built: make e2e-tools")
    before = {name: Path("/proc/sys", name).read_text() for name in ("vm/overcommit_memory", "kernel/panic")}
    runtime = chosen(node)
    kubelet = Kubelet(node, runtime.socket)
    kubelet.start()
    kubelet.apply(WEB)
    kubelet.wait_ready("web")
    yield Cluster(node, runtime, kubelet)
    assert {name: Path("/proc/sys", name).read_text() for name in before} == before


def test_a_static_pod_with_an_exec_probe_and_a_shared_volume_becomes_ready(cluster: Cluster) -> None:
    web = cluster.kubelet.wait_ready("web")
    assert web["status"]["phase"] == "Running"
    assert sorted(status["name"] for status in web["status"]["containerStatuses"]) == ["server", "writer"]
    assert web["status"]["podIP"]


def test_the_memory_limit_is_in_the_cgroup_of_its_container_alone(cluster: Cluster) -> None:
    directory = cluster.kubelet.pod_cgroup(cluster.kubelet.wait_ready("web"), "memory")
    assert directory is not None
    name = "memory.max" if (directory / "memory.max").exists() else "memory.limit_in_bytes"
    limits = [(child / name).read_text().strip() for child in directory.iterdir() if child.is_dir()]
    assert limits.count(str(LIMIT_BYTES)) == 1
    assert "cgroup" in hierarchy_with("memory").as_posix()


def test_each_container_has_its_own_log_behind_the_kubelet(cluster: Cluster) -> None:
    assert cluster.kubelet.logs("web", "server") == "serving\n"
    assert cluster.kubelet.logs("web", "writer") == "writing\n"


def test_a_command_runs_in_the_container_through_the_kubelet(cluster: Cluster) -> None:
    reply = cluster.kubelet.run("web", "server", "/bin/cat+/proc/1/cmdline")
    assert (reply.status, reply.body.split("\0")[:2]) == (200, ["sleep", "infinity"])


def test_a_command_that_fails_is_an_error_of_the_kubelet_and_not_of_the_runtime(cluster: Cluster) -> None:
    reply = cluster.kubelet.run("web", "server", "/bin/sh+-c+false")
    assert reply.status == 500
    assert "exit" in reply.body and "1" in reply.body


def test_the_kubelet_knows_the_cpu_and_memory_of_the_containers(cluster: Cluster) -> None:
    def working_sets() -> dict[str, int] | None:
        pods = cluster.kubelet.get("/stats/summary").json().get("pods") or []
        found = {
            entry["name"]: entry.get("memory", {}).get("workingSetBytes", 0)
            for summary in pods
            for entry in summary.get("containers", [])
        }
        return found if found.get("server") and found.get("writer") else None

    # cAdvisor looks at a new container for the first time after 10 to 15 s
    assert wait_until(working_sets, deadline_s=60, what="statistics of both containers")


def test_a_crashed_container_comes_back_with_a_back_off(cluster: Cluster) -> None:
    cluster.kubelet.apply(pod("crasher", container("once", "echo falling; exit 7")))
    try:

        def backs_off() -> dict[str, Any] | None:
            status = cluster.kubelet.container_status("crasher", "once")
            waiting = status.get("state", {}).get("waiting", {}).get("reason")
            return status if waiting == "CrashLoopBackOff" else None

        status = wait_until(backs_off, deadline_s=60, what="a back-off")
        assert status["restartCount"] >= 1
        assert status["lastState"]["terminated"]["exitCode"] == 7
        assert status["lastState"]["terminated"]["reason"] == "Error"
    finally:
        cluster.kubelet.delete("crasher")
    wait_until(lambda: "crasher" not in cluster.kubelet.pods(), deadline_s=60, what="the crasher to be gone")


def test_a_container_over_its_memory_limit_is_said_to_be_oom_killed(cluster: Cluster) -> None:
    limits = {"limits": {"memory": "16Mi"}}
    eater = container("eater", "exec dd if=/dev/zero of=/dev/null bs=256M count=1", resources=limits)
    cluster.kubelet.apply(pod("greedy", eater, restartPolicy="Never"))
    try:

        def terminated() -> dict[str, Any] | None:
            status = cluster.kubelet.container_status("greedy", "eater")
            found: dict[str, Any] | None = status.get("state", {}).get("terminated")
            return found

        end = wait_until(terminated, deadline_s=60, what="the end of the container")
        assert (end["reason"], end["exitCode"]) == ("OOMKilled", 137)
    finally:
        cluster.kubelet.delete("greedy")
    wait_until(lambda: "greedy" not in cluster.kubelet.pods(), deadline_s=60, what="the pod to be gone")


def test_a_pod_with_users_of_its_own_runs_as_nobody_of_the_node(cluster: Cluster) -> None:
    """hostUsers: false, KEP-127: the kubelet chooses the ids and wants every volume mapped."""
    script = "id -u; cat /proc/self/uid_map; touch /shared/new; stat -c %u /shared/new /etc/hosts; exec sleep infinity"
    users = pod("users", container("main", script, **SHARED), hostUsers=False, volumes=WEB["spec"]["volumes"])
    cluster.kubelet.apply(users)
    try:
        made = cluster.kubelet.wait_ready("users")
        uid, inside, outside, length, *owners = cluster.kubelet.logs("users", "main").split()
        assert (uid, inside, owners) == ("0", "0", ["0", "0"])
        assert int(outside) >= 65536 and int(length) == 65536
        (process,) = cluster.kubelet.init_processes(made).values()
        assert f"Uid:\t{outside}\t" in Path(f"/proc/{process[0]}/status").read_text()
    finally:
        cluster.kubelet.delete("users")
    wait_until(lambda: "users" not in cluster.kubelet.pods(), deadline_s=60, what="the pod to be gone")


def test_a_pod_mounts_an_image_and_a_part_of_it(cluster: Cluster) -> None:
    """Image volumes, KEP-4639: the kubelet pulls or finds the image, and the runtime mounts it."""
    script = "cat /part/passwd | head -n1; ls /whole/etc/passwd; touch /whole/new || echo refused; exec sleep infinity"
    mounts = [
        {"name": "image", "mountPath": "/whole"},
        {"name": "image", "mountPath": "/part", "subPath": "etc"},
    ]
    volume = {"name": "image", "image": {"reference": IMAGE, "pullPolicy": "Never"}}
    cluster.kubelet.apply(pod("images", container("main", script, volumeMounts=mounts), volumes=[volume]))
    try:
        cluster.kubelet.wait_ready("images")
        said = cluster.kubelet.logs("images", "main")
        assert "root:x:0:0" in said and "/whole/etc/passwd" in said and "refused" in said, said
    finally:
        cluster.kubelet.delete("images")
    wait_until(lambda: "images" not in cluster.kubelet.pods(), deadline_s=60, what="the pod to be gone")


def test_a_restarted_kubelet_finds_the_same_containers(cluster: Cluster) -> None:
    before = cluster.identity()
    cluster.kubelet.stop()
    cluster.kubelet.start()
    assert cluster.identity() == before
    assert cluster.restarts() == [0, 0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_restarted_runtime_leaves_the_pod_untouched(cluster: Cluster, number: signal.Signals) -> None:
    before = cluster.identity()
    cluster.runtime.stop(number)
    for _, (pid, _) in before.values():
        os.kill(pid, 0)
    cluster.runtime.start()

    def runs() -> bool:
        reply = cluster.kubelet.run("web", "server", "/bin/echo+again")
        return (reply.status, reply.body) == (200, "again\n")

    wait_until(runs, deadline_s=60, what="a command in the pod after the restart")
    assert cluster.identity() == before
    assert cluster.restarts() == [0, 0]


def test_logs_written_while_the_runtime_was_away_are_there(cluster: Cluster) -> None:
    if isinstance(cluster.runtime, Containerd):
        pytest.skip("containerd writes the logs in its server")
    cluster.kubelet.apply(pod("talker", container("voice", "i=0; while sleep 0.2; do i=$((i+1)); echo $i; done")))
    try:
        cluster.kubelet.wait_ready("talker")
        (log,) = cluster.kubelet.logs_directory.glob("default_talker-*/voice/0.log")
        cluster.runtime.stop(signal.SIGKILL)
        reached = log.stat().st_size
        # the kubelet asks the runtime where a log is, so while that is away the file itself is looked at
        wait_until(lambda: log.stat().st_size > reached, deadline_s=30, what="further lines without a server")
        cluster.runtime.start()

        def shown() -> list[str]:
            words = cluster.kubelet.logs("talker", "voice").split()
            return words if words[:1] == ["1"] else []

        # the kubelet connects anew after a while of its own, and says "unable to ..." until then
        seen = wait_until(shown, deadline_s=30, what="the log behind the kubelet")
        assert seen == [str(number + 1) for number in range(len(seen))]
    finally:
        cluster.kubelet.delete("talker")
    wait_until(lambda: "talker" not in cluster.kubelet.pods(), deadline_s=60, what="the talker to be gone")


def test_a_removed_manifest_leaves_nothing(cluster: Cluster) -> None:
    """No process, cgroup, mount or directory of any pod of this module stays; this test is the module's last."""
    node, kubelet = cluster.node, cluster.kubelet
    web = kubelet.wait_ready("web")
    of_pods = {pid for pid, _ in kubelet.init_processes(web).values()}
    assert of_pods
    kubelet.delete("web")
    wait_until(lambda: not kubelet.pods(), deadline_s=60, what="the kubelet to forget the pod")

    def leftovers() -> list[str]:
        return [
            *(f"process {pid}" for pid in of_pods if Path(f"/proc/{pid}").exists()),
            *leftovers_of_pods(node, kubelet, cluster.runtime),
        ]

    wait_until(lambda: leftovers() == [], deadline_s=90, what=lambda: f"nothing to be left: {leftovers()}")
