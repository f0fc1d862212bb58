"""A kubelet in a test node: standalone, with static pods from a directory, or with the API server of `cluster.py`.

It trusts whoever asks; its port is reachable from inside the node alone. The four sysctls
that a kubelet sets are not namespaced: it gets files with the values it wants in their place, in a mount namespace of
its own, so that the machine keeps its values.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from tests.e2e import tools
from tests.e2e.node import Node, Reply, hierarchy_with, wait_until
from tests.e2e.pods import Pod
from tests.e2e.runtimes import Containerd, Crishim

PORT = 10250
SYSCTLS = {"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1"}

#: a log longer than this is rotated, at the shortest interval a kubelet accepts
LOG_BYTES = "64Ki"


class Kubelet:
    """Started, stopped and asked by tests; its directories lie in the node's."""

    def __init__(self, node: Node, runtime_socket: Path, kubeconfig: Path | None = None) -> None:
        """With a kubeconfig the kubelet registers the node with that API server and runs what it assigns."""
        self._node = node
        self._kubeconfig = kubeconfig
        self._pid = 0
        self._program = tools.build(["kubelet"])[0]
        self._directory = node.directory / "kubelet"
        self.manifests = self._directory / "manifests"
        self.pods_directory = self._directory / "root" / "pods"
        self.logs_directory = self._directory / "podlogs"
        for directory in (self.manifests, self.logs_directory, self._directory / "sysctl"):
            directory.mkdir(parents=True)
        resolv_conf = self._directory / "resolv.conf"
        resolv_conf.write_text("nameserver 192.0.2.53\nsearch cluster.local\n")
        config = self._config(runtime_socket, resolv_conf)
        # the file is YAML, and JSON is YAML
        (self._directory / "config.yaml").write_text(json.dumps(config, indent=1))

    def _config(self, runtime_socket: Path, resolv_conf: Path) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix://{runtime_socket}",
            "staticPodPath": str(self.manifests),
            "fileCheckFrequency": "1s",
            "cgroupDriver": "cgroupfs",  # the runtime's RuntimeConfig has the last word
            "cgroupRoot": self._node.cgroup_root(),
            "cgroupsPerQOS": True,
            "enforceNodeAllocatable": ["pods"],
            "failCgroupV1": False,
            "failSwapOn": False,
            "address": "127.0.0.1" if self._kubeconfig is None else self._node.address,
            "port": PORT,
            "healthzPort": 10248,
            "readOnlyPort": 0,
            "oomScoreAdj": 0,
            "maxOpenFiles": 20000,
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "podLogsDir": str(self.logs_directory),
            "resolvConf": str(resolv_conf),
            "clusterDomain": "cluster.local",
            "serializeImagePulls": False,
            "registerNode": self._kubeconfig is not None,
            "containerLogMaxSize": LOG_BYTES,
            "containerLogMaxFiles": 5,
            "containerLogMonitorInterval": "3s",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
        }

    def start(self) -> None:
        """Starts the kubelet and waits until it calls itself healthy."""
        binds = []
        for name, value in SYSCTLS.items():
            stand_in = self._directory / "sysctl" / name.replace("/", ".")
            stand_in.write_text(value + "\n")
            binds.append(f"mount --bind {stand_in} /proc/sys/{name}")
        root = self._directory / "root"
        flags = f"--config={self._directory}/config.yaml --root-dir={root} --cert-dir={root}/pki --v=2"
        names = f"--hostname-override={self._node.hostname} --node-ip={self._node.address}"
        if self._kubeconfig is not None:
            names += f" --kubeconfig={self._kubeconfig}"
        script = " && ".join(["mount --make-private /proc", *binds, f"exec {self._program} {flags} {names}"])
        self._pid = self._node.start("unshare", "-m", "--propagation", "unchanged", "sh", "-c", script, log="kubelet")
        wait_until(self._is_healthy, deadline_s=60, what=f"a healthy kubelet, see {self._node.log('kubelet')}")

    def _is_healthy(self) -> bool:
        code = self._node.exit_code(self._pid)
        if code is not None:
            raise RuntimeError(f"kubelet ended with {code}: {self._node.log('kubelet').read_text()[-2000:]}")
        return self._node.http("GET", "http://127.0.0.1:10248/healthz").status == 200

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        self._node.stop(self._pid, number)

    def apply(self, pod: Pod) -> None:
        """Hands over a static pod; the file appears at once and whole."""
        name = f"{pod['metadata']['name']}.json"
        draft = self._directory / name
        draft.write_text(json.dumps(pod))
        draft.rename(self.manifests / name)

    def delete(self, name: str) -> None:
        (self.manifests / f"{name}.json").unlink()

    def get(self, path: str) -> Reply:
        return self._node.http("GET", f"https://127.0.0.1:{PORT}{path}")

    def post(self, path: str) -> Reply:
        return self._node.http("POST", f"https://127.0.0.1:{PORT}{path}")

    def pods(self) -> dict[str, Pod]:
        """Every pod the kubelet knows, by the name of its manifest."""
        reply = self.get("/pods")
        if reply.status != 200:
            return {}
        suffix = f"-{self._node.hostname}"
        return {pod["metadata"]["name"].removesuffix(suffix): pod for pod in reply.json().get("items") or []}

    def wait_ready(self, name: str, *, deadline_s: float = 60) -> Pod:
        """The pod, once all its containers are ready."""

        def ready() -> Pod | None:
            pod = self.pods().get(name)
            statuses = (pod or {}).get("status", {}).get("containerStatuses", [])
            return pod if statuses and all(status["ready"] for status in statuses) else None

        return wait_until(
            ready,
            deadline_s=deadline_s,
            what=lambda: f"pod {name} to be ready: {self.pods().get(name, {}).get('status')}",
        )

    def container_status(self, name: str, container: str) -> dict[str, Any]:
        """One container's status of a pod; empty before the kubelet has one."""
        statuses = self.pods().get(name, {}).get("status", {}).get("containerStatuses", [])
        return next((status for status in statuses if status["name"] == container), {})

    def logs(self, name: str, container: str, query: str = "") -> str:
        return self.get(f"/containerLogs/default/{name}-{self._node.hostname}/{container}{query}").body

    def run(self, name: str, container: str, command: str) -> Reply:
        """An ExecSync through the kubelet; words of the command are separated by '+'."""
        return self.post(f"/run/default/{name}-{self._node.hostname}/{container}?cmd={command}")

    def pod_cgroup(self, pod: Pod, controller: str = "pids") -> Path | None:
        """Directory of a pod's cgroup; None when it does not exist."""
        uid = pod["metadata"]["annotations"].get("kubernetes.io/config.hash", pod["metadata"]["uid"])
        tree, pattern = hierarchy_with(controller), self._node.pod_pattern(uid)
        bases = [base for base in self._node.kubepods() if base.is_relative_to(tree)]
        return next(iter(sorted(path for base in bases for path in base.rglob(pattern))), None)

    def init_processes(self, pod: Pod) -> dict[str, tuple[int, int]]:
        """(pid, start time) of the first process of each container of a pod, by the name of its cgroup."""
        directory = self.pod_cgroup(pod)
        assert directory is not None, "the pod has no cgroup"
        found = {}
        for child in (path for path in directory.iterdir() if path.is_dir()):
            pids = [int(pid) for pid in (child / "cgroup.procs").read_text().split()]
            if pids:
                found[child.name] = min((_started_at(pid), pid) for pid in pids)[::-1]
        return found


def leftovers_of_pods(node: Node, kubelet: Kubelet, runtime: Crishim | Containerd) -> list[str]:
    """Cgroups, mounts and directories of pods that are there; nothing when no pod is."""
    directories = (kubelet.pods_directory, *runtime.pod_directories())
    try:
        return [
            *(str(path) for base in node.kubepods() for path in base.rglob(node.pod_pattern("*"))),
            *(f"mount {target}" for target in node.mounts() if "/pods/" in target or "netns" in target),
            *(str(path) for base in directories if base.exists() for path in base.iterdir()),
        ]
    except FileNotFoundError as gone:  # between its listing and a look into it
        return [f"{gone.filename}, which is just being removed"]


def _started_at(pid: int) -> int:
    """Start time of a process in clock ticks since boot, field 22 of /proc/PID/stat."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
